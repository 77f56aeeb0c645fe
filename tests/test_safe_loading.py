"""
Models from strangers: what ``load_weights_only`` takes, what it refuses, and that nothing of it is executed.
"""

import base64
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pathwise import LikelihoodRatioAC, MixedAC, PathwiseAC
from sb3_pathwise.persistence import load_weights_only

pytestmark = pytest.mark.filterwarnings("ignore:.*pickled, so not read")
Change = Callable[[dict[str, bytes]], None]
ENV = "PointVector-v0"


@pytest.fixture
def saved(make_model: Any, tmp_path: Path) -> Path:
    """A model that has learned."""
    model = make_model(
        PathwiseAC, tau=0.02, policy_delay=2, n_steps=2, policy_kwargs={"net_arch": {"pi": [16], "qf": [12, 8]}}
    )
    model.learn(40)
    model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def assert_same_weights(model: SAC, other: SAC) -> None:
    ours, theirs = model.get_parameters(), other.get_parameters()
    assert ours.keys() == theirs.keys()
    for name in ("policy",):
        assert all(th.equal(ours[name][key], theirs[name][key]) for key in theirs[name])
    for name in ours.keys() - {"policy"}:
        for index, state in theirs[name]["state"].items():
            assert all(th.equal(th.as_tensor(value), ours[name]["state"][index][key]) for key, value in state.items())


def test_same_as_load(saved: Path) -> None:
    model, expected = load_weights_only(PathwiseAC, saved, ENV), PathwiseAC.load(saved, env=gym.make(ENV))
    assert_same_weights(model, expected)
    assert th.equal(model.log_ent_coef, expected.log_ent_coef)
    for name in ("tau", "policy_delay", "n_steps", "buffer_size", "learning_starts", "policy_kwargs", "num_timesteps"):
        assert getattr(model, name) == getattr(expected, name), name
    assert model._n_updates == expected._n_updates == 20
    obs = model.observation_space.sample()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], expected.predict(obs, deterministic=True)[0])
    model.learn(30)
    assert model._n_updates == 30


@pytest.mark.parametrize(
    "kwargs",
    [
        {"ent_coef": 0.2, "max_grad_norm": 1.0},
        {"use_sde": True},
        {"policy_kwargs": {"distribution": "beta", "n_critics": 3}},
        {"learning_rate": 1e-4, "target_entropy": -3.0, "target_update_interval": 2},
    ],
)
def test_settings(make_model: Any, kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(PathwiseAC, **kwargs)
    model.learn(40)
    model.save(tmp_path / "model.zip")
    loaded = load_weights_only(PathwiseAC, tmp_path / "model.zip", ENV)
    assert_same_weights(loaded, model)
    for name in ("learning_rate", "ent_coef", "target_entropy", "max_grad_norm", "use_sde", "target_update_interval"):
        assert getattr(loaded, name) == getattr(model, name)
    loaded.learn(30)


def test_images_and_dictionaries(make_model: Any, tmp_path: Path) -> None:
    """The policy is chosen by the observation space, and its kwargs, if pickled, are the caller's."""
    for env_id, policy in (("PointImage-v0", "CnnPolicy"), ("PointImageDict-v0", "MultiInputPolicy")):
        model = make_model(PathwiseAC, env_id, policy)
        model.learn(30)
        model.save(tmp_path / "model.zip")
        with pytest.raises(ValueError, match="policy_kwargs are pickled and refused"):
            load_weights_only(PathwiseAC, tmp_path / "model.zip", env_id)
        loaded = load_weights_only(PathwiseAC, tmp_path / "model.zip", env_id, policy_kwargs=model.policy_kwargs)
        assert type(loaded.policy) is type(model.policy)
        assert_same_weights(loaded, model)


def test_across_classes(saved: Path, make_model: Any, tmp_path: Path) -> None:
    """As with load(): arguments of the route are those of the class."""
    assert load_weights_only(MixedAC, saved, ENV).n_action_samples == 8
    sac = make_model(SAC, tau=0.03)
    sac.learn(40)
    sac.save(tmp_path / "sac.zip")
    model = load_weights_only(LikelihoodRatioAC, tmp_path / "sac.zip", ENV)
    assert (model.n_action_samples, model.baseline, model.tau) == (8, "leave_one_out", 0.03)
    assert_same_weights(model, sac)
    assert_same_weights(load_weights_only(SAC, saved, ENV), load_weights_only(PathwiseAC, saved, ENV))
    make_model(LikelihoodRatioAC, n_action_samples=5, baseline="none").save(tmp_path / "lr.zip")
    same = load_weights_only(LikelihoodRatioAC, tmp_path / "lr.zip", ENV)
    assert (same.n_action_samples, same.baseline) == (5, "none")


def test_what_was_pickled_is_named(make_model: Any, tmp_path: Path) -> None:
    make_model(PathwiseAC, learning_rate=LinearSchedule(1e-3, 0.0, 1.0)).save(tmp_path / "model.zip")
    with pytest.warns(UserWarning, match="left at their defaults: learning_rate, train_freq, replay_buffer_class. Give them"):
        assert load_weights_only(PathwiseAC, tmp_path / "model.zip", ENV).learning_rate == 3e-4
    with pytest.warns(UserWarning, match="left at their defaults: replay_buffer_class"):
        load_weights_only(PathwiseAC, tmp_path / "model.zip", ENV, learning_rate=1e-4, train_freq=2)


def test_never_from_the_file(make_model: Any, tmp_path: Path) -> None:
    """Where to write, what to print and which random numbers to draw are not a stranger's business."""
    make_model(PathwiseAC, verbose=2, tensorboard_log=str(tmp_path / "logs"), seed=3).save(tmp_path / "model.zip")
    before = np.random.get_state()[1].copy()
    model = load_weights_only(PathwiseAC, tmp_path / "model.zip", ENV)
    assert (model.verbose, model.tensorboard_log, model.seed) == (0, None, None)
    assert np.array_equal(before, np.random.get_state()[1])


# --- Old


def written_by(version: str | None, fixed: bool, legacy_torch: bool = False, pickled_kwargs: bool = False) -> Change:
    """
    What SB3 wrote before 1.1, as its sources of the time say: both variables of the temperature, of which one was ``None``; no
    ``system_info.txt``, and before 0.9 no version, other names for variables and critics, and a device among the policy's
    arguments.
    """

    def change(members: dict[str, bytes]) -> None:
        del members["system_info.txt"]
        variables = th.load(io.BytesIO(members.pop("pytorch_variables.pth")))
        tensors = {"log_ent_coef": None, "ent_coef_tensor": variables["ent_coef_tensor"]} if fixed else variables
        stream = io.BytesIO()
        th.save(tensors, stream)
        members["pytorch_variables.pth" if version else "tensors.pth"] = stream.getvalue()
        members.pop("_stable_baselines3_version")
        if version:
            members["_stable_baselines3_version"] = version.encode()
        if not version:
            rename = {"qf0": "q1_net", "qf1": "q2_net"}
            with_tensors(
                "policy.pth",
                lambda weights: {re.sub("qf[01]", lambda m: rename[m[0]], name): w for name, w in weights.items()},
            )(members)
        if legacy_torch:
            for name in [name for name in members if name.endswith(".pth")]:
                stream = io.BytesIO()
                th.save(th.load(io.BytesIO(members[name])), stream, _use_new_zipfile_serialization=False)
                members[name] = stream.getvalue()
        if pickled_kwargs:
            readable = {"net_arch": [16], "use_sde": False, "device": "cpu"}
            with_json(policy_kwargs=serialized(readable) | readable)(members)

    return change


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("version, legacy_torch", [("1.0rc0", False), ("0.9.0", True), (None, False), (None, True)])
def test_what_sb3_wrote_before_1_1(
    make_model: Any, tmp_path: Path, version: str | None, legacy_torch: bool, fixed: bool
) -> None:
    sac = make_model(SAC, ent_coef=0.2 if fixed else "auto").learn(40)
    sac.save(tmp_path / "sac.zip")
    path = changed(tmp_path / "sac.zip", written_by(version, fixed, legacy_torch))
    for cls in (PathwiseAC, LikelihoodRatioAC):
        model = load_weights_only(cls, path, ENV)
        assert_same_weights(model, sac)
        assert model.ent_coef == sac.ent_coef and model.num_timesteps == 40
        if fixed:
            assert model.ent_coef_tensor.item() == pytest.approx(0.2)
        else:
            assert th.equal(model.log_ent_coef, sac.log_ent_coef)
        model.learn(30)


@pytest.mark.parametrize("version, writer", [("0.8.0", "SB3 0.8.0"), ("1.0", "SB3 1.0"), (None, "SB3 before 0.9")])
def test_what_cannot_be_read_is_said_to_be_old(make_model: Any, tmp_path: Path, version: str | None, writer: str) -> None:
    make_model(SAC).save(tmp_path / "sac.zip")
    path = changed(tmp_path / "sac.zip", written_by(version, fixed=False, pickled_kwargs=True))
    with pytest.raises(ValueError, match="policy_kwargs are pickled and refused") as error:
        load_weights_only(PathwiseAC, path, ENV)
    message = str(error.value)
    # What to give, and what to do if that is not enough
    assert "beside the pickle stands {'net_arch': [16], 'use_sde': False, 'device': 'cpu'}" in message
    assert f"{writer} wrote the file" in message and "model.policy.load_state_dict()" in message and "damaged" not in message
    model = load_weights_only(PathwiseAC, path, ENV, policy_kwargs={"net_arch": [16]})
    assert_same_weights(model, SAC.load(tmp_path / "sac.zip"))


@pytest.mark.parametrize("version", [b"2.9.2", b"<script>", b"\xff" * 1000])
def test_of_other_files_no_age_is_claimed(saved: Path, version: bytes) -> None:
    path = changed(saved, lambda members: members.update(_stable_baselines3_version=version), with_json(tau="x"))
    with pytest.raises(ValueError, match="tau cannot be") as error:
        load_weights_only(PathwiseAC, path, ENV)
    assert "wrote the file" not in str(error.value)


# --- Malicious


class Payload:
    """Executes a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def changed(path: Path, *changes: Change, compression: int = zipfile.ZIP_STORED) -> Path:
    """
    A copy of a zip file whose members are changed.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for change in changes:
        change(members)
    copy = path.with_name("changed.zip")
    with zipfile.ZipFile(copy, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return copy


def with_json(**items: Any) -> Change:
    def change(members: dict[str, bytes]) -> None:
        members["data"] = json.dumps(json.loads(members["data"]) | items).encode()

    return change


def with_tensors(name: str, edit: Callable[[Any], Any]) -> Change:
    def change(members: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        th.save(edit(th.load(io.BytesIO(members[name]))), buffer)
        members[name] = buffer.getvalue()

    return change


def serialized(payload: Any) -> dict[str, str]:
    return {":type:": "<class 'float'>", ":serialized:": base64.b64encode(pickle.dumps(payload)).decode()}


@pytest.mark.parametrize("name", ["learning_rate", "tau", "policy_class", "unheard_of", "_last_obs", "observation_space"])
def test_pickle_in_the_json_is_not_executed(saved: Path, tmp_path: Path, name: str) -> None:
    witness = tmp_path / "executed"
    path = changed(saved, with_json(**{name: serialized(Payload(witness))}))
    load_weights_only(PathwiseAC, path, ENV)
    assert not witness.exists()
    # It is live
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError, AssertionError)):
        PathwiseAC.load(path)
        raise KeyError
    assert witness.exists()


def test_pickled_policy_kwargs_are_not_executed(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    path = changed(saved, with_json(policy_kwargs=serialized({"net_arch": Payload(witness)})))
    with pytest.raises(ValueError, match="policy_kwargs are pickled and refused"):
        load_weights_only(PathwiseAC, path, ENV)
    assert not witness.exists()


@pytest.mark.parametrize("name", ["policy.pth", "actor.optimizer.pth", "pytorch_variables.pth"])
@pytest.mark.parametrize("new_format", [True, False])
def test_pickle_among_the_tensors_is_not_executed(saved: Path, tmp_path: Path, name: str, new_format: bool) -> None:
    witness = tmp_path / "executed"
    buffer = io.BytesIO()
    th.save({"weight": Payload(witness)}, buffer, _use_new_zipfile_serialization=new_format)
    path = changed(saved, lambda members: members.update({name: buffer.getvalue()}))
    with pytest.raises(ValueError, match=f"{name} does not hold tensors only"):
        load_weights_only(PathwiseAC, path, ENV)
    assert not witness.exists()
    buffer.seek(0)
    th.load(buffer, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize("name", ["replay_buffer.pkl", "__init__.py", "../../.bashrc", "policy.pth/x"])
def test_other_files_are_refused_by_name(saved: Path, name: str) -> None:
    path = changed(saved, lambda members: members.update({name: b"x"}))
    with pytest.raises(ValueError, match=f"refused, since save\\(\\) does not write it: {name}"):
        load_weights_only(PathwiseAC, path, ENV)


def test_other_tensors_are_refused_by_name(saved: Path) -> None:
    path = changed(saved, lambda members: members.update({"spy.pth": members["pytorch_variables.pth"]}))
    with pytest.raises(ValueError, match=r"unexpected \['spy'\]"):
        load_weights_only(PathwiseAC, path, ENV)


# --- Bombs


def test_zip_bomb(saved: Path) -> None:
    path = changed(saved, lambda members: members.update({"policy.pth": bytes(2**25)}), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    with pytest.raises(ValueError, match=r"unpacks to .* bytes, max_bytes is 16777216"):
        load_weights_only(PathwiseAC, path, ENV, max_bytes=2**24)


def test_zip_bomb_that_lies(saved: Path) -> None:
    """The sizes in the directory are smaller than what comes out."""
    path = changed(saved, lambda members: members.update({"policy.pth": bytes(2**25)}), compression=zipfile.ZIP_DEFLATED)
    content = path.read_bytes().replace((2**25).to_bytes(4, "little"), (2**10).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a zip file, or a damaged one"):
        load_weights_only(PathwiseAC, path, ENV, max_bytes=2**24)


def test_many_files(saved: Path) -> None:
    path = changed(saved, lambda members: members.update({f"{i}.pth": b"" for i in range(100)}))
    with pytest.raises(ValueError, match="108 files, or some of them twice"):
        load_weights_only(PathwiseAC, path, ENV)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_twice(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(ValueError, match="some of them twice"):
        load_weights_only(PathwiseAC, saved, ENV)


def test_bomb_among_the_tensors(saved: Path) -> None:
    """Torch's files are zip files, too; it stores them, a bomb is compressed."""

    def compress(members: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(members["policy.pth"])) as source, zipfile.ZipFile(buffer, "w", 8) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
        members["policy.pth"] = buffer.getvalue()

    with pytest.raises(ValueError, match=r"policy.pth .*compressed"):
        load_weights_only(PathwiseAC, changed(saved, compress), ENV)


def test_tensor_larger_than_its_storage(saved: Path) -> None:
    """A number repeated by a stride of 0 is as large as one likes; a network to hold it would be, too."""
    repeat = with_tensors("policy.pth", lambda weights: {name: th.zeros(1).expand(2**20, 2**20) for name in weights})
    with pytest.raises(ValueError, match="larger than itself"):
        load_weights_only(PathwiseAC, changed(saved, repeat), ENV)


@pytest.mark.parametrize("net_arch", [[2**20, 2**20], [2**62], [10**30]])
def test_network_larger_than_its_weights(saved: Path, net_arch: list[int]) -> None:
    """No memory is spent before it is known that the weights suit."""
    path = changed(saved, with_json(policy_kwargs={"net_arch": net_arch}))
    with pytest.raises(ValueError, match=r"policy.pth|policy_kwargs"):
        load_weights_only(PathwiseAC, path, ENV)


@pytest.mark.parametrize("name, value", [("buffer_size", 10**15), ("policy_kwargs", {"n_critics": 10**5})])
def test_other_large_numbers(saved: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        load_weights_only(PathwiseAC, changed(saved, with_json(**{name: value})), ENV)


def test_nested_json(saved: Path) -> None:
    """Not too deep for a parser, but for whoever looks at it."""
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    for name, value in {"tau": nested, "policy_kwargs": serialized(0) | {"net_arch": nested}}.items():
        with pytest.raises(ValueError, match=r"nested too deeply|cannot be|pickled and refused"):
            load_weights_only(PathwiseAC, changed(saved, with_json(**{name: value})), ENV)


def test_deep_json(saved: Path) -> None:
    deep = b'{"tau": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    with pytest.raises(ValueError, match="data is not JSON"):
        load_weights_only(PathwiseAC, changed(saved, lambda members: members.update(data=deep)), ENV)


# --- Malformed


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.7, 0.99])
def test_truncated(saved: Path, keep: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="not a zip file, or a damaged one"):
        load_weights_only(PathwiseAC, saved, ENV)


def test_flipped_bits(saved: Path) -> None:
    """Wherever they are: either one clear error, or the model that was saved."""
    content = saved.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(len(content), size=40):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        saved.with_name("damaged.zip").write_bytes(damaged)
        try:
            load_weights_only(PathwiseAC, saved.with_name("damaged.zip"), ENV)
        except ValueError as error:
            assert "damaged.zip" in str(error)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_weights_only(PathwiseAC, tmp_path / "nothing.zip", ENV)


@pytest.mark.parametrize(
    "name, message",
    [
        ("data", "data, the JSON file of hyperparameters, is missing"),
        ("policy.pth", "policy.pth, the networks' weights by name, is missing"),
        ("critic.optimizer.pth", r"missing \['critic.optimizer'\]"),
        ("ent_coef_optimizer.pth", r"missing \['ent_coef_optimizer'\]"),
        ("pytorch_variables.pth", r"missing \['pytorch_variables'\]"),
    ],
)
def test_missing_member(saved: Path, name: str, message: str) -> None:
    path = changed(saved, lambda members: members.pop(name) and None)
    with pytest.raises(ValueError, match=message):
        load_weights_only(PathwiseAC, path, ENV)


def first_weight(edit: Callable[[th.Tensor], Any]) -> Callable[[Any], Any]:
    return lambda weights: weights | {"actor.mu.weight": edit(weights["actor.mu.weight"])}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            with_tensors("policy.pth", first_weight(lambda w: w[:, :-1].clone())),
            r"actor.mu.weight is \(2, 15\), .* need \(2, 16\)",
        ),
        (with_tensors("policy.pth", first_weight(lambda w: w * np.nan)), "policy.pth holds numbers that are not finite"),
        (with_tensors("policy.pth", first_weight(lambda w: 3.0)), "the networks' weights by name, is missing"),
        (with_tensors("policy.pth", lambda weights: dict(list(weights.items())[1:])), "policy.pth does not suit"),
        (with_tensors("policy.pth", lambda weights: weights | {"more": th.zeros(1)}), r"unexpected \['more'\]"),
        (with_tensors("policy.pth", lambda weights: [1, 2]), "the networks' weights by name, is missing"),
        (with_tensors("pytorch_variables.pth", lambda v: {"log_ent_coef": th.zeros(2)}), r"log_ent_coef is \(2,\)"),
        (with_tensors("pytorch_variables.pth", lambda v: {"actor": th.zeros(1)}), r"missing \['log_ent_coef'\]"),
        (with_tensors("pytorch_variables.pth", lambda v: None), "holds no tensors by name"),
        (with_tensors("actor.optimizer.pth", lambda o: {"state": {}}), "actor.optimizer.pth does not suit"),
        (with_tensors("actor.optimizer.pth", lambda o: o | {"param_groups": []}), "it is of other parameters"),
        (with_tensors("actor.optimizer.pth", lambda o: o | {"state": {0: {"exp_avg": th.zeros(3)}}}), "has the wrong shape"),
        (with_tensors("actor.optimizer.pth", lambda o: o | {"state": {99: {"exp_avg": th.zeros(3)}}}), "does not suit"),
        (with_tensors("actor.optimizer.pth", lambda o: o | {"state": {0: {"exp_avg": "x"}}}), "does not suit"),
        (with_json(tau="large"), "tau cannot be 'large'"),
        (with_json(tau=True), "tau cannot be 'True'"),
        (with_json(tau=float("nan")), "tau cannot be"),
        (with_json(buffer_size=1e6), "buffer_size cannot be"),
        (with_json(optimize_memory_usage=1), "optimize_memory_usage cannot be"),
        (with_json(ent_coef=["auto"]), "ent_coef cannot be"),
        (with_json(ent_coef="car"), "ent_coef|could not convert"),
        (with_json(n_action_samples=0), "n_action_samples must be"),
        (with_json(policy_kwargs=[]), "policy_kwargs cannot be"),
        (with_json(policy_kwargs={"net_arch": "wide"}), "policy_kwargs are refused"),
        (with_json(policy_kwargs={"distribution": "cauchy"}), "distribution must be one of"),
        (with_json(num_timesteps=-1), "num_timesteps is not a count"),
        (with_json(_n_updates="many"), "_n_updates is not a count"),
        (lambda members: members.update(data=b"{"), "data is not JSON"),
        (lambda members: members.update(data=b"\xff"), "data is not JSON"),
        (lambda members: members.update(data=b"[]"), "data is not a JSON object"),
    ],
)
def test_malformed(saved: Path, change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_weights_only(PathwiseAC, changed(saved, change), ENV)
    assert "changed.zip" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_another_environment(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"is \(16, 2\), these policy_kwargs and spaces need \(16, 3\)"):
        load_weights_only(PathwiseAC, saved, "Pendulum-v1")
    with pytest.raises(ValueError, match=r"is \(16, 2\), these policy_kwargs and spaces need \(16, 6\)"):
        load_weights_only(PathwiseAC, saved, DummyVecEnv([lambda: BitFlippingEnv(n_bits=2, continuous=True)]))


def test_optimizer_options(saved: Path) -> None:
    """Only plain ones that the optimizer has."""
    options = {"lr": 0.5, "betas": (0.8, 0.9), "eps": "tiny", "foreach": True, "secret": 1}
    edit = with_tensors(
        "actor.optimizer.pth", lambda o: {"state": o["state"], "param_groups": [o["param_groups"][0] | options]}
    )
    (group,) = load_weights_only(PathwiseAC, changed(saved, edit), ENV).actor.optimizer.param_groups
    assert group["lr"] == 0.5 and tuple(group["betas"]) == (0.8, 0.9) and group["eps"] == 1e-8 and "secret" not in group


def test_tensor_beyond_its_storage(saved: Path) -> None:
    """A file that says its tensors have more numbers than it holds must not make torch read past its end."""

    def grow(members: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(members["policy.pth"])) as source, zipfile.ZipFile(buffer, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                # The first tensor's storage, cut
                target.writestr(name, content[:4] if name.endswith("data/0") else content)
        members["policy.pth"] = buffer.getvalue()

    with pytest.raises(ValueError, match=r"policy.pth"):
        load_weights_only(PathwiseAC, changed(saved, grow), ENV)
