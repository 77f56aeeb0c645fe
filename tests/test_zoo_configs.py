"""
The hyperparameter files: each entry builds its model, the files agree with each other, and with rl_zoo3 where they must.

How the command line finds them is in ``test_zoo.py``.
"""

import contextlib
import io
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
# Names of a route's own arguments, in which the files may differ
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
    for name, value in entry.items():
        if name in ("learning_starts", "batch_size", "gamma", "tau", "gradient_steps", "use_sde", "ent_coef"):
            assert getattr(model, name) == value
    if "learning_rate" in entry:
        initial = float(str(entry["learning_rate"]).removeprefix("lin_"))
        assert model.lr_schedule(1) == initial
        assert model.lr_schedule(0.5) == (initial / 2 if entry["learning_rate"] != initial else initial)
    if "policy_kwargs" in entry:
        assert model.policy.net_arch == eval(entry["policy_kwargs"])["net_arch"]


@pytest.mark.parametrize("algo", registry.ALGORITHMS)
def test_state_dependent_exploration_learns(algo: str, tmp_path: Path) -> None:
    """The one entry with settings that a route might not bear: gSDE with a narrow policy, large batches, many steps."""
    model = build(algo, "MountainCarContinuous-v0", tmp_path, batch_size=32)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(64)
    after = list(model.policy.parameters())
    assert model._n_updates == 64
    assert all(bool(parameter.isfinite().all()) for parameter in after)
    assert sum(not old.equal(new) for old, new in zip(before, after, strict=True)) > 10


def test_files_differ_in_the_route_only() -> None:
    reference = CONFIGS["pathwise_ac"]
    for algo, config in CONFIGS.items():
        for env_id, entry in config.items():
            shared = {name: value for name, value in entry.items() if name not in ROUTE_ARGUMENTS}
            assert shared == reference[env_id], (algo, env_id)


def test_values_are_those_of_rl_zoo3() -> None:
    """Whatever SAC and TQC agree on in rl_zoo3, these files have too; v4 of a MuJoCo task is the model of v5."""
    folder = Path(rl_zoo3.__file__).parent / "hyperparams"
    sac, tqc = (yaml.safe_load((folder / f"{algo}.yml").read_text()) for algo in ("sac", "tqc"))
    defaults = {
        "buffer_size": 1_000_000,
        "batch_size": 256,
        "ent_coef": "auto",
        "gamma": 0.99,
        "train_freq": 1,
        "gradient_steps": 1,
    }
    compared = 0
    for env_id, entry in CONFIGS["pathwise_ac"].items():
        upstream_id = env_id.replace("-v5", "-v4")
        if upstream_id not in sac:
            continue
        shared = {name: value for name, value in sac[upstream_id].items() if tqc[upstream_id].get(name) == value}
        assert {**defaults, **shared} == {**defaults, **entry}, env_id
        compared += 1
    assert compared == 11


def test_environments_are_registered() -> None:
    assert {env_id for env_id in TASKS if env_id != "default"} <= gym.registry.keys()
