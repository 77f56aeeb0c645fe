"""
Critics other than SAC's: PathwiseAC with TQC's is TQC, with CrossQ's is CrossQ, any route climbs any of them without bias, and
they travel as SAC's do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from gymnasium import make
from sb3_contrib import TQC, CrossQ
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pathwise import PathwiseAC, load_weights_only

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


CRITIC_KWARGS: dict[str, dict[str, Any]] = {
    "quantile": {"critic": "quantile", "n_quantiles": 5, "top_quantiles_to_drop_per_net": 1},
    "batch_renorm": {"critic": "batch_renorm", "batch_norm_momentum": 0.1},
}
THEIRS: dict[str, Callable[..., Any]] = {
    "tqc": lambda make_model, **kwargs: make_model(
        TQC, top_quantiles_to_drop_per_net=3, policy_kwargs={"n_quantiles": 7, "n_critics": 3}, **kwargs
    ),
    "crossq": lambda make_model, **kwargs: make_model(CrossQ, policy_kwargs={"net_arch": None}, **kwargs),
    "crossq_plain": lambda make_model, **kwargs: make_model(
        CrossQ, policy_kwargs={"batch_norm": False}, policy_delay=2, **kwargs
    ),
}


@pytest.fixture(params=CRITIC_KWARGS)
def critic_kwargs(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each of the critics but SAC's in turn, as ``policy_kwargs``."""
    return CRITIC_KWARGS[request.param]


@pytest.mark.parametrize("theirs", THEIRS)
def test_loads_contribs_models(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, theirs: str) -> None:
    saved = THEIRS[theirs](make_model).learn(60)
    saved.save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model", env=make("PointVector-v0"))
    assert_continues(model, saved)
    # Our file is one of ours
    model.save(tmp_path / "ours")
    assert_continues(PathwiseAC.load(tmp_path / "ours", env=make("PointVector-v0")), model, exact=False)


def assert_continues(model: Any, saved: Any, exact: bool = True) -> None:
    expected = saved.policy.state_dict()
    assert expected.keys() == model.policy.state_dict().keys()
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, expected[name]), name
    assert model._n_updates == saved._n_updates > 0
    assert model.learning_rate == saved.learning_rate
    assert model.policy_delay == getattr(saved, "policy_delay", 1)
    for ours, theirs in ((model.actor, saved.actor), (model.critic, saved.critic)):
        assert tuple(ours.optimizer.param_groups[0]["betas"]) == tuple(theirs.optimizer.param_groups[0]["betas"])
        assert len(ours.optimizer.state) == len(theirs.optimizer.state) > 0
    # Tuples are lists in JSON
    assert list(*model.policy.optimizer_kwargs.values()) == list(*saved.policy.optimizer_kwargs.values())
    if exact:
        rule = model.critic_rule
        dropped = getattr(rule, "top_quantiles_to_drop_per_net", None)
        assert dropped == getattr(saved, "top_quantiles_to_drop_per_net", None)
    model.learn(40)
    moved = [name for name, tensor in model.policy.state_dict().items() if not th.equal(tensor, expected[name])]
    assert {name.partition(".")[0] for name in moved} == {name.partition(".")[0] for name in expected}


@pytest.mark.parametrize("theirs", THEIRS)
def test_goes_on_as_contribs(make_model: MakeModel, tmp_path: Path, theirs: str) -> None:
    """What is trained on from contrib's file is what contrib itself would have made of it."""
    original = THEIRS[theirs](make_model, gradient_steps=3).learn(60)
    original.save(tmp_path / "model")
    results = []
    for cls in (type(original), PathwiseAC):
        model = cls.load(tmp_path / "model", env=make("PointVector-v0"))
        if cls is PathwiseAC:
            model.engine = "eager"
        model.set_random_seed(5)
        results.append(model.learn(60).policy.state_dict())
    assert max((tensor - results[1][name]).abs().max().item() for name, tensor in results[0].items()) == 0


@pytest.mark.parametrize("theirs", THEIRS)
def test_loads_contribs_weights_only(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, theirs: str) -> None:
    saved = THEIRS[theirs](make_model).learn(60)
    saved.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="pickled"):
        model = load_weights_only(algorithm, tmp_path / "model.zip", "PointVector-v0", device="cpu")
    assert_continues(model, saved)


def test_loads_contribs_image_policies(make_model: MakeModel, tmp_path: Path) -> None:
    for policy, env in (("CnnPolicy", "PointImage-v0"), ("MultiInputPolicy", "PointDict-v0")):
        make_model(TQC, env=env, policy=policy).learn(40).save(tmp_path / "model")
        model = PathwiseAC.load(tmp_path / "model", env=make(env)).learn(30)
        assert model.policy_class.__name__ == policy and type(model.critic_rule).__name__ == "QuantileCritic"


def test_refuses_what_is_not_quite_contribs(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    make_model(TQC, policy=OwnTQCPolicy).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"OwnTQCPolicy is not a SACPolicy.*own class"):
        algorithm.load(tmp_path / "model")


class OwnTQCPolicy(TQCPolicy):
    """It might do anything."""
