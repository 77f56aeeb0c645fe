"""SB3 algorithms that differ in one thing only: the route to the gradient of the actor's objective."""

from sb3_pathwise.algorithms import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.persistence import ExactCheckpointCallback, load_weights_only, resume

__version__ = "0.1.0"

__all__ = [
    "ExactCheckpointCallback",
    "LikelihoodRatioAC",
    "MeasureValuedAC",
    "MixedAC",
    "PathwiseAC",
    "__version__",
    "load_weights_only",
    "resume",
]
