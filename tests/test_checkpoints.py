"""
Checkpoints: what one of the algorithms (or SAC) has saved, every one of them loads, and training goes on.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC

MakeModel = Callable[..., Any]
OBS = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
LEARNED = {"learning_rate": 1e-2, "tau": 0.1, "gamma": 0.9}


def assert_same_state(loaded: SAC, saved: SAC) -> None:
    """Networks, optimizers, temperature, progress: everything that learning goes on from."""
    expected, actual = saved.get_parameters(), loaded.get_parameters()
    assert expected.keys() == actual.keys()
    th.testing.assert_close(actual["policy"], expected["policy"], rtol=0, atol=0)
    for name in expected.keys() - {"policy"}:
        assert len(expected[name]["state"]) > 0
        th.testing.assert_close(actual[name]["state"], expected[name]["state"], rtol=0, atol=0)
        for group in actual[name]["param_groups"]:
            assert group["lr"] == expected[name]["param_groups"][0]["lr"]
    if saved.log_ent_coef is not None:
        assert loaded.log_ent_coef.item() == saved.log_ent_coef.item() != 0
        assert loaded.ent_coef_optimizer.param_groups[0]["params"][0] is loaded.log_ent_coef
    else:
        assert loaded.ent_coef_tensor == saved.ent_coef_tensor
    for name in (
        "num_timesteps",
        "_n_updates",
        "_episode_num",
        "target_entropy",
        "tau",
        "gamma",
        "learning_starts",
        "ent_coef",
    ):
        assert getattr(loaded, name) == getattr(saved, name), name
    for deterministic in (False, True):
        actions = []
        for model in (saved, loaded):
            model.set_random_seed(0)
            actions.append(model.predict(OBS, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)


def assert_learns_on(loaded: SAC) -> None:
    before = {name: tensor.clone() for name, tensor in loaded.policy.state_dict().items()}
    steps = int(loaded.actor.optimizer.state_dict()["state"][0]["step"])
    loaded.learn(30, reset_num_timesteps=False)
    after = loaded.policy.state_dict()
    assert all((after[name] != tensor).any() for name, tensor in before.items())
    assert loaded.actor.optimizer.state_dict()["state"][0]["step"] == steps + 30


@pytest.mark.parametrize("saver", [SAC, PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC])
@pytest.mark.parametrize("loader", [PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC, SAC])
def test_any_to_any(make_model: MakeModel, tmp_path: Path, saver: type[SAC], loader: type[SAC]) -> None:
    saved = make_model(saver, **LEARNED).learn(50)
    saved.save(tmp_path / "model")
    loaded = loader.load(tmp_path / "model", env=saved.get_env())
    assert type(loaded) is loader
    assert_same_state(loaded, saved)
    assert_learns_on(loaded)


@pytest.mark.parametrize("saver", [SAC, PathwiseAC])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"use_sde": True},
        {"ent_coef": 0.2},
        {"policy": "CnnPolicy", "env": "PointImage-v0"},
        {"policy": "MultiInputPolicy", "env": "PointDict-v0", "policy_kwargs": {"share_features_extractor": True}},
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "n_critics": 3, "net_arch": []}},
    ],
    ids=lambda kwargs: "-".join(f"{value}" for value in kwargs.values() if not isinstance(value, dict)),
)
def test_settings_travel(
    algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, saver: type[SAC], kwargs: dict[str, Any]
) -> None:
    saved = make_model(saver, **kwargs).learn(40)
    saved.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=saved.get_env())
    expected, actual = saved.get_parameters(), loaded.get_parameters()
    assert expected.keys() == actual.keys()
    th.testing.assert_close(actual["policy"], expected["policy"], rtol=0, atol=0)
    assert loaded.use_sde == saved.use_sde and loaded.ent_coef == saved.ent_coef
    assert type(loaded.actor.optimizer).__mro__[-2] is type(saved.actor.optimizer).__mro__[-2]
    loaded.learn(25, reset_num_timesteps=False)


def test_goes_on_as_if_never_stopped(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    straight = make_model(algorithm, **LEARNED).learn(40)
    straight.save(tmp_path / "model")
    straight.save_replay_buffer(tmp_path / "replay_buffer")
    loaded = algorithm.load(tmp_path / "model", env=straight.get_env())
    loaded.load_replay_buffer(tmp_path / "replay_buffer")
    for model in (straight, loaded):
        model.learn(0, reset_num_timesteps=False)
        model.set_random_seed(7)
        model.train(gradient_steps=20, batch_size=16)
    th.testing.assert_close(loaded.policy.state_dict(), straight.policy.state_dict(), rtol=0, atol=0)
    assert loaded.log_ent_coef.item() == straight.log_ent_coef.item()


# Of n_action_samples and baseline
OWN_DEFAULTS: dict[type[SAC], tuple[int, str | None]] = {
    PathwiseAC: (1, None),
    LikelihoodRatioAC: (8, "leave_one_out"),
    MeasureValuedAC: (1, None),
    MixedAC: (8, "leave_one_out"),
}


@pytest.mark.parametrize("loader", OWN_DEFAULTS)
def test_route_arguments_stay_with_their_class(make_model: MakeModel, tmp_path: Path, loader: type[SAC]) -> None:
    saved = make_model(LikelihoodRatioAC, n_action_samples=5, baseline="mean_action", policy_delay=3, max_grad_norm=2.0)
    saved.save(tmp_path / "model")
    loaded = loader.load(tmp_path / "model")
    defaults = OWN_DEFAULTS | {LikelihoodRatioAC: (5, "mean_action")}
    assert (loaded.n_action_samples, loaded.baseline) == defaults[loader]
    # What means the same to all of them travels
    assert (loaded.policy_delay, loaded.max_grad_norm) == (3, 2.0)

    # There and back again: the file is now the other class's
    loaded.save(tmp_path / "again")
    again = LikelihoodRatioAC.load(tmp_path / "again")
    expected = (5, "mean_action") if loader is LikelihoodRatioAC else (8, "leave_one_out")
    assert (again.n_action_samples, again.baseline) == expected


@pytest.mark.parametrize("saver", [SAC, PathwiseAC, LikelihoodRatioAC, MixedAC])
def test_arguments_of_load_win(make_model: MakeModel, tmp_path: Path, saver: type[SAC]) -> None:
    make_model(saver).save(tmp_path / "model")
    kwargs = {"n_action_samples": 6, "policy_delay": 2, "max_grad_norm": 1.0, "gamma": 0.5, "learning_rate": 0.25}
    loaded = LikelihoodRatioAC.load(tmp_path / "model", baseline="none", **kwargs)
    for name, value in (kwargs | {"baseline": "none"}).items():
        assert getattr(loaded, name) == value
    assert loaded.lr_schedule(1) == 0.25


def test_defaults_for_a_model_of_sac(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    make_model(SAC).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert (loaded.n_action_samples, loaded.baseline) == OWN_DEFAULTS[algorithm]
    assert (loaded.policy_delay, loaded.max_grad_norm, loaded.precision, loaded.engine) == (1, None, "float32", "auto")


def test_file_holds_no_network_twice(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    sac, ours = make_model(SAC).learn(25), make_model(algorithm).learn(25)
    contents = {}
    for model in (sac, ours):
        model.save(tmp_path / "model")
        with zipfile.ZipFile(tmp_path / "model.zip") as archive:
            contents[type(model)] = set(archive.namelist())
        data, params, variables = load_from_zip_file(tmp_path / "model")
        kinds = (th.nn.Module, th.optim.Optimizer, th.Tensor)
        for value in data.values():
            parts = value if isinstance(value, (list, tuple)) else [value]
            assert not any(isinstance(part, kinds) for part in parts)
        assert params.keys() == {"policy", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer"}
        assert variables.keys() == {"log_ent_coef"}
    assert contents[SAC] == contents[algorithm]


def test_parameters_round_trip(algorithm: type[SAC], make_model: MakeModel) -> None:
    model, other = make_model(algorithm).learn(40), make_model(algorithm, seed=1)
    other.set_parameters(model.get_parameters(), exact_match=True)
    th.testing.assert_close(other.policy.state_dict(), model.policy.state_dict(), rtol=0, atol=0)
    state = model.critic.optimizer.state_dict()["state"]
    th.testing.assert_close(other.critic.optimizer.state_dict()["state"], state, rtol=0, atol=0)
    with pytest.raises(ValueError, match="do not match"):
        other.set_parameters({"policy": model.policy.state_dict()}, exact_match=True)
    with pytest.raises(ValueError, match="invalid"):
        other.set_parameters({"nonsense": {}}, exact_match=False)
    # The networks that learn are those that have been set
    other.learn(40)
    assert any((a != b).any() for a, b in zip(model.policy.parameters(), other.policy.parameters(), strict=True))


def test_exclude_and_include(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(algorithm)
    model.note = "kept"
    model.save(tmp_path / "model", exclude=["note", "gamma"])
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert "note" not in data and "gamma" not in data and "replay_buffer" not in data
    model.save(tmp_path / "model", include=["replay_buffer"])
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert data["note"] == "kept" and "replay_buffer" in data


def test_replay_buffer_travels(make_model: MakeModel, tmp_path: Path) -> None:
    saved = make_model(PathwiseAC).learn(40)
    saved.save(tmp_path / "model")
    saved.save_replay_buffer(tmp_path / "replay_buffer")
    loaded = LikelihoodRatioAC.load(tmp_path / "model", env=saved.get_env())
    loaded.load_replay_buffer(tmp_path / "replay_buffer")
    np.testing.assert_array_equal(loaded.replay_buffer.rewards, saved.replay_buffer.rewards)
    assert loaded.replay_buffer.pos == 40


def test_hindsight_replay(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True)
    saved = make_model(PathwiseAC, env, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer).learn(40)
    saved.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env).learn(40)
    assert isinstance(loaded.replay_buffer, HerReplayBuffer) and loaded._n_updates == saved._n_updates + 20


@pytest.mark.parametrize("distribution", ["squashed_gaussian", "beta", "gaussian_mixture"])
def test_distributions(make_model: MakeModel, tmp_path: Path, distribution: str) -> None:
    policy_kwargs = {"distribution": distribution, "n_components": 3}
    saved = make_model(LikelihoodRatioAC, policy_kwargs=policy_kwargs, **LEARNED).learn(50)
    saved.save(tmp_path / "model")
    loaded = LikelihoodRatioAC.load(tmp_path / "model", env=saved.get_env())
    assert_same_state(loaded, saved)
    assert_learns_on(loaded)
    if distribution != "gaussian_mixture":
        for loader in (PathwiseAC, MixedAC):
            other = loader.load(tmp_path / "model", env=saved.get_env())
            assert_same_state(other, saved)
            assert_learns_on(other)


@pytest.mark.parametrize("distribution", ["squashed_gaussian", "beta", "gaussian_mixture"])
def test_policy_alone(make_model: MakeModel, tmp_path: Path, distribution: str) -> None:
    model = make_model(LikelihoodRatioAC, policy_kwargs={"distribution": distribution, "n_components": 3}).learn(40)
    model.policy.save(tmp_path / "policy.pt")
    policy = type(model.policy).load(tmp_path / "policy.pt")
    np.testing.assert_array_equal(policy.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])


def test_untouched_by_a_failed_load(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(LikelihoodRatioAC, policy_kwargs={"distribution": "gaussian_mixture"})
    model.save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="LikelihoodRatioAC"):
        PathwiseAC.load(tmp_path / "model", env=model.get_env())
    with pytest.raises(ValueError, match="baseline"):
        LikelihoodRatioAC.load(tmp_path / "model", env=model.get_env(), baseline="unknown")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
