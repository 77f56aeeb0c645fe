"""
Alarms: what is not finite is caught where it arises, under its own name, before a weight or the replay buffer has seen it; and
the classic traps are warned about, once.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pathwise import ExactCheckpointCallback, LikelihoodRatioAC, PathwiseAC
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
    # There is none
    assert "checkpoint" not in str(error)
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
    assert "the environment returned it" in str(error) and "no replay buffer has seen it" in str(error)
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

    message = learn_until_update_alarm(make_model(algorithm), "gradient", act)
    assert "of critic_loss; its entries are finite, up to" in message and "overflow in their norm" in message
    # There is no custom network in which to look for it
    assert "square root" not in message


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_gradient_of_the_actor(
    make_model: Any, algorithm: Any, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float | None
) -> None:
    """The derivative of a square root at 0. Clipping would make an infinite gradient NaN."""
    act = spoil_surrogate(monkeypatch, lambda dist, surrogate: surrogate + (0 * dist.mean).sum(-1).sqrt())
    model = make_model(algorithm, max_grad_norm=max_grad_norm)
    message = learn_until_update_alarm(model, "gradient", act)
    assert (
        re.search(r"of actor_loss; in actor\.(latent_pi|mu)\S+, the loss being finite", message) and "square root" in message
    )


def test_loss_of_the_temperature(make_model: Any) -> None:
    def act(model: Any) -> None:
        model.target_entropy = np.inf

    learn_until_update_alarm(make_model(PathwiseAC), "ent_coef_loss", act)


# --- What is behind an alarm

ENGINES = pytest.mark.parametrize("engine", ["eager", "auto"])
ANY_OBS = pytest.mark.parametrize("env_id, policy", [("PointVector-v0", "MlpPolicy"), ("PointDict-v0", "MultiInputPolicy")])


def fill_with_demonstrations(model: Any, n_transitions: int = 30) -> None:
    """What a user does before ``learn``: transitions of something else, put in by hand."""
    env, buffer = model.get_env(), model.replay_buffer
    obs = env.reset()
    for _ in range(n_transitions):
        action = np.stack([env.action_space.sample()])
        new_obs, rewards, dones, infos = env.step(action)
        next_obs = new_obs if not dones[0] else infos[0]["terminal_observation"]
        buffer.add(obs, next_obs, model.policy.scale_action(action), rewards, dones, infos)
        obs = new_obs


def spoil(array: Any, rows: list[int]) -> None:
    for part in array.values() if isinstance(array, dict) else [array]:
        part[rows] = np.nan


@ENGINES
@ANY_OBS
@pytest.mark.parametrize(
    "field, quantity",
    [("observations", "observation"), ("next_observations", "observation"), ("actions", "action"), ("rewards", "reward")],
)
def test_demonstrations(make_model: Any, engine: str, env_id: str, policy: str, field: str, quantity: str) -> None:
    """The batch is looked at first: neither Q-values nor the learning rate are to blame."""
    kwargs = {"policy_kwargs": {"features_extractor_class": CombinedExtractor}} if policy == "MultiInputPolicy" else {}
    model = make_model(PathwiseAC, env_id, policy, engine=engine, learning_starts=0, batch_size=64, **kwargs)
    fill_with_demonstrations(model)
    spoil(getattr(model.replay_buffer, field), rows=[4, 17])
    before = [param.detach().clone() for param in model.policy.parameters()]
    with pytest.raises(NonFiniteError) as caught:
        model.learn(10)
    message = str(caught.value)
    assert caught.value.quantity == quantity and message.startswith(f"{quantity} is not finite at step 1, after 0 updates")
    # With the one transition of the training's own
    assert f"in the batch's {field}" in message
    assert "in 2 of 31 transitions of the replay buffer, the first at [4, 0]" in message
    assert "somebody else than this training has put it into the replay buffer" in message
    assert "No weight has seen it." in message
    assert not any(word in message for word in ("no replay buffer", "checkpoint", "Q-values", "learning rate"))
    assert all(th.equal(param, old) for param, old in zip(model.policy.parameters(), before, strict=True))


def test_demonstrations_in_a_checkpoint(make_model: Any, tmp_path: Any) -> None:
    """Which is not to be called good then."""
    model = make_model(PathwiseAC, learning_starts=25)
    fill_with_demonstrations(model)
    spoil(model.replay_buffer.rewards, rows=list(range(30)))
    with pytest.raises(NonFiniteError, match="in 30 of 56 transitions") as caught:
        model.learn(60, callback=ExactCheckpointCallback(tmp_path, every=10))
    assert list(tmp_path.iterdir()) and "checkpoint" not in str(caught.value)


@ENGINES
def test_what_the_replay_buffer_makes_of_it(make_model: Any, engine: str) -> None:
    """What it holds is finite."""
    venv = VecNormalize(DummyVecEnv([lambda: gym.make("PointVector-v0")]))
    model = make_model(PathwiseAC, venv, engine=engine).learn(30)
    venv.obs_rms.mean[:], venv.training = np.nan, False
    with pytest.raises(NonFiniteError, match=r"observation .*in the batch's observations; seen in") as caught:
        model.train(1, 16)
    assert "statistics of VecNormalize" in str(caught.value) and "somebody else" not in str(caught.value)


@ENGINES
@pytest.mark.parametrize("updating", [False, True])
def test_weights(make_model: Any, engine: str, updating: bool) -> None:
    """Set by somebody, in acting and in learning: no learning rate did it, and weights have seen it."""
    model = make_model(PathwiseAC, engine=engine, learning_starts=20 if updating else 0, train_freq=50).learn(10)
    with th.no_grad():
        model.actor.mu.weight[0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"parameter is not finite .*\(actor.mu.weight; seen in") as caught:
        model.train(1, 16) if updating else model.learn(10, reset_num_timesteps=False)
    assert "somebody wrote to it" in str(caught.value) and "No weight" not in str(caught.value)


@ENGINES
@pytest.mark.parametrize("name", ["observations", "rewards"])
def test_scale_is_behind_it(make_model: Any, engine: str, name: str) -> None:
    """SB3 #1130: all entries of the gradient are finite, and only their norm in float32 is not."""
    scales = {"observations": {"obs_scale": 1e12}, "rewards": {"reward_scale": 2e18, "obs_scale": 50.0}}[name]
    model = make_model(PathwiseAC, Scaled(gym.make("PointVector-v0"), **scales), engine=engine)
    with pytest.warns(UserWarning, match=f"after 0 updates: {name} are far from unit scale") as warned:
        error = learn_until_alarm(model, "gradient", step=21)
    assert len(warned) == 1
    message = str(error)
    assert f"Likely cause: {name} are far from unit scale (largest root mean square" in message
    assert "VecNormalize" in message and "overflow in their norm" in message and "square root" not in message


def test_one_outlier_is_behind_it(make_model: Any) -> None:
    """Which no look at some rows of the buffer need find: the batch had it."""
    model = make_model(PathwiseAC, learning_starts=0, batch_size=4000)
    fill_with_demonstrations(model, 399)
    model.replay_buffer.rewards[199] = 1e30
    with (
        warnings.catch_warnings(),
        pytest.raises(NonFiniteError, match=r"rewards are far from unit scale .*largest absolute value 1e\+30"),
    ):
        # When learning starts, it is not seen
        warnings.simplefilter("error")
        model.learn(1)


class ListBuffer(ReplayBuffer):
    """A user's own, which keeps a list where SB3 keeps arrays."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.observations, self.next_observations, self.actions, self.rewards
        self.transitions: list[list[Any]] = []

    def add(self, *transition: Any) -> None:
        self.transitions.append(list(transition[:5]))

    def size(self) -> int:
        return len(self.transitions)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        chosen = [self.transitions[i] for i in np.random.randint(len(self.transitions), size=batch_size)]
        obs, next_obs, actions, rewards, dones = map(np.concatenate, zip(*chosen, strict=True))
        columns = (obs, actions, next_obs, dones[:, None], rewards[:, None])
        return ReplayBufferSamples(*(self.to_torch(column.astype(np.float32)) for column in columns))


@pytest.mark.usefixtures("look_often")
def test_replay_buffer_of_the_users(make_model: Any) -> None:
    """What it keeps is its own business; what it hands out is looked at."""
    model = make_model(PathwiseAC, replay_buffer_class=ListBuffer).learn(50)
    assert model._n_updates == 30
    for transition in model.replay_buffer.transitions:
        transition[3] = transition[3] * np.nan
    with pytest.raises(NonFiniteError, match=r"reward .*\(in the batch's rewards; seen in \w+\).* a sample\(\) of your own"):
        model.train(1, 16)


def test_noise_is_not_blamed_on_the_scale(make_model: Any) -> None:
    env = Scaled(gym.make("PointVector-v0"), obs_scale=1e3)
    model = make_model(PathwiseAC, env, action_noise=FaultyNoise(), learning_rate=1e-6)
    with pytest.warns(UserWarning, match="observations are far"):
        error = learn_until_alarm(model, "action", step=STEP - 1)
    assert "the policy or the action noise" in str(error) and "unit scale" not in str(error)


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


@pytest.mark.parametrize("scale, is_large", [(1e3, True), (1e-3, False)])
def test_scale_when_learning_starts(make_model: Any, scale: float, is_large: bool) -> None:
    """What is small may still grow: it is looked at later."""
    model = make_model(PathwiseAC, Scaled(gym.make("PointVector-v0"), scale, scale), learning_rate=1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(60)
    messages = [str(warning.message) for warning in caught]
    assert [m.split(" are")[0] for m in messages] == is_large * [
        f"At step 21, after 0 updates: {name}" for name in ("rewards", "observations")
    ]


def test_scale_of_demonstrated_actions(make_model: Any) -> None:
    """Put in as the environment takes them, where SB3 keeps them scaled."""
    env = gym.make("Pendulum-v1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model(PathwiseAC, env, learning_starts=0)
        fill_with_demonstrations(model)
        model.learn(5)
    model = make_model(PathwiseAC, env, learning_starts=0)
    fill_with_demonstrations(model)
    model.replay_buffer.actions *= 2
    with pytest.warns(UserWarning, match=r"actions in the replay buffer go up to [12].*model.policy.scale_action"):
        model.learn(5)


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
