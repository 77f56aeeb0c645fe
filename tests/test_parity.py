"""
PathwiseAC with its defaults is SB3's SAC: same seed, same parameters, same logs, same transitions.

On the machines tried the difference is exactly 0. The bound leaves room for a linear algebra library that rounds otherwise.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import Wrapper, make, spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pathwise import PathwiseAC

MAX_DIFFERENCE = 1e-5


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
            np.testing.assert_allclose(ours.logger.name_to_value[key], value, rtol=1e-4, atol=1e-5, err_msg=key)

    assert sac.replay_buffer.pos == ours.replay_buffer.pos
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        # With optimize_memory_usage there are no next observations
        expected_field, actual_field = getattr(sac.replay_buffer, name, {}), getattr(ours.replay_buffer, name, {})
        if not isinstance(expected_field, dict):
            expected_field, actual_field = {"": expected_field}, {"": actual_field}
        for key, array in expected_field.items():
            np.testing.assert_allclose(actual_field[key], array, atol=1e-4, err_msg=f"{name} {key}")


@pytest.mark.parametrize("use_sde", [False, True])
def test_defaults(use_sde: bool) -> None:
    models = [cls("MlpPolicy", "Pendulum-v1", use_sde=use_sde, seed=0).learn(250, log_interval=1) for cls in (SAC, PathwiseAC)]
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
    models = [VARIANTS[variant](cls).learn(250, log_interval=1) for cls in (SAC, PathwiseAC)]
    assert_same_training(*models, min_updates=50)


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
}


@pytest.mark.parametrize("variant", POLICY_VARIANTS)
def test_policies(make_model: Callable[..., Any], variant: str) -> None:
    models = [make_model(cls, **POLICY_VARIANTS[variant]).learn(100, log_interval=1) for cls in (SAC, PathwiseAC)]
    assert_same_training(*models, min_updates=80)
    # The comparison would be worth little if some part of SAC had not been trained
    untrained = make_model(SAC, **POLICY_VARIANTS[variant]).policy.state_dict()
    trained = models[0].policy.state_dict()
    still = [name for name, tensor in untrained.items() if (trained[name] == tensor).all()]
    assert not [name for name in still if not name.endswith("num_batches_tracked")]


def change_batch_size(model: SAC) -> None:
    for batch_size in (16, 40, 8, 40):
        model.train(gradient_steps=2, batch_size=batch_size)


def freeze_layers(model: SAC) -> None:
    for network in (model.actor.latent_pi, model.critic.qf1):
        for param in network[0].parameters():
            param.requires_grad = False
    model.train(gradient_steps=5, batch_size=16)
    for param in model.policy.parameters():
        param.requires_grad = True
    model.train(gradient_steps=5, batch_size=16)


def set_back_parameters(model: SAC) -> None:
    parameters = copy.deepcopy(model.get_parameters())
    model.train(gradient_steps=5, batch_size=16)
    model.set_parameters(parameters)
    model.train(gradient_steps=5, batch_size=16)


def load_weights_in_place(model: SAC) -> None:
    model.policy.load_state_dict({name: 0.9 * tensor for name, tensor in model.policy.state_dict().items()})
    model.train(gradient_steps=5, batch_size=16)


@pytest.mark.parametrize("intervene", [change_batch_size, freeze_layers, set_back_parameters, load_weights_in_place])
def test_interventions(make_model: Callable[..., Any], intervene: Callable[[SAC], None]) -> None:
    """What users do to a model between two updates."""
    models = []
    for cls in (SAC, PathwiseAC):
        model = make_model(cls, policy_kwargs={"net_arch": [16, 12]}).learn(60, log_interval=1)
        model.set_random_seed(3)
        intervene(model)
        models.append(model)
    assert_same_training(*models, min_updates=45)
