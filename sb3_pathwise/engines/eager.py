"""The plain update, which runs any model."""

from typing import TYPE_CHECKING

from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_pathwise.engines.base import Engine
from sb3_pathwise.update import Metrics, update

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class EagerEngine(Engine):
    """``update.py`` as it is."""

    def update(
        self, model: "ActorCritic", replay_data: ReplayBufferSamples, update_actor: bool, update_targets: bool
    ) -> Metrics:
        return update(model, replay_data, update_actor, update_targets)
