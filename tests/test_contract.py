"""
What SB3 promises of an algorithm: constructor, spaces, environments, buffers, collection, callbacks and logs.

The arithmetic of an update is tested in ``test_training_step.py``, checkpoints in ``test_checkpoints.py``.
"""

import csv
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.learner import ActorCritic

MakeModel = Callable[..., Any]

SAC_KEYS = {"train/actor_loss", "train/critic_loss", "train/ent_coef", "train/learning_rate", "train/n_updates"}
OUR_KEYS = {"train/entropy", "train/actor_grad_norm", "train/critic_grad_norm"}


class RandomEnv(gym.Env):
    """Observations at random: for what only depends on the spaces."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Box | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), float(np.sum(action)), bool(self.np_random.random() < 0.1), False, {}


def test_signature(algorithm: type[SAC]) -> None:
    sac_parameters = list(inspect.signature(SAC.__init__).parameters.values())
    parameters = list(inspect.signature(algorithm.__init__).parameters.values())
    names = [parameter.name for parameter in sac_parameters]
    ours = [parameter.name for parameter in parameters if parameter.name not in names]
    after = names.index("target_entropy") + 1
    assert [parameter.name for parameter in parameters] == [*names[:after], *ours, *names[after:]]
    assert ours[:2] == ["n_action_samples", "baseline"]
    assert {"policy_delay", "max_grad_norm", "precision", "engine"} <= set(ours)
    defaults = {parameter.name: parameter.default for parameter in parameters}
    assert {name: defaults[name] for name in names} == {parameter.name: parameter.default for parameter in sac_parameters}
    assert all(defaults[name] is not inspect.Parameter.empty for name in ours)
    assert all(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)


@pytest.mark.parametrize(
    "cls, expected",
    [
        (PathwiseAC, {"n_action_samples": 1, "baseline": None}),
        (LikelihoodRatioAC, {"n_action_samples": 8, "baseline": "leave_one_out"}),
        (MeasureValuedAC, {"n_action_samples": 1, "baseline": None}),
        (MixedAC, {"n_action_samples": 8, "baseline": "leave_one_out"}),
    ],
)
def test_own_defaults(make_model: MakeModel, cls: type[SAC], expected: dict[str, Any]) -> None:
    expected = expected | {"policy_delay": 1, "max_grad_norm": None, "precision": "float32", "engine": "auto"}
    # None: the route's own
    for model in (make_model(cls), make_model(cls, n_action_samples=None, baseline=None)):
        for name, value in expected.items():
            assert getattr(model, name) == value


def test_every_argument_is_documented_and_typed(algorithm: type[SAC]) -> None:
    parameters = dict(inspect.signature(algorithm.__init__).parameters)
    del parameters["self"]
    assert re.findall(r":param (\w+):", ActorCritic.__doc__ or "") == list(parameters)
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters.values())
    # What is the algorithm's own it says itself, and where the rest is
    assert "ActorCritic``" in (algorithm.__doc__ or "") and algorithm.__doc__ != ActorCritic.__doc__


def test_arguments_arrive(algorithm: type[SAC]) -> None:
    expected = {"batch_size": 7, "tau": 0.3, "gamma": 0.7, "learning_starts": 3, "buffer_size": 50, "verbose": 0, "seed": 5}
    expected |= {"target_update_interval": 3, "policy_delay": 4, "max_grad_norm": 2.5, "n_action_samples": 6}
    expected |= {"stats_window_size": 11, "sde_sample_freq": 3, "use_sde_at_warmup": True, "gradient_steps": 2}
    model = algorithm("MlpPolicy", "Pendulum-v1", 0.125, policy_kwargs={"net_arch": [8]}, target_entropy=-2.0, **expected)
    for name, value in expected.items():
        actual = getattr(model, {"stats_window_size": "_stats_window_size"}.get(name, name))
        assert actual == value, name
    assert model.learning_rate == 0.125 and model.target_entropy == -2.0


def test_learns_with_no_other_argument(algorithm: type[SAC]) -> None:
    model = algorithm("MlpPolicy", "Pendulum-v1").learn(102)
    assert model._n_updates == 2
    assert isinstance(model.policy, SACPolicy)


@pytest.mark.parametrize("env", ["PointVector-v0", "env", "vec_env"])
def test_forms_of_environments_and_policies(algorithm: type[SAC], make_model: MakeModel, env: Any) -> None:
    made = {"env": lambda: gym.make("PointVector-v0"), "vec_env": lambda: make_vec_env("PointVector-v0", 3)}
    model = make_model(algorithm, made[env]() if env in made else env, policy=algorithm.policy_aliases["MlpPolicy"])
    model.learn(24)
    assert model.get_env().num_envs == model.n_envs == (3 if env == "vec_env" else 1)
    assert model._n_updates > 0


BOX = spaces.Box(-1.0, 1.0, (3,))


@pytest.mark.parametrize(
    "observation_space, action_space",
    [
        (BOX, spaces.Box(-1.0, 1.0, (2, 2))),
        (BOX, spaces.Box(np.array([-3.0, 0.5]), np.array([0.1, 0.75]), dtype=np.float64)),
        (BOX, spaces.Box(-0.5, 0.25, (1,), dtype=np.float32)),
        (spaces.Box(-9.0, 9.0, (2, 3), dtype=np.float64), None),
        (spaces.Discrete(5), None),
        (spaces.MultiDiscrete([3, 4]), None),
        (spaces.MultiBinary(4), None),
        (spaces.Dict(a=BOX, b=spaces.Discrete(3), c=spaces.Box(0, 255, (8, 8, 1), np.uint8)), None),
    ],
)
def test_spaces(
    algorithm: type[SAC], make_model: MakeModel, observation_space: spaces.Space, action_space: spaces.Box | None
) -> None:
    env = RandomEnv(observation_space, action_space)
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    model = make_model(algorithm, env, policy=policy).learn(24)
    assert model._n_updates == 4
    vec_env = model.get_env()
    for deterministic in (False, True):
        action, _ = model.predict(vec_env.reset(), deterministic=deterministic)
        assert action.shape == (1, *env.action_space.shape)
        assert env.action_space.contains(action[0].astype(env.action_space.dtype))


@pytest.mark.parametrize(
    "train_freq, gradient_steps, n_envs, expected",
    # 60 steps, of which the first 20 are before learning_starts; episodes take 10 steps or fewer
    [(1, 1, 1, 40), (4, 2, 1, 20), ((5, "step"), -1, 1, 40), (2, -1, 3, 42), (1, 1, 3, 14), (1, 0, 1, 0)],
)
def test_number_of_updates(
    algorithm: type[SAC], make_model: MakeModel, train_freq: Any, gradient_steps: int, n_envs: int, expected: int
) -> None:
    env = make_vec_env("PointVector-v0", n_envs)
    model = make_model(algorithm, env, train_freq=train_freq, gradient_steps=gradient_steps).learn(60)
    assert model._n_updates == expected


def test_train_freq_in_episodes(algorithm: type[SAC], make_model: MakeModel) -> None:
    env = make_vec_env("PointVector-v0", 1)
    model = make_model(algorithm, env, train_freq=(2, "episode"), gradient_steps=-1, learning_starts=0)
    episodes_at_update: list[int] = []
    train = model.train
    model.train = lambda gradient_steps, batch_size: (
        episodes_at_update.append(model._episode_num),
        train(gradient_steps, batch_size),
    )
    model.learn(40)
    assert len(episodes_at_update) >= 2
    assert [number % 2 for number in episodes_at_update] == [0] * len(episodes_at_update)
    assert model._n_updates == model.num_timesteps


def test_action_noise(algorithm: type[SAC], make_model: MakeModel) -> None:
    noise = VectorizedActionNoise(NormalActionNoise(5 * np.ones(2), np.zeros(2)), 2)
    env = make_vec_env("PointVector-v0", 2)
    model = make_model(algorithm, env, action_noise=noise, learning_starts=0).learn(20)
    # Five standard deviations of nothing: every action is pushed to its upper bound
    assert (model.replay_buffer.actions[: model.replay_buffer.pos] == 1).all()


def test_hindsight_replay(algorithm: type[SAC], make_model: MakeModel) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=4)
    model = make_model(
        algorithm,
        env,
        policy="MultiInputPolicy",
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
    )
    model.learn(60)
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    assert model._n_updates == 40
    assert len(model.ep_success_buffer) > 0


def test_optimize_memory_usage(algorithm: type[SAC], make_model: MakeModel) -> None:
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(algorithm, buffer_size=30, **kwargs).learn(60)
    assert model._n_updates == 40 and not hasattr(model.replay_buffer, "next_observations")


@pytest.mark.parametrize(
    "ent_coef, start, learned", [("auto", 1.0, True), ("auto_0.1", 0.1, True), (0.2, 0.2, False), (0, 0.0, False)]
)
def test_ent_coef(algorithm: type[SAC], make_model: MakeModel, ent_coef: Any, start: float, learned: bool) -> None:
    model = make_model(algorithm, ent_coef=ent_coef, learning_rate=1e-2)
    model.learn(21, log_interval=1000)
    assert model.logger.name_to_value["train/ent_coef"] == pytest.approx(start)
    assert ("train/ent_coef_loss" in model.logger.name_to_value) == learned
    model.learn(1, log_interval=1000, reset_num_timesteps=False)
    assert (model.logger.name_to_value["train/ent_coef"] == pytest.approx(start)) != learned
    assert model.ent_coef == ent_coef


@pytest.mark.parametrize("target_entropy, expected", [("auto", -2.0), (-0.5, -0.5), ("-3", -3.0)])
def test_target_entropy(algorithm: type[SAC], make_model: MakeModel, target_entropy: Any, expected: float) -> None:
    assert make_model(algorithm, target_entropy=target_entropy).target_entropy == expected


@pytest.mark.parametrize("use_sde", [False, True])
def test_logged_keys(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, use_sde: bool) -> None:
    logged = {}
    for cls in (SAC, algorithm):
        model = make_model(cls, make_vec_env("PointVector-v0", 1), use_sde=use_sde)
        model.set_logger(configure(str(tmp_path / cls.__name__), ["csv"]))
        model.learn(80, log_interval=1)
        with open(tmp_path / cls.__name__ / "progress.csv") as file:
            logged[cls] = list(csv.DictReader(file))[-1]
    assert logged[algorithm].keys() == logged[SAC].keys() | OUR_KEYS
    assert logged[SAC].keys() >= SAC_KEYS | {"train/ent_coef_loss", "rollout/ep_rew_mean", "rollout/ep_len_mean"}
    assert ("train/std" in logged[algorithm]) == use_sde
    assert all(np.isfinite(float(value)) for value in logged[algorithm].values())
    assert float(logged[algorithm]["train/actor_grad_norm"]) > 0 and float(logged[algorithm]["train/critic_grad_norm"]) > 0


def test_tensorboard(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = make_model(algorithm, tensorboard_log=str(tmp_path)).learn(25)
    model.learn(5, reset_num_timesteps=False)
    model.learn(5)
    model.learn(5, tb_log_name="mine")
    name = algorithm.__name__
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{name}_1", f"{name}_2", "mine_1"])


def test_progress_bar(algorithm: type[SAC], make_model: MakeModel) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    assert make_model(algorithm).learn(25, progress_bar=True).num_timesteps == 25


def test_callbacks(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path) -> None:
    def make_env() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("PointVector-v0"))]))

    steps: list[int] = []
    eval_callback = EvalCallback(
        make_env(),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=1e9),
        n_eval_episodes=2,
        eval_freq=15,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
    )
    checkpoint = CheckpointCallback(20, str(tmp_path / "checkpoints"), save_replay_buffer=True, save_vecnormalize=True)
    model = make_model(algorithm, make_env())
    model.learn(41, callback=[eval_callback, checkpoint])
    model.learn(3, callback=lambda locals_, globals_: steps.append(locals_["self"].num_timesteps) or True)
    assert steps == [1, 2, 3]
    assert list(np.load(tmp_path / "log" / "evaluations.npz")["timesteps"]) == [15, 30]
    assert algorithm.load(tmp_path / "best" / "best_model").num_timesteps in (15, 30)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"rl_model_20_steps.zip", "rl_model_replay_buffer_40_steps.pkl", "rl_model_vecnormalize_40_steps.pkl"} <= names
    assert load_from_pkl(tmp_path / "checkpoints" / "rl_model_replay_buffer_40_steps.pkl").pos >= 39
    assert algorithm.load(tmp_path / "checkpoints" / "rl_model_40_steps").num_timesteps == 40


def test_stopping(algorithm: type[SAC], make_model: MakeModel) -> None:
    model = make_model(algorithm, make_vec_env("PointVector-v0", 1))
    callback = StopTrainingOnMaxEpisodes(max_episodes=4)
    model.learn(500, callback=callback)
    assert callback.n_episodes == 4 and model.num_timesteps <= 40


def test_common_methods(algorithm: type[SAC], make_model: MakeModel) -> None:
    model = make_model(algorithm, make_vec_env("PointVector-v0", 1), stats_window_size=3).learn(60)
    assert model.ep_info_buffer.maxlen == 3
    assert model.get_vec_normalize_env() is None
    other_env = make_vec_env("PointVector-v0", 1)
    model.set_env(other_env)
    assert model.get_env() is other_env
    model.set_random_seed(3)
    first = model.predict(np.zeros(2, np.float32))[0]
    model.set_random_seed(3)
    np.testing.assert_array_equal(model.predict(np.zeros(2, np.float32))[0], first)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 80


@pytest.mark.parametrize("variant", ["plain", "gsde", "two_envs"])
def test_same_seed_same_bits(algorithm: type[SAC], make_model: MakeModel, variant: str) -> None:
    kwargs: dict[str, Any] = {
        "plain": {},
        "gsde": {"use_sde": True},
        "two_envs": {"env": make_vec_env("PointVector-v0", 2), "gradient_steps": -1},
    }[variant]
    models = [make_model(algorithm, seed=seed, **kwargs).learn(60) for seed in (1, 1, 2)]
    bits = [[param.detach().numpy().tobytes() for param in model.policy.parameters()] for model in models]
    assert bits[0] == bits[1] != bits[2]
    np.testing.assert_array_equal(models[0].replay_buffer.actions, models[1].replay_buffer.actions)
    assert models[0].log_ent_coef.item() == models[1].log_ent_coef.item()
