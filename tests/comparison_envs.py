"""
Environments of a few steps for the tests of comparisons, one of which raises and one of which kills its process.

It is a module of its own because the processes that train import it by name (``--gym-packages comparison_envs``).
"""

import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

HELD_SEED = 2


class ReachEnv(gym.Env):
    """
    Push a point to the origin of a line; an action is a noisy displacement.

    :param noise: Standard deviation of the displacement
    :param seconds: How long a step takes
    :param reward_scale: What the reward is multiplied with
    :param hold: A path; while a file is there, training with ``HELD_SEED`` does not begin, and says so in ``<hold>-reached``
    :param mishap: In the middle of the training, ``raise``, or ``die``: the process is killed
    :param marker: A path; the mishap happens unless a file is there, which then is; empty: every time
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        noise: float = 0.1,
        seconds: float = 0,
        reward_scale: float = 1,
        hold: str = "",
        mishap: str = "",
        marker: str = "",
    ) -> None:
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.noise, self.seconds, self.reward_scale, self.hold = noise, seconds, reward_scale, hold
        self.mishap, self.marker = mishap, marker
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.hold and seed == HELD_SEED:
            Path(f"{self.hold}-reached").touch()
            while Path(self.hold).exists():
                time.sleep(0.02)
        self.position = self.np_random.uniform(-3.0, 3.0)
        return np.array([self.position], dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        # Evaluations play a few episodes only
        if self.mishap and self.n_steps == 45 and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            if self.mishap == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the point fell off the line")
        self.n_steps += 1
        self.position = float(np.clip(self.position + action[0] + self.noise * self.np_random.normal(), -10.0, 10.0))
        return np.array([self.position], dtype=np.float32), -self.reward_scale * self.position**2, False, False, {}


for name, mishap in {"Reach-v0": "", "Faulty-v0": "raise", "Deadly-v0": "die"}.items():
    gym.register(name, entry_point=ReachEnv, max_episode_steps=10, kwargs={"mishap": mishap})
