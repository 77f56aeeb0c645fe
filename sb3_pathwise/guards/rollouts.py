"""
What passes between environment, policy and replay buffer is looked at on its way.
"""

from typing import Any

import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_pathwise.guards.action_space import check_bounds
from sb3_pathwise.guards.causes import alarms_explained
from sb3_pathwise.guards.finite import check_finite


class CheckedSAC(SAC):
    """SAC whose observations, rewards and actions are checked on their way to the replay buffer and the environment."""

    # Traps that have been warned about
    _warned_of: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warned_of = []

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # SB3 would say no more than that they must be finite
        check_bounds(env.action_space)
        return SAC._wrap_env(env, verbose, monitor_wrapper)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        total_timesteps, callback = super()._setup_learn(*args, **kwargs)
        assert self._last_obs is not None
        check_finite(self, "observation", self._last_obs)
        return total_timesteps, callback

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        # With noise of its own, there are two suspects
        with alarms_explained(self, may_blame_scale=self.action_noise is None):
            action, buffer_action = super()._sample_action(*args, **kwargs)
            check_finite(self, "action", action)
        return action, buffer_action

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        # VecNormalize clips infinities, and the buffer holds what it has not normalized
        normalizer = self._vec_normalize_env
        check_finite(self, "observation", new_obs if normalizer is None else normalizer.old_obs)
        check_finite(self, "reward", reward if normalizer is None else normalizer.old_reward)
        for env_idx in dones.nonzero()[0]:
            terminal_obs = infos[env_idx].get("terminal_observation")
            if terminal_obs is not None:
                arrays = terminal_obs if isinstance(terminal_obs, dict) else {"terminal_observation": terminal_obs}
                check_finite(self, "observation", {key: np.asarray(array)[None] for key, array in arrays.items()})
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
