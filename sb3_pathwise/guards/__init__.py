"""
What watches over a training: wrong arguments, numbers that are not finite, and the traps that people fall into.

``arguments.py`` refuses before training, ``finite.py`` stops it, ``traps.py`` warns in it. Nothing here learns: the update,
which calls all three, is in ``learner.py``.
"""

from sb3_pathwise.guards.arguments import check_arguments, check_early_arguments
from sb3_pathwise.guards.finite import CheckedSAC, DeferredChecks, NonFiniteError, check_descent, check_finite
from sb3_pathwise.guards.traps import warn_of_traps

__all__ = [
    "CheckedSAC",
    "DeferredChecks",
    "NonFiniteError",
    "check_arguments",
    "check_descent",
    "check_early_arguments",
    "check_finite",
    "warn_of_traps",
]
