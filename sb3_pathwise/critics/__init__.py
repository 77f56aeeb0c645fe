"""
Critics, by the name that ``policy_kwargs=dict(critic=...)`` gives them: a file each, and a line here.

``base.py`` says what a critic is. Networks live in the policy, the update in ``update.py``.
"""

from sb3_pathwise.critics.base import ActionValue, Critic
from sb3_pathwise.critics.batch_renorm import BatchRenormCritic
from sb3_pathwise.critics.categorical import CategoricalCritic
from sb3_pathwise.critics.quantile import QuantileCritic
from sb3_pathwise.critics.twin import TwinCritic

__all__ = ["CRITICS", "ActionValue", "Critic"]

CRITICS: dict[str, type[Critic]] = {
    "twin": TwinCritic,
    "quantile": QuantileCritic,
    "batch_renorm": BatchRenormCritic,
    "categorical": CategoricalCritic,
}
