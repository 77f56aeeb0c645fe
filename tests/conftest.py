"""
What several test files share: environments small enough to learn on in seconds, and a factory of tiny models.

The environments are registered, so that tests name them as users do. What a test is about belongs in its own file.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC

th.set_num_threads(1)

ALGORITHMS = (PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC)


class PointMass(gym.Env):
    """
    A point in the unit square that is paid for being in the middle. Everything in it is seeded by ``reset``.

    :param observation: how the position is seen: "vector", "image", "dict" (of two vectors) or "image_dict"
    :param n_dims: dimensions of the square, and of the actions
    :param ep_length: steps until truncation
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, observation: str = "vector", n_dims: int = 2, ep_length: int = 10) -> None:
        image = spaces.Box(0, 255, (8, 8, 1), np.uint8)
        position = spaces.Box(-1.0, 1.0, (n_dims,), np.float32)
        self.observation_space = {
            "vector": position,
            "image": image,
            "dict": spaces.Dict(position=position, time=spaces.Box(0.0, 1.0, (1,), np.float32)),
            "image_dict": spaces.Dict(position=position, image=image),
        }[observation]
        self.action_space = spaces.Box(-1.0, 1.0, (n_dims,), np.float32)
        self.observation = observation
        self.ep_length = ep_length

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, self.action_space.shape).astype(np.float32)
        self.time = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.position = np.clip(self.position + 0.3 * action, -1, 1).astype(np.float32)
        self.time += 1
        reward = -float(np.abs(self.position).sum())
        terminated = bool(np.abs(self.position).max() < 0.05)
        return self._observe(), reward, terminated, self.time >= self.ep_length, {}

    def _observe(self) -> Any:
        image = np.zeros((8, 8, 1), np.uint8)
        image[int(3.5 + 3.5 * self.position[0]), int(3.5 + 3.5 * self.position[-1])] = 255
        return {
            "vector": self.position,
            "image": image,
            "dict": {"position": self.position, "time": np.array([self.time / self.ep_length], np.float32)},
            "image_dict": {"position": self.position, "image": image},
        }[self.observation]


class TwoGoals(gym.Env):
    """
    A bandit with two equally good actions, -0.6 and 0.6, and nothing in between.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(np.exp(-(((np.abs(action[0]) - 0.6) / 0.2) ** 2)))
        return np.zeros(1, np.float32), reward, True, False, {}


for name in ("vector", "image", "dict", "image_dict"):
    env_id = f"Point{name.title().replace('_', '')}-v0"
    gym.register(env_id, entry_point=PointMass, kwargs={"observation": name}, disable_env_checker=True)
gym.register("TwoGoals-v0", entry_point=TwoGoals, disable_env_checker=True)


class TinyExtractor(BaseFeaturesExtractor):
    """
    Features of images, vectors or dictionaries of both, with a batch norm layer, in a few hundred weights.

    :param observation_space: of the environment, images channel-first
    :param features_dim: number of features
    """

    def __init__(self, observation_space: spaces.Space, features_dim: int = 6) -> None:
        super().__init__(observation_space, features_dim)
        size = spaces.flatdim(observation_space)
        self.net = nn.Sequential(nn.Linear(size, features_dim), nn.BatchNorm1d(features_dim), nn.Tanh())

    def forward(self, observations: Any) -> th.Tensor:
        if isinstance(observations, dict):
            return self.net(th.cat([observations[key].flatten(1) for key in sorted(observations)], dim=1))
        return self.net(observations.flatten(1))


@pytest.fixture(params=ALGORITHMS, ids=lambda cls: cls.__name__)
def algorithm(request: pytest.FixtureRequest) -> type[SAC]:
    """Each of the four algorithms in turn."""
    return request.param


@pytest.fixture
def batch_norm() -> dict[str, Any]:
    """``policy_kwargs`` of networks with batch norm."""
    return {"features_extractor_class": TinyExtractor}


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """
    A factory of models with tiny networks and small batches; arguments as those of the algorithms. Policies that see more
    than a vector have a ``TinyExtractor``, and with it batch norm.
    """

    def make(cls: type[SAC], env: Any = "PointVector-v0", policy: str = "MlpPolicy", **kwargs: Any) -> SAC:
        tiny: dict[str, Any] = {"learning_starts": 20, "buffer_size": 500, "batch_size": 16, "seed": 0, "device": "cpu"}
        extractor = {} if policy == "MlpPolicy" else {"features_extractor_class": TinyExtractor}
        policy_kwargs = {"net_arch": [16]} | extractor | kwargs.pop("policy_kwargs", {})
        return cls(policy, env, policy_kwargs=policy_kwargs, **tiny | kwargs)

    return make
