"""
Critics other than SAC's: PathwiseAC with TQC's is TQC, with CrossQ's is CrossQ, any route climbs any of them without bias, and
they travel as SAC's do.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pathwise import PathwiseAC

MakeModel = Callable[..., Any]
# CrossQ's defaults, but for the sizes of layers
CROSSQ: dict[str, Any] = {
    "learning_rate": 1e-3,
    "policy_delay": 3,
    "policy_kwargs": {"critic": "batch_renorm", "optimizer_kwargs": {"betas": (0.5, 0.999)}},
}
SMALL: dict[str, Any] = {"batch_size": 64, "buffer_size": 1000, "seed": 1, "device": "cpu"}
NETWORKS = {"net_arch": {"pi": [64, 48], "qf": [72, 64]}}


def train_tqc_and_ours(env: Any, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> list[SAC]:
    networks, kwargs = NETWORKS | (policy_kwargs or {}), SMALL | kwargs
    dropped = {"top_quantiles_to_drop_per_net": 5} if "n_steps" in kwargs else {}
    # One after the other: they share the global random streams
    theirs = TQC("MlpPolicy", env(), policy_kwargs=networks, **dropped, **kwargs).learn(250, log_interval=1)
    ours = PathwiseAC("MlpPolicy", env(), policy_kwargs=networks | dropped | {"critic": "quantile"}, engine="eager", **kwargs)
    return [theirs, ours.learn(250, log_interval=1)]


def train_crossq_and_ours(env: Any, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> list[SAC]:
    networks, kwargs = NETWORKS | (policy_kwargs or {}), SMALL | kwargs
    theirs = CrossQ("MlpPolicy", env(), policy_kwargs=networks, **kwargs).learn(250, log_interval=1)
    ours_kwargs = CROSSQ | kwargs | {"policy_kwargs": networks | CROSSQ["policy_kwargs"]}
    return [theirs, PathwiseAC("MlpPolicy", env(), engine="eager", **ours_kwargs).learn(250, log_interval=1)]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"env": lambda: "Pendulum-v1"},
    "vec_normalize": {"env": lambda: VecNormalize(make_vec_env("Pendulum-v1"))},
    "n_steps": {"env": lambda: "Pendulum-v1", "n_steps": 3},
    "several_envs": {"env": lambda: make_vec_env("Pendulum-v1", 2), "gradient_steps": -1},
    "gsde": {"env": lambda: "Pendulum-v1", "use_sde": True, "ent_coef": 0.1},
    "three_critics": {"env": lambda: "Pendulum-v1", "policy_kwargs": {"n_critics": 3, "activation_fn": th.nn.Tanh}},
}


@pytest.mark.parametrize("train", [train_tqc_and_ours, train_crossq_and_ours])
@pytest.mark.parametrize("variant", VARIANTS)
def test_is_contribs(train: Callable[..., list[Any]], variant: str) -> None:
    theirs, ours = train(**VARIANTS[variant])
    assert theirs._n_updates == ours._n_updates >= 74
    expected, actual = theirs.get_parameters(), ours.get_parameters()
    assert expected.keys() == actual.keys()
    # Of the buffers too: running statistics, steps
    assert expected["policy"].keys() == actual["policy"].keys()
    differences = {name: (tensor - actual["policy"][name]).abs().max().item() for name, tensor in expected["policy"].items()}
    assert max(differences.values()) == 0, differences
    for name in ("actor.optimizer", "critic.optimizer"):
        assert len(expected[name]["state"]) == len(actual[name]["state"]) > 0
    for key, value in theirs.logger.name_to_value.items():
        if not key.startswith("time/"):
            assert ours.logger.name_to_value[key] == pytest.approx(value, rel=1e-6), key


def test_is_crossq_beyond_warm_up() -> None:
    """After the warm-up, running statistics enter the normalisation."""
    policy_kwargs = {"renorm_warmup_steps": 20, "batch_norm_eps": 0.01}
    theirs, ours = train_crossq_and_ours(lambda: "Pendulum-v1", policy_kwargs)
    assert theirs.critic.qf0[0].steps > 2 * theirs.critic.qf0[0].warmup_steps == 40
    expected, actual = theirs.policy.state_dict(), ours.policy.state_dict()
    assert max((tensor - actual[name]).abs().max().item() for name, tensor in expected.items()) == 0
