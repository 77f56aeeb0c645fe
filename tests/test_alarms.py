"""
Alarms: what is not finite is caught where it arises, under its own name, before a weight or the replay buffer has seen it; and
the classic traps are warned about, once.
"""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC
from sb3_pathwise.guards import NonFiniteError, check_finite, traps, warn_of_traps

STEP = 37


class Faulty(gym.Wrapper):
    """
    Environment that is sound until a step.

    :param env: The environment
    :param what: "observation", "terminal observation", "first observation" or "reward"
    :param value: What it then is
    :param at: The step, counted over episodes; 0 is the first reset
    """

    def __init__(self, env: gym.Env, what: str, value: float = np.nan, at: int = STEP) -> None:
        super().__init__(env)
        self.what, self.value, self.at, self.steps = what, value, at, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        obs, info = self.env.reset(**kwargs)
        return self._spoilt(obs, "first observation"), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.steps == self.at and self.what == "reward":
            reward = self.value
        if self.steps == self.at and self.what == "terminal observation":
            truncated = True
        spoilt = self._spoilt(self._spoilt(obs, "observation"), "terminal observation")
        return spoilt, float(reward), terminated, truncated, info

    def _spoilt(self, obs: Any, what: str) -> Any:
        if what != self.what or self.steps != self.at:
            return obs
        if isinstance(obs, dict):
            return obs | {"position": self._spoilt(obs["position"], what)}
        return np.where(np.arange(obs.size) == 0, self.value, obs).astype(obs.dtype)


class FaultyNoise(ActionNoise):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.full(2, np.nan if self.calls == STEP else 0.1, dtype=np.float32)


def learn_until_alarm(model: Any, quantity: str, step: int = STEP, callback: Any = None) -> NonFiniteError:
    """
    Train until the alarm, and check that it comes in time, says the right thing, and that nothing was touched.
    """
    with pytest.raises(NonFiniteError, match=quantity) as caught:
        model.learn(150, callback=callback)
    error = caught.value
    assert error.quantity == quantity
    assert error.num_timesteps == model.num_timesteps == step
    assert f"at step {step}, after {error.n_updates} updates" in str(error)
    for name, state_dict in model.get_parameters().items():
        tensors = [state_dict] if "optimizer" not in name else state_dict["state"].values()
        assert all(bool(th.isfinite(value).all()) for tensor in tensors for value in tensor.values()), name
    assert bool(th.isfinite(model.log_ent_coef).all())
    buffer = model.replay_buffer
    for stored in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        assert all(np.isfinite(array).all() for array in (stored.values() if isinstance(stored, dict) else [stored]))
    return error


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["observation", "terminal observation", "first observation", "reward"])
@pytest.mark.parametrize("env_id, policy", [("PointVector-v0", "MlpPolicy"), ("PointDict-v0", "MultiInputPolicy")])
def test_environment(make_model: Any, what: str, value: float, env_id: str, policy: str) -> None:
    first = what == "first observation"
    model = make_model(PathwiseAC, Faulty(gym.make(env_id), what, value, at=0 if first else STEP), policy)
    error = learn_until_alarm(model, "reward" if what == "reward" else "observation", step=0 if first else STEP)
    assert "the environment returned it" in str(error)
    # What came before it was stored
    assert model.replay_buffer.size() == (0 if first else STEP - 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_environment_behind_vec_normalize(make_model: Any, what: str, value: float) -> None:
    """VecNormalize clips an infinity to 10, if it is not learning; the buffer stores the infinity."""
    venv = VecNormalize(DummyVecEnv([lambda: Faulty(gym.make("PointVector-v0"), what, value)]), training=False)
    learn_until_alarm(make_model(PathwiseAC, venv), what)


def test_names_the_environment(make_model: Any) -> None:
    sound, faulty = (lambda: gym.make("PointVector-v0")), (lambda: Faulty(gym.make("PointVector-v0"), "reward"))
    error = learn_until_alarm(make_model(PathwiseAC, DummyVecEnv([sound, sound, faulty])), "reward", step=3 * STEP)
    assert "environment 2" in str(error)


def test_action(make_model: Any) -> None:
    class Watching(gym.Wrapper):
        def step(self, action: np.ndarray) -> Any:
            assert np.isfinite(action).all()
            return super().step(action)

    model = make_model(PathwiseAC, Watching(gym.make("PointVector-v0")), action_noise=FaultyNoise())
    # Before the step is taken
    learn_until_alarm(model, "action", step=STEP - 1)


N_UPDATES = 5


class AfterUpdates(BaseCallback):
    """
    Do something to the model once, after N_UPDATES updates.

    :param act: What to do
    """

    def __init__(self, act: Callable[[Any], None]) -> None:
        super().__init__()
        self.act = act

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model._n_updates == N_UPDATES:
            with th.no_grad():
                self.act(self.model)


def output_layer(q_network: Any, weight: float) -> None:
    for q_net in q_network.q_networks:
        q_net[-1].weight.fill_(weight)


def spoil_surrogate(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any, th.Tensor], th.Tensor]) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        surrogate = model.actor_surrogate
        monkeypatch.setattr(model, "actor_surrogate", lambda dist, objective: spoil(dist, surrogate(dist, objective)))

    return act


def learn_until_update_alarm(model: Any, quantity: str, act: Callable[[Any], None]) -> str:
    """
    What is done after N_UPDATES updates is noticed in the next one.
    """
    error = learn_until_alarm(model, quantity, step=20 + N_UPDATES + 1, callback=AfterUpdates(act))
    assert error.n_updates == N_UPDATES
    return str(error)


# Two layers of ReLU, for which losses are differentiated by hand, and something else, for which autograd does it
NETWORKS = pytest.mark.parametrize("activation_fn", [th.nn.ReLU, th.nn.Tanh])


@NETWORKS
def test_target(make_model: Any, algorithm: Any, activation_fn: Any) -> None:
    model = make_model(algorithm, policy_kwargs={"activation_fn": activation_fn})
    message = learn_until_update_alarm(model, "target", lambda model: output_layer(model.critic_target, 3e38))
    assert "(seen in critic_loss)" in message


@NETWORKS
def test_loss(make_model: Any, algorithm: Any, activation_fn: Any) -> None:
    model = make_model(algorithm, policy_kwargs={"activation_fn": activation_fn})
    learn_until_update_alarm(model, "critic_loss", lambda model: output_layer(model.critic, 3e38))


def test_actor_loss(make_model: Any, algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    act = spoil_surrogate(monkeypatch, lambda dist, surrogate: surrogate * np.nan)
    learn_until_update_alarm(make_model(algorithm), "actor_loss", act)


def test_gradient_of_the_critic(make_model: Any, algorithm: Any) -> None:
    """Activations of 1e30 that the output layer ignores: the loss is finite, the norm of its gradient is not."""

    def act(model: Any) -> None:
        output_layer(model.critic, 0.0)
        model.critic.q_networks[0][0].bias.fill_(1e30)

    assert "of critic_loss" in learn_until_update_alarm(make_model(algorithm), "gradient", act)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_gradient_of_the_actor(
    make_model: Any, algorithm: Any, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float | None
) -> None:
    """The derivative of a square root at 0. Clipping would make an infinite gradient NaN."""
    act = spoil_surrogate(monkeypatch, lambda dist, surrogate: surrogate + (0 * dist.mean).sum(-1).sqrt())
    model = make_model(algorithm, max_grad_norm=max_grad_norm)
    assert "of actor_loss" in learn_until_update_alarm(model, "gradient", act)


def test_loss_of_the_temperature(make_model: Any) -> None:
    def act(model: Any) -> None:
        model.target_entropy = np.inf

    learn_until_update_alarm(make_model(PathwiseAC), "ent_coef_loss", act)


def test_large_numbers_are_finite(make_model: Any) -> None:
    """Their sum of squares is not."""
    model = make_model(PathwiseAC)
    check_finite(model, "observation", np.full((1, 3), 1e30, dtype=np.float32))
    check_finite(model, "observation", {"image": np.zeros((1, 8, 8), dtype=np.uint8), "x": np.full((1, 1), -1e300)})
    with pytest.raises(NonFiniteError, match="environment 0, key 'x'"):
        check_finite(model, "observation", {"image": np.zeros((1, 8), dtype=np.uint8), "x": np.full((1, 1), -np.inf)})


def test_finite_training_is_silent(make_model: Any, algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "UPDATES_BETWEEN_LOOKS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(algorithm).learn(60)


def traps_of(model: Any) -> list[str]:
    """
    Train a while, warnings being looked for at every update.
    """
    with pytest.warns(UserWarning) as caught:
        model.learn(60)
    return [str(warning.message) for warning in caught]


@pytest.fixture
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "UPDATES_BETWEEN_LOOKS", 10)


class Scaled(gym.Wrapper):
    def __init__(self, env: gym.Env, reward_scale: float = 1.0, obs_scale: float = 1.0) -> None:
        super().__init__(env)
        self.reward_scale, self.obs_scale = reward_scale, obs_scale
        shape = env.observation_space.shape
        self.observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        obs, info = self.env.reset(**kwargs)
        return obs * np.float32(self.obs_scale), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, *rest = self.env.step(action)
        return obs * np.float32(self.obs_scale), float(reward) * self.reward_scale, *rest


@pytest.mark.usefixtures("look_often")
@pytest.mark.parametrize("scale", [1e3, 1e-3])
@pytest.mark.parametrize("name", ["rewards", "observations"])
def test_scale(make_model: Any, name: str, scale: float) -> None:
    argument = {"rewards": "reward_scale", "observations": "obs_scale"}[name]

    def make_env() -> gym.Env:
        return Scaled(gym.make("PointVector-v0"), **{argument: scale})

    assert any(
        f"{name} are far from unit scale" in m for m in traps_of(make_model(PathwiseAC, make_env(), learning_rate=1e-6))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(PathwiseAC, VecNormalize(DummyVecEnv([make_env])), learning_rate=1e-6).learn(60)


@pytest.mark.usefixtures("look_often")
@pytest.mark.parametrize("ent_coef, word", [(1e-7, "collapsed"), (1e4, "grown")])
def test_entropy_coefficient(make_model: Any, ent_coef: float, word: str) -> None:
    (message,) = traps_of(make_model(PathwiseAC, ent_coef=f"auto_{ent_coef}", learning_rate=1e-6))
    assert "entropy coefficient" in message and word in message
    # The user has chosen it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(PathwiseAC, ent_coef=ent_coef, learning_rate=1e-6).learn(60)


@pytest.mark.usefixtures("look_often")
@pytest.mark.parametrize("distribution", ["squashed_gaussian", "gaussian_mixture"])
def test_clamped_log_std(make_model: Any, distribution: str) -> None:
    model = make_model(LikelihoodRatioAC, learning_rate=1e-6, policy_kwargs={"distribution": distribution})
    with th.no_grad():
        (model.actor.log_std if distribution == "squashed_gaussian" else model.actor.head).bias.fill_(50.0)
    assert any("log standard deviations lie at their clamp" in message for message in traps_of(model))


@pytest.mark.usefixtures("look_often")
@pytest.mark.parametrize("use_sde", [False, True])
def test_saturated_tanh(make_model: Any, use_sde: bool) -> None:
    model = make_model(PathwiseAC, learning_rate=1e-6, use_sde=use_sde, policy_kwargs={"clip_mean": 100.0} if use_sde else {})
    mean = model.actor.mu[0] if use_sde else model.actor.mu
    with th.no_grad():
        mean.bias.fill_(5.0)
    assert any("where tanh is flat" in message for message in traps_of(model))


@pytest.mark.usefixtures("look_often")
@pytest.mark.parametrize("distribution", ["squashed_gaussian", "beta"])
def test_dead_actor_mean(make_model: Any, distribution: str) -> None:
    """Hidden units that are all dead."""
    model = make_model(PathwiseAC, learning_rate=1e-6, policy_kwargs={"distribution": distribution})
    with th.no_grad():
        model.actor.latent_pi[0].bias.fill_(-100.0)
    messages = traps_of(model)
    assert any("gradient of the actor's mean is zero" in message for message in messages)


@pytest.mark.usefixtures("look_often")
def test_warns_once_also_after_loading(make_model: Any, tmp_path: Any) -> None:
    model = make_model(PathwiseAC, ent_coef="auto_1e-7", learning_rate=1e-6)
    traps_of(model)
    model.save(tmp_path / "model.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(60, reset_num_timesteps=False)
        PathwiseAC.load(tmp_path / "model.zip", env=gym.make("PointVector-v0")).learn(60, reset_num_timesteps=False)


@pytest.mark.parametrize("env_id, policy", [("PointVector-v0", "MlpPolicy"), ("PointImageDict-v0", "MultiInputPolicy")])
def test_looking_changes_nothing(make_model: Any, monkeypatch: pytest.MonkeyPatch, env_id: str, policy: str) -> None:
    """Neither random streams nor, with batch norm, statistics."""

    def weights(interval: int) -> list[th.Tensor]:
        monkeypatch.setattr(traps, "UPDATES_BETWEEN_LOOKS", interval)
        model = make_model(PathwiseAC, make_vec_env(env_id, n_envs=2, seed=0), policy)
        model.learn(80)
        return [*model.policy.state_dict().values()]

    assert all(th.equal(a, b) for a, b in zip(weights(1), weights(10**9), strict=True))


def test_looks_only_every_so_often(make_model: Any) -> None:
    model = make_model(PathwiseAC, ent_coef="auto_1e-7", learning_rate=1e-6)
    model.learn(60)
    model._n_updates = traps.UPDATES_BETWEEN_LOOKS + 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_traps(model, gradient_steps=5)
    with pytest.warns(UserWarning, match="collapsed"):
        warn_of_traps(model, gradient_steps=6)
