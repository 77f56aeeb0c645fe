"""
What watches over a training: wrong arguments, numbers that are not finite, and the traps that people fall into.

``arguments.py``, ``own_arguments.py`` and ``action_space.py`` refuse before training. ``rollouts.py`` and ``finite.py`` stop
it, and ``causes.py`` says why; ``traps.py`` warns in it. Both ask ``scale.py``. Nothing here learns: the update, which calls
them, is in ``learner.py``.
"""

from sb3_pathwise.guards.arguments import check_arguments, check_early_arguments
from sb3_pathwise.guards.causes import alarms_explained
from sb3_pathwise.guards.finite import DeferredChecks, NonFiniteError, check_descent, check_finite
from sb3_pathwise.guards.rollouts import CheckedSAC
from sb3_pathwise.guards.traps import warn_of_scale, warn_of_traps

__all__ = [
    "CheckedSAC",
    "DeferredChecks",
    "NonFiniteError",
    "alarms_explained",
    "check_arguments",
    "check_descent",
    "check_early_arguments",
    "check_finite",
    "warn_of_scale",
    "warn_of_traps",
]
