"""
Policies with another distribution than SAC's: every kind of network, deterministic prediction, and what a mixture is for.
"""

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, sac
from stable_baselines3.common.env_util import make_vec_env

import sb3_pathwise
from sb3_pathwise import LikelihoodRatioAC, MixedAC, PathwiseAC, policies
from sb3_pathwise.distributions import policy_distribution

MakeModel = Callable[..., Any]
N_OBS = 40

PAIRS = [
    (PathwiseAC, "beta"),
    (LikelihoodRatioAC, "beta"),
    (MixedAC, "beta"),
    (LikelihoodRatioAC, "gaussian_mixture"),
]
NETWORKS = [("PointVector-v0", "MlpPolicy"), ("PointImage-v0", "CnnPolicy"), ("PointImageDict-v0", "MultiInputPolicy")]


def get_obs(model: Any) -> Any:
    """Observations of ``N_OBS`` states, as an environment gives them."""
    envs = make_vec_env(lambda: model.get_env().envs[0].env.spec.make(), N_OBS, seed=0)
    obs = envs.reset()
    if isinstance(obs, dict):
        return {key: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for key, value in obs.items()}
    return obs.transpose(0, 3, 1, 2) if obs.ndim == 4 else obs


@pytest.mark.parametrize("cls, distribution", PAIRS)
@pytest.mark.parametrize("env, policy", NETWORKS)
def test_learns(make_model: MakeModel, cls: type[SAC], distribution: str, env: str, policy: str) -> None:
    model = make_model(cls, env, policy, policy_kwargs={"distribution": distribution, "n_components": 3})
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(60, log_interval=1)
    still = [name for name, tensor in model.policy.state_dict().items() if (tensor == before[name]).all()]
    assert not [name for name in still if not name.endswith("num_batches_tracked")]
    assert all(np.isfinite(value) for key, value in model.logger.name_to_value.items() if key.startswith("train/"))
    for deterministic in (False, True):
        action, _ = model.predict(model.get_env().reset(), deterministic=deterministic)
        assert action.shape == (1, 2) and (np.abs(action) < 1).all()


@pytest.mark.parametrize("cls, distribution", PAIRS)
def test_same_seed_same_bits(make_model: MakeModel, cls: type[SAC], distribution: str) -> None:
    models = [make_model(cls, seed=seed, policy_kwargs={"distribution": distribution}).learn(60) for seed in (1, 1, 2)]
    bits = [[param.detach().numpy().tobytes() for param in model.policy.parameters()] for model in models]
    assert bits[0] == bits[1] != bits[2]


@pytest.mark.parametrize("env, policy", NETWORKS)
def test_beta_predicts_its_mean(make_model: MakeModel, env: str, policy: str) -> None:
    model = make_model(PathwiseAC, env, policy, policy_kwargs={"distribution": "beta"}).learn(60)
    obs = get_obs(model)
    predicted, _ = model.predict(obs, deterministic=True)
    with th.no_grad():
        base = policy_distribution(model.actor, model.policy.obs_to_tensor(obs)[0]).base.base_dist
    alpha, beta = base.concentration1.numpy(), base.concentration0.numpy()
    assert (alpha > 1).all() and (beta > 1).all()
    np.testing.assert_allclose(predicted, 2 * alpha / (alpha + beta) - 1, atol=1e-5)
    assert predicted.std() > 0


@pytest.mark.parametrize("env, policy", NETWORKS)
def test_mixture_predicts_its_best_component(make_model: MakeModel, env: str, policy: str) -> None:
    policy_kwargs = {"distribution": "gaussian_mixture", "n_components": 5}
    model = make_model(LikelihoodRatioAC, env, policy, policy_kwargs=policy_kwargs).learn(30)
    obs = get_obs(model)
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        # Components apart, critics that care
        for param in [*model.actor.parameters(), *model.critic.parameters()]:
            param.add_(0.3 * th.randn(param.shape, generator=generator))
        predicted, _ = model.predict(obs, deterministic=True)
        obs_tensor, _ = model.policy.obs_to_tensor(obs)
        base = policy_distribution(model.actor, obs_tensor).base
        means = base.component_distribution.mean.tanh()
        q_values = [th.cat(model.critic(obs_tensor, means[:, i]), dim=1).min(dim=1).values for i in range(5)]
    best = th.stack(q_values, dim=1).argmax(dim=1)
    np.testing.assert_allclose(predicted, means[th.arange(N_OBS), best].numpy(), atol=1e-6)
    assert len(best.unique()) > 1
    assert (best != base.mixture_distribution.logits.argmax(dim=1)).any()


@pytest.mark.parametrize("distribution", ["beta", "gaussian_mixture"])
def test_actions_are_scaled_to_their_space(make_model: MakeModel, distribution: str) -> None:
    env = make_vec_env("PointVector-v0", 1)
    env.action_space = spaces.Box(np.array([-3.0, 1.0], np.float32), np.array([-1.0, 9.0], np.float32))
    model = make_model(LikelihoodRatioAC, env, policy_kwargs={"distribution": distribution})
    obs = np.random.default_rng(0).uniform(-1, 1, (500, 2)).astype(np.float32)
    actions, _ = model.predict(obs)
    assert (actions > env.action_space.low).all() and (actions < env.action_space.high).all()
    # Untrained policies fill the space
    assert (actions.std(axis=0) > 0.1 * (env.action_space.high - env.action_space.low)).all()


def test_policies_are_public() -> None:
    """Under SAC's names, from the package as SAC's from ``stable_baselines3.sac``."""
    for name in ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"):
        cls = getattr(policies, name)
        assert getattr(sb3_pathwise, name) is cls and name in sb3_pathwise.__all__ and name in policies.__all__
        assert issubclass(cls, getattr(sac, name)) and PathwiseAC.policy_aliases[name] is cls
    assert isinstance(PathwiseAC(sb3_pathwise.MlpPolicy, "PointVector-v0", buffer_size=10).policy, policies.MlpPolicy)


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("env, policy", NETWORKS)
def test_saved_policies(make_model: MakeModel, tmp_path: Path, env: str, policy: str, use_sde: bool) -> None:
    """As SB3's documentation saves and loads them: what is SAC's loads as SAC's, and SAC's as ours."""
    path = tmp_path / "policy.pkl"
    for saver, loader in ((PathwiseAC, sac), (SAC, policies), (PathwiseAC, policies)):
        model = make_model(saver, env, policy, use_sde=use_sde).learn(30)
        model.policy.save(path)
        loaded = getattr(loader, policy).load(path)
        obs = get_obs(model)
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("policy_kwargs", [{"distribution": "beta"}, {"critic": "quantile", "n_quantiles": 5}])
def test_saved_policies_of_our_own(make_model: MakeModel, tmp_path: Path, policy_kwargs: dict[str, Any]) -> None:
    model = make_model(PathwiseAC, policy_kwargs=policy_kwargs).learn(30)
    model.policy.save(tmp_path / "policy.pkl")
    loaded = policies.MlpPolicy.load(tmp_path / "policy.pkl")
    obs = get_obs(model)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_exports_are_of_sacs_size_and_kind(make_model: MakeModel, engine: str) -> None:
    """Whichever engine has trained: nothing of it is in a policy, so that it can be scripted, pickled and copied."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}, "batch_size": 256}
    model, reference = make_model(PathwiseAC, engine=engine, **kwargs), make_model(SAC, **kwargs)
    for trained in (model, reference):
        trained.learn(40)
    obs = th.as_tensor(get_obs(model))
    with th.no_grad():
        assert th.equal(th.jit.script(model.actor.latent_pi)(obs), model.actor.latent_pi(obs))
    for dumps in (pickle.dumps, cloudpickle.dumps, lambda policy: pickle.dumps(copy.deepcopy(policy))):
        assert len(dumps(model.policy)) == pytest.approx(len(dumps(reference.policy)), rel=0.01)
    for other in (pickle.loads(pickle.dumps(model.policy)), copy.deepcopy(model.policy)):
        assert np.array_equal(
            other.predict(obs.numpy(), deterministic=True)[0], model.predict(obs.numpy(), deterministic=True)[0]
        )


@pytest.mark.parametrize("distribution", ["beta", "gaussian_mixture"])
def test_predict_from_threads(make_model: MakeModel, distribution: str) -> None:
    """Two ask at a time, each for states of its own, and get what they would have got alone."""
    model = make_model(LikelihoodRatioAC, policy_kwargs={"distribution": distribution}).learn(30)
    asked = [np.random.default_rng(seed).uniform(-1, 1, (600, 1, 2)).astype(np.float32) for seed in range(2)]

    def answers(observations: np.ndarray) -> np.ndarray:
        return np.stack([model.predict(obs, deterministic=True)[0] for obs in observations])

    alone = [answers(observations) for observations in asked]
    interval = sys.getswitchinterval()
    # Threads take turns within a prediction
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(answers, asked))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() <= 1e-6


@pytest.mark.parametrize("n_components", [1, 2, 6])
def test_number_of_components(make_model: MakeModel, n_components: int) -> None:
    policy_kwargs = {"distribution": "gaussian_mixture", "n_components": n_components}
    model = make_model(LikelihoodRatioAC, policy_kwargs=policy_kwargs).learn(40)
    base = policy_distribution(model.actor, th.zeros(7, 2)).base
    assert base.component_distribution.mean.shape == (7, n_components, 2)
    assert base.mixture_distribution.probs.shape == (7, n_components)


def shares(model: Any) -> tuple[float, float]:
    """Parts of 2,000 sampled actions of the bandit within 0.25 of either goal."""
    actions, _ = model.predict(np.zeros((2_000, 1), np.float32))
    return float((np.abs(actions + 0.6) < 0.25).mean()), float((np.abs(actions - 0.6) < 0.25).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_mixture_holds_both_modes(make_model: MakeModel, seed: int) -> None:
    kwargs = {"learning_rate": 3e-3, "batch_size": 128, "learning_starts": 200, "buffer_size": 5000, "seed": seed}
    policy_kwargs = {"net_arch": [32]}
    mixture = make_model(
        LikelihoodRatioAC, "TwoGoals-v0", policy_kwargs=policy_kwargs | {"distribution": "gaussian_mixture"}, **kwargs
    )
    mixture.learn(3000)
    assert min(shares(mixture)) > 0.2 and sum(shares(mixture)) > 0.8
    action, _ = mixture.predict(np.zeros(1, np.float32), deterministic=True)
    assert abs(abs(action[0]) - 0.6) < 0.15


def test_one_gaussian_does_not(make_model: MakeModel) -> None:
    kwargs = {"learning_rate": 3e-3, "batch_size": 128, "learning_starts": 200, "buffer_size": 5000}
    for cls in (LikelihoodRatioAC, PathwiseAC):
        gaussian = make_model(cls, "TwoGoals-v0", policy_kwargs={"net_arch": [32]}, **kwargs).learn(2000)
        assert min(shares(gaussian)) < 0.05 or sum(shares(gaussian)) < 0.7


@pytest.mark.parametrize("critic", ["twin", "batch_renorm"])
@pytest.mark.parametrize("whose", ["stock", "class", "instance", "actor"])
def test_training_mode(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, critic: str, whose: str) -> None:
    """Every module is in the mode that SAC's policy puts it in, whoever has a say in it."""

    class Frozen(th.nn.Dropout):
        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

    model = make_model(PathwiseAC, policy_kwargs={"critic": critic})
    layers = model.critic.q_networks[0]
    layers.append(Frozen() if whose == "class" else th.nn.Sequential())
    layers.register_module("nothing", None)
    if whose == "instance":
        layers[0].train = lambda mode=True: layers[0]
    if whose == "actor":
        monkeypatch.setattr(type(model.actor), "set_training_mode", lambda self, mode: self.latent_pi.train(mode))
    for mode in (True, False):
        modes = []
        for policy in (sac.policies.SACPolicy, type(model.policy)):
            for i, module in enumerate(model.policy.modules()):
                module.training = i % 2 == 0
            policy.set_training_mode(model.policy, mode)
            modes.append({name: module.training for name, module in model.policy.named_modules()})
        assert modes[0] == modes[1]
        ours = {value for name, value in modes[1].items() if name.startswith(("actor", "critic."))}
        assert whose != "stock" or ours == {mode}
