"""SB3 algorithms that differ in one thing only: the route to the gradient of the actor's objective."""

from sb3_pathwise.algorithms import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.persistence import ExactCheckpointCallback, load_weights_only, resume
from sb3_pathwise.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__version__ = "0.1.0"

__all__ = [
    "CnnPolicy",
    "ExactCheckpointCallback",
    "LikelihoodRatioAC",
    "MeasureValuedAC",
    "MixedAC",
    "MlpPolicy",
    "MultiInputPolicy",
    "PathwiseAC",
    "__version__",
    "load_weights_only",
    "resume",
]
