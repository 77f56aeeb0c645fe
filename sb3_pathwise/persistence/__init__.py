"""
Trainings that survive: checkpoints from which training goes on bit by bit, and the loading of models from strangers.

``checkpoint.py`` says when a checkpoint is taken and how training goes on from it, ``state.py`` what is in it,
``environments.py`` and ``buffers.py`` how two large parts of it are taken and put back, ``streams.py`` does it for random
streams and plain attributes, ``storage.py`` puts it on disk, ``atomic.py`` takes care that it is whole or not there.
``safe_loading.py`` has nothing to do with all that: it reads SB3's zip files without unpickling them.
"""

from sb3_pathwise.persistence.checkpoint import ExactCheckpointCallback, resume
from sb3_pathwise.persistence.environments import RestorableEnv
from sb3_pathwise.persistence.safe_loading import load_weights_only

__all__ = ["ExactCheckpointCallback", "RestorableEnv", "load_weights_only", "resume"]
