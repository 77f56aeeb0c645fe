"""
The hyperparameter files: each entry builds its model, the files agree with each other, and with rl_zoo3 where they must.

How the command line finds them is in ``test_zoo.py``.
"""

import contextlib
import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import rl_zoo3
import yaml
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pathwise import zoo
from sb3_pathwise.zoo import registry

FOLDER = Path(__file__).parents[1] / "zoo_configs"
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))
}
TASKS = {
    *("Pendulum-v1", "MountainCarContinuous-v0", "BipedalWalker-v3", "LunarLanderContinuous-v3"),
    *("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "HumanoidStandup-v5", "Swimmer-v5"),
    *("Reacher-v5", "Pusher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
    "default",
}
# Where CrossQ's critics are wider than elsewhere
WIDE = {env_id: {"pi": [256, 256], "qf": [384, 384]} for env_id in ("Ant-v5", "Humanoid-v5")}
MUJOCO = sorted(env_id for env_id in TASKS if env_id.endswith("-v5"))
CRITICS = {algo: registry.CRITIC_OF.get(algo, "twin") for algo in registry.ALGORITHMS}
# Names of a route's own arguments, in which the files of a critic may differ
ROUTE_ARGUMENTS = {name for algorithm in registry.ALGORITHMS.values() for name in algorithm.route_arguments()}


def build(algo: str, env_id: str, log_folder: Path, **hyperparams: Any) -> OffPolicyAlgorithm:
    """:return: the model that ``sb3-pathwise train`` would train, without a replay buffer to speak of"""
    zoo.register()
    with contextlib.redirect_stdout(io.StringIO()):
        manager = registry.ExperimentManager(
            Namespace(), algo, env_id, str(log_folder), eval_freq=-1, hyperparams={"buffer_size": 100, **hyperparams}
        )
        experiment = manager.setup_experiment()
    assert experiment is not None
    return experiment[0]


def test_files_are_those_of_the_algorithms() -> None:
    assert CONFIGS.keys() == registry.ALGORITHMS.keys()


@pytest.mark.parametrize("algo", registry.ALGORITHMS)
def test_all_tasks_are_there(algo: str) -> None:
    assert CONFIGS[algo].keys() == TASKS


@pytest.mark.parametrize("env_id", sorted(TASKS))
@pytest.mark.parametrize("algo", registry.ALGORITHMS)
def test_entry_builds_its_model(algo: str, env_id: str, tmp_path: Path) -> None:
    entry = CONFIGS[algo][env_id]
    # An environment that has no entry of its own
    model = build(algo, "PointVector-v0" if env_id == "default" else env_id, tmp_path)
    assert type(model) is registry.ALGORITHMS[algo]
    assert model.policy.critic_name == CRITICS[algo]
    for name, value in entry.items():
        if name in ("learning_starts", "batch_size", "gamma", "tau", "gradient_steps", "use_sde", "ent_coef", "policy_delay"):
            assert getattr(model, name) == value
    if "learning_rate" in entry:
        initial = float(str(entry["learning_rate"]).removeprefix("lin_"))
        assert model.lr_schedule(1) == initial
        assert model.lr_schedule(0.5) == (initial / 2 if entry["learning_rate"] != initial else initial)
    policy_kwargs = eval(entry.get("policy_kwargs", "{}"))
    assert {name: model.policy_kwargs[name] for name in policy_kwargs} == policy_kwargs
    assert model.policy.net_arch == policy_kwargs.get("net_arch", [256, 256])

    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert loaded.policy.critic_name == CRITICS[algo]
    betas = policy_kwargs.get("optimizer_kwargs", {}).get("betas", (0.9, 0.999))
    for optimizer in (model.actor.optimizer, model.critic.optimizer, loaded.actor.optimizer, loaded.critic.optimizer):
        assert optimizer.param_groups[0]["betas"] == betas
    observation = model.observation_space.sample()
    assert (loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()


@pytest.mark.parametrize("algo", registry.ALGORITHMS)
def test_state_dependent_exploration_learns(algo: str, tmp_path: Path) -> None:
    """The one entry with settings that a route might not bear: gSDE with a narrow policy, large batches, many steps."""
    model = build(algo, "MountainCarContinuous-v0", tmp_path, batch_size=32, learning_starts=0)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(64)
    after = list(model.policy.parameters())
    assert model._n_updates == 64
    assert all(bool(parameter.isfinite().all()) for parameter in after)
    assert sum(not old.equal(new) for old, new in zip(before, after, strict=True)) > 10


def test_files_differ_in_the_route_only() -> None:
    for algo, config in CONFIGS.items():
        reference = CONFIGS[f"pathwise_{algo.rpartition('_')[2]}"]
        for env_id, entry in config.items():
            shared = {name: value for name, value in entry.items() if name not in ROUTE_ARGUMENTS}
            assert shared == reference[env_id], (algo, env_id)


def test_all_files_train_as_long() -> None:
    """Else ``compare`` would ask for ``--timesteps``."""
    for algo, config in CONFIGS.items():
        for env_id, entry in config.items():
            assert entry["n_timesteps"] == CONFIGS["pathwise_ac"][env_id]["n_timesteps"], (algo, env_id)


def test_crossq_on_mujoco() -> None:
    for env_id in MUJOCO:
        entry = CONFIGS["pathwise_crossq"][env_id]
        assert entry["learning_rate"] == 1e-3
        assert (entry["policy_delay"], entry["ent_coef"], entry["learning_starts"]) == (3, "auto_0.1", 5000)
        assert entry["batch_size"] == 128
        policy_kwargs = eval(entry["policy_kwargs"])
        assert policy_kwargs["net_arch"] == WIDE.get(env_id, [256, 256])
        assert policy_kwargs["optimizer_kwargs"] == {"betas": (0.5, 0.999)}


@pytest.mark.parametrize("algo", ["pathwise_crossq", "likelihood_ratio_crossq"])
@pytest.mark.parametrize("name", ["mujoco", "mujoco-256"])
def test_trained_is_what_the_zoo_has(name: str, algo: str) -> None:
    """The benchmark on MuJoCo, but for the precision of wide critics; with batches of 256, these are wider."""
    folder = FOLDER.parent / "examples" / "figures" / name
    trained = yaml.safe_load((folder / f"{algo}.yml").read_text())
    cells = json.loads((folder / "comparison.json").read_text())["cells"][algo]
    assert trained == {env_id: {"n_timesteps": 100_000, **cell["hyperparams"]} for env_id, cell in cells.items()}
    for env_id, entry in trained.items():
        ours = CONFIGS[algo][env_id] | {"n_timesteps": 100_000} | ({"precision": "bfloat16"} if env_id in WIDE else {})
        if name == "mujoco-256":
            del ours["batch_size"]
            ours["policy_kwargs"] = ours["policy_kwargs"].replace("384", "512")
        assert entry == ours


def test_trained_without_files_of_its_own_is_what_the_zoo_has() -> None:
    """The twin critic's runs of the benchmark, all in half the precision, and the study's."""
    found = []
    for name, params in (("mujoco", {}), ("mujoco-bfloat16", {}), ("study/returns", {"learning_starts": 5_000})):
        manifest = json.loads((FOLDER.parent / "examples" / "figures" / name / "comparison.json").read_text())
        for variant, cells in manifest["cells"].items():
            algo, _, setting = variant.partition(":")
            if name == "mujoco" and CRITICS[algo] != "twin":
                continue
            arguments = dict([setting.split("=")]) if setting else {}
            for env_id, cell in cells.items():
                ours = CONFIGS[algo][env_id] | params | {key: yaml.safe_load(value) for key, value in arguments.items()}
                assert {"n_timesteps": ours["n_timesteps"], **cell["hyperparams"]} == ours, (variant, env_id)
            found.append(variant)
    assert len(found) == 2 + 2 + 11


def test_eight_updates_at_a_time_are_the_only_difference() -> None:
    folder = FOLDER.parent / "examples" / "figures"
    trained, tried = (
        json.loads((folder / name / "comparison.json").read_text())["cells"] for name in ("mujoco", "mujoco-tried/eight-steps")
    )
    (cells,) = tried.values()
    for env_id, cell in cells.items():
        one_at_a_time = trained["pathwise_crossq"][env_id]
        expected = one_at_a_time["hyperparams"] | {"train_freq": 8, "gradient_steps": 8}
        assert cell == one_at_a_time | {"hyperparams": expected}


UPSTREAM: dict[str, dict[str, dict[str, Any]]] = {
    algo: yaml.safe_load((Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml").read_text())
    for algo in ("sac", "tqc", "crossq")
}
DEFAULTS = {
    "buffer_size": 1_000_000,
    "batch_size": 256,
    "ent_coef": "auto",
    "gamma": 0.99,
    "train_freq": 1,
    "gradient_steps": 1,
    "learning_starts": 100,
}


def with_upstream(algo: str, upstream: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """:return: entries of one of our files and of rl_zoo3's, v4 of a MuJoCo task being the model of v5; defaults filled in"""
    pairs = {env_id: env_id.replace("-v5", "-v4") for env_id in CONFIGS[algo]}
    return {
        env_id: (DEFAULTS | CONFIGS[algo][env_id], DEFAULTS | UPSTREAM[upstream][upstream_id])
        for env_id, upstream_id in pairs.items()
        if upstream_id in UPSTREAM[upstream]
    }


def test_values_are_those_of_rl_zoo3() -> None:
    """Whatever SAC and TQC agree on in rl_zoo3, the files with SAC's critic have too."""
    pairs = with_upstream("pathwise_ac", "sac")
    assert len(pairs) == 11
    for env_id, (entry, sac) in pairs.items():
        tqc = with_upstream("pathwise_ac", "tqc")[env_id][1]
        assert {name: value for name, value in sac.items() if tqc.get(name) == value} == entry, env_id


def test_values_are_those_of_tqc() -> None:
    pairs = with_upstream("pathwise_tqc", "tqc")
    assert len(pairs) == 11
    for env_id, (entry, tqc) in pairs.items():
        policy_kwargs = {"critic": "quantile", **eval(tqc.pop("policy_kwargs", "{}"))}
        if "top_quantiles_to_drop_per_net" in tqc:
            policy_kwargs["top_quantiles_to_drop_per_net"] = tqc.pop("top_quantiles_to_drop_per_net")
        assert eval(entry.pop("policy_kwargs")) == policy_kwargs, env_id
        assert entry == tqc, env_id
    assert eval(CONFIGS["pathwise_tqc"]["Hopper-v5"]["policy_kwargs"])["top_quantiles_to_drop_per_net"] == 5


def test_values_are_those_of_crossq() -> None:
    """But for the width, the length of training, and on MuJoCo the batches and the temperature at the start."""
    pairs = with_upstream("pathwise_crossq", "crossq")
    assert len(pairs) == 12
    # The class's defaults
    defaults = {"learning_rate": 1e-3, "policy_delay": 3}
    for env_id, (entry, upstream) in pairs.items():
        expected = defaults | upstream | {"n_timesteps": entry["n_timesteps"], "ent_coef": entry["ent_coef"]}
        expected |= {"batch_size": 128} if env_id in MUJOCO else {}
        ours, theirs = (eval(values.pop("policy_kwargs", "{}")) for values in (entry, expected))
        assert entry == expected, env_id
        assert ours.pop("critic") == "batch_renorm" and ours.pop("optimizer_kwargs") == {"betas": (0.5, 0.999)}
        narrow = [64, 64] if env_id == "MountainCarContinuous-v0" else [256, 256]
        assert ours.pop("net_arch") == WIDE.get(env_id, narrow)
        theirs.pop("net_arch", None)
        assert ours == theirs, env_id


def test_environments_are_registered() -> None:
    assert {env_id for env_id in TASKS if env_id != "default"} <= gym.registry.keys()
