"""
PathwiseAC in the eager engine is SB3's SAC to the last bit: same seed, same parameters, same logs, same transitions.

Both do the same operations in the same order, so that no machine needs a bound. What users do to a model between two updates
is in ``test_interventions.py``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import Wrapper, make, spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from sb3_pathwise import PathwiseAC

MAX_DIFFERENCE = 0
CLASSES: tuple[Any, Any] = (SAC, partial(PathwiseAC, engine="eager"))


class SplitObservation(Wrapper):
    """Pendulum's angle and velocity under separate keys."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = spaces.Dict(
            angle=spaces.Box(space.low[:2], space.high[:2]), velocity=spaces.Box(space.low[2:], space.high[2:])
        )

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        obs, info = self.env.reset(**kwargs)
        return {"angle": obs[:2], "velocity": obs[2:]}, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, *rest = self.env.step(action)
        return {"angle": obs[:2], "velocity": obs[2:]}, *rest


def assert_same_training(sac: SAC, ours: PathwiseAC, min_updates: int) -> None:
    assert sac._n_updates == ours._n_updates >= min_updates
    expected, actual = sac.get_parameters(), ours.get_parameters()
    assert expected.keys() == actual.keys()
    differences = {name: (tensor - actual["policy"][name]).abs().max() for name, tensor in expected["policy"].items()}
    assert max(differences.values()) <= MAX_DIFFERENCE, differences
    if sac.log_ent_coef is not None:
        assert abs(sac.log_ent_coef.item() - ours.log_ent_coef.item()) <= MAX_DIFFERENCE

    for key, value in sac.logger.name_to_value.items():
        if key != "time/fps" and key != "time/time_elapsed":
            np.testing.assert_allclose(ours.logger.name_to_value[key], value, rtol=1e-6, err_msg=key)

    assert sac.replay_buffer.pos == ours.replay_buffer.pos
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        # With optimize_memory_usage there are no next observations
        expected_field, actual_field = getattr(sac.replay_buffer, name, {}), getattr(ours.replay_buffer, name, {})
        if not isinstance(expected_field, dict):
            expected_field, actual_field = {"": expected_field}, {"": actual_field}
        for key, array in expected_field.items():
            np.testing.assert_array_equal(actual_field[key], array, err_msg=f"{name} {key}")


@pytest.mark.parametrize("use_sde", [False, True])
def test_defaults(use_sde: bool) -> None:
    models = [cls("MlpPolicy", "Pendulum-v1", use_sde=use_sde, seed=0).learn(250, log_interval=1) for cls in CLASSES]
    assert_same_training(*models, min_updates=150)


SMALLER: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 64, "buffer_size": 1000, "seed": 1}
VARIANTS: dict[str, Callable[[type[SAC]], SAC]] = {
    "n_steps": lambda cls: cls("MlpPolicy", "Pendulum-v1", n_steps=3, **SMALLER),
    "vec_normalize": lambda cls: cls("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1")), **SMALLER),
    "dict": lambda cls: cls("MultiInputPolicy", SplitObservation(make("Pendulum-v1")), **SMALLER),
    "several_envs": lambda cls: cls("MlpPolicy", make_vec_env("Pendulum-v1", 2), gradient_steps=-1, **SMALLER),
    "target_update_interval": lambda cls: cls(
        "MlpPolicy", "Pendulum-v1", train_freq=2, gradient_steps=3, target_update_interval=2, **SMALLER
    ),
    "train_freq_episode": lambda cls: cls("MlpPolicy", "Pendulum-v1", train_freq=(1, "episode"), gradient_steps=-1, **SMALLER),
    "ent_coef_fixed": lambda cls: cls("MlpPolicy", "Pendulum-v1", ent_coef=0.1, **SMALLER),
    "ent_coef_start": lambda cls: cls("MlpPolicy", "Pendulum-v1", ent_coef="auto_0.1", target_entropy=-0.5, **SMALLER),
    "learning_rate": lambda cls: cls("MlpPolicy", "Pendulum-v1", learning_rate=lambda left: 1e-2 * left**2, **SMALLER),
    "optimize_memory_usage": lambda cls: cls(
        "MlpPolicy",
        "Pendulum-v1",
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        **SMALLER | {"buffer_size": 180},
    ),
    "gsde_frequencies": lambda cls: cls(
        "MlpPolicy", "Pendulum-v1", use_sde=True, sde_sample_freq=4, use_sde_at_warmup=True, tau=0.02, gamma=0.9, **SMALLER
    ),
    "action_noise": lambda cls: cls(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", 2),
        action_noise=VectorizedActionNoise(NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), 2),
        **SMALLER,
    ),
    "her": lambda cls: cls(
        "MultiInputPolicy", BitFlippingEnv(continuous=True, n_bits=3), replay_buffer_class=HerReplayBuffer, **SMALLER
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str) -> None:
    models = [VARIANTS[variant](cls).learn(250, log_interval=1) for cls in CLASSES]
    assert_same_training(*models, min_updates=50)


class Dropout(BaseFeaturesExtractor):
    """A random mask of every call: which network is called when is visible in the order of random numbers."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=12)
        self.net = nn.Sequential(nn.Linear(observation_space.shape[0], 12), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


class Unsquashed(Actor):
    """A Gaussian that is not squashed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_dist = DiagGaussianDistribution(self.action_space.shape[0])


class OwnFeatures(Actor):
    """Observations are scaled."""

    def extract_features(self, obs: Any, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        return super().extract_features(3 * obs, features_extractor)


class OwnParams(Actor):
    """Means are bounded, and the scale does not depend on the state."""

    def get_action_dist_params(self, obs: Any) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        mean_actions, log_std, kwargs = super().get_action_dist_params(obs)
        return 2 * th.tanh(mean_actions), log_std.mean(0, keepdim=True).expand_as(log_std) - 0.5, kwargs


class OwnLogProb(Actor):
    """Not a density: SAC's own, and a price for large actions, as a column."""

    def action_log_prob(self, obs: Any) -> tuple[th.Tensor, th.Tensor]:
        actions, log_prob = super().action_log_prob(obs)
        return actions, (log_prob + actions.square().sum(dim=1)).unsqueeze(1)


class OwnEverything(Actor):
    """A uniform policy around the mean: SB3's distribution stays unused."""

    def forward(self, obs: Any, deterministic: bool = False) -> th.Tensor:
        return self.action_log_prob(obs)[0]

    def action_log_prob(self, obs: Any) -> tuple[th.Tensor, th.Tensor]:
        latent = self.latent_pi(self.extract_features(obs, self.features_extractor))
        mean, width = self.mu(latent).tanh(), self.log_std(latent).sigmoid()
        return (mean + width * (th.rand_like(mean) - 0.5)).clamp(-1, 1), -width.log().sum(dim=1)


ACTORS = (Unsquashed, OwnFeatures, OwnParams, OwnLogProb, OwnEverything)


def with_actor(cls: type[Actor]) -> type[SACPolicy]:
    """SAC's policy with another actor."""

    class Policy(SACPolicy):
        def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
            return cls(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    return Policy


class OwnCritic(SACPolicy):
    """SAC's policy, the critics of which see observations and actions otherwise."""

    class Critic(ContinuousCritic):
        def forward(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, ...]:
            return tuple(q_values.tanh() for q_values in super().forward(obs, actions.square()))

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        return self.Critic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)


POLICY_VARIANTS: dict[str, dict[str, Any]] = {
    "cnn": {"env": "PointImage-v0", "policy": "CnnPolicy"},
    "cnn_shared": {"env": "PointImage-v0", "policy": "CnnPolicy", "policy_kwargs": {"share_features_extractor": True}},
    "image_dict": {"env": "PointImageDict-v0", "policy": "MultiInputPolicy"},
    "three_critics": {"policy_kwargs": {"n_critics": 3, "net_arch": {"pi": [16], "qf": [24, 8]}}},
    "one_critic": {"policy_kwargs": {"n_critics": 1}},
    "no_hidden_layers": {"policy_kwargs": {"net_arch": []}},
    "other_activation": {"policy_kwargs": {"activation_fn": th.nn.ELU}},
    "adam_variant": {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.01, "amsgrad": True, "betas": (0.8, 0.9)}}},
    "rmsprop": {"policy_kwargs": {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"momentum": 0.9}}},
    "gsde_clipped": {"use_sde": True, "policy_kwargs": {"use_expln": True, "log_std_init": -1.0, "clip_mean": 1.0}},
    "dropout": {"policy_kwargs": {"features_extractor_class": Dropout}},
    "dropout_shared": {"policy_kwargs": {"features_extractor_class": Dropout, "share_features_extractor": True}},
    "dropout_gsde": {"use_sde": True, "policy_kwargs": {"features_extractor_class": Dropout}},
    **{cls.__name__: {"policy": with_actor(cls)} for cls in ACTORS},
    "own_critic": {"policy": OwnCritic},
}


@pytest.mark.parametrize("variant", POLICY_VARIANTS)
def test_policies(make_model: Callable[..., Any], variant: str) -> None:
    models = [make_model(cls, **POLICY_VARIANTS[variant]).learn(100, log_interval=1) for cls in CLASSES]
    assert_same_training(*models, min_updates=80)
    # The comparison would be worth little if some part of SAC had not been trained
    untrained = make_model(SAC, **POLICY_VARIANTS[variant]).policy.state_dict()
    trained = models[0].policy.state_dict()
    still = [name for name, tensor in untrained.items() if (trained[name] == tensor).all()]
    assert not [name for name in still if not name.endswith("num_batches_tracked")]
