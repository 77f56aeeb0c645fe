"""
Engines: other ways to execute the update of ``update.py``, faster and proven equal to it.

``eager.py`` is that update as it is. Every other engine says by ``reason_not`` what of a model it cannot follow; ``choice.py``
picks one, and looks again whenever the model has changed. Nothing below knows of this folder but the learner, and the learner
knows one name.
"""

from sb3_pathwise.engines.choice import ENGINES, choose_engine

__all__ = ["ENGINES", "choose_engine"]
