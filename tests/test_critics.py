"""
Critics other than SAC's: PathwiseAC with TQC's is TQC, with CrossQ's is CrossQ, any route climbs any of them without bias, and
they travel as SAC's do.
"""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from conftest import TinyExtractor
from gymnasium import make
from sb3_contrib import TQC, CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from torch.distributions import Independent, Normal

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC, load_weights_only
from sb3_pathwise.critics import CRITICS, Critic
from sb3_pathwise.critics.categorical import CategoricalCritic
from sb3_pathwise.normalization import folded, statistics_of
from sb3_pathwise.routes import likelihood_ratio

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
    "categorical": {"critic": "categorical", "n_atoms": 11},
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


# -- Values --------------------------------------------------------------------------------------------------------------


def perturb(model: Any) -> None:
    """Weights, scales and running statistics as after some training."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for tensor in model.critic.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * th.rand(tensor.shape, generator=generator, dtype=tensor.dtype))


@pytest.mark.parametrize("critic", ["batch_renorm", "categorical"])
@pytest.mark.parametrize("net_arch", [[], [16], [12, 7]])
def test_folded_is_evaluation_mode(make_model: MakeModel, critic: str, net_arch: list[int]) -> None:
    model = make_model(PathwiseAC, policy_kwargs={"critic": critic, "net_arch": net_arch, "n_critics": 3})
    model.policy.double()
    perturb(model)
    obs, actions = th.rand(4, 2).double(), th.rand(5, 4, 2).double().requires_grad_()
    model.policy.set_training_mode(True)
    value = model.critic_rule.value(model.critic, obs)
    together = value(actions)
    one_by_one = th.cat([value(a[None]) for a in actions])
    th.testing.assert_close(together, one_by_one, rtol=1e-12, atol=1e-12)
    gradients = [th.autograd.grad(values.square().sum(), actions)[0] for values in (together, one_by_one)]
    th.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)
    assert all(folded(q_net) is not None for q_net in model.critic.q_networks)
    # By evaluation mode itself
    model.critic.set_training_mode(False)
    outputs = model.critic(obs, actions[2])
    if critic == "categorical":
        outputs = (outputs.softmax(dim=2) @ model.critic_rule.atoms(obs)).unsqueeze(2).unbind(1)
    th.testing.assert_close(together[2], th.cat(outputs, dim=1).min(dim=1).values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("critic", ["batch_renorm", "categorical"])
def test_what_cannot_be_folded_is_not(make_model: MakeModel, critic: str) -> None:
    model = make_model(PathwiseAC, policy_kwargs={"critic": critic})
    perturb(model)
    obs, actions = th.rand(4, 2), th.rand(5, 4, 2)
    value = model.critic_rule.value
    seen = []
    linear = next(layer for layer in model.critic.qf0 if isinstance(layer, th.nn.Linear))
    handle = linear.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    value(model.critic, obs)(actions)
    handle.remove()
    assert seen
    # Somebody puts a layer between normalisation and linear layer
    model.critic.qf0.insert(1, th.nn.Tanh())
    assert folded(model.critic.qf0) is None
    one_by_one = th.cat([value(model.critic, obs)(a[None]) for a in actions])
    th.testing.assert_close(value(model.critic, obs)(actions), one_by_one)


def test_values_of_a_batchs_statistics_would_bias_leave_one_out(make_model: MakeModel) -> None:
    """
    Normalised by their own statistics, values of a linear critic always have the same mean, and their expectation's gradient
    is 0. Leave-one-out, which takes each value for its own action's only, does not see that.
    """
    kwargs = {"critic": "batch_renorm", "n_critics": 1, "net_arch": {"pi": [8], "qf": []}, "batch_norm_momentum": 0.0}
    model = make_model(LikelihoodRatioAC, policy_kwargs=kwargs)
    norm, linear = model.critic.qf0
    with th.no_grad():
        linear.weight.copy_(th.tensor([[0.3, -0.2, 1.0, 0.0]]))
        norm.ra_var.fill_(4.0 - norm.eps)
    obs = th.zeros(1, 2)

    def batch_statistics(actions: th.Tensor) -> th.Tensor:
        with statistics_of(True, model.critic):
            return model.critic(obs.expand(len(actions), 2), actions[:, 0])[0]

    ours = model.critic_rule.value(model.critic, obs)
    actions = th.randn(4, 1, 2)
    others = th.cat([actions[:1], th.randn(3, 1, 2)])
    assert (batch_statistics(actions)[0] - batch_statistics(others)[0]).abs() > 0.01
    th.testing.assert_close(ours(actions)[0], ours(others)[0], rtol=0, atol=1e-6)

    z = {}
    for name, objective, truth in (("theirs", batch_statistics, 0.0), ("ours", ours, 0.5)):
        mean = th.zeros(1, 2, requires_grad=True)
        dist = Independent(Normal(mean, 0.5), 1)
        gradients = []
        for _ in range(1_000):
            (gradient,) = th.autograd.grad(likelihood_ratio(dist, objective, n_samples=8).sum(), mean)
            gradients.append(gradient[0, 0].item())
        samples = th.tensor(gradients).double()
        z[name] = ((samples.mean() - truth) / samples.std() * len(samples) ** 0.5).item()
    assert abs(z["ours"]) < 5
    assert z["theirs"] > 20


@pytest.mark.parametrize("critic", CRITIC_KWARGS)
def test_several_actions_see_what_one_sees(make_model: MakeModel, critic: str) -> None:
    """... also of images and dictionaries, whose features are extracted once."""
    for policy, env in (("MlpPolicy", "PointVector-v0"), ("CnnPolicy", "PointImage-v0"), ("MultiInputPolicy", "PointDict-v0")):
        model = make_model(PathwiseAC, env=env, policy=policy, policy_kwargs=CRITIC_KWARGS[critic]).learn(30)
        model.policy.set_training_mode(False)
        obs = model.replay_buffer.sample(4).observations
        actions = th.rand(3, 4, 2) * 2 - 1
        value = model.critic_rule.value(model.critic, obs)
        th.testing.assert_close(value(actions), th.cat([value(a[None]) for a in actions]), rtol=1e-4, atol=1e-5)


# -- XQC -----------------------------------------------------------------------------------------------------------------


class Reference:
    """
    XQC's critics as the paper has them, from its formulas: functions of dictionaries of weights, a kernel for the projection,
    Adam by hand.
    """

    def __init__(self, critic: th.nn.Module, n_atoms: int, v_min: float, v_max: float) -> None:
        self.weights = {name: param.detach().clone() for name, param in critic.named_parameters()}
        self.target = {name: weight.clone() for name, weight in self.weights.items()}
        self.moments = {name: (th.zeros_like(weight), th.zeros_like(weight)) for name, weight in self.weights.items()}
        self.z = v_min + (v_max - v_min) / (n_atoms - 1) * th.arange(n_atoms).double()
        self.n_steps = 0

    @staticmethod
    def normalise(x: th.Tensor, scale: th.Tensor, shift: th.Tensor) -> th.Tensor:
        return (x - x.mean(0)) / (((x - x.mean(0)) ** 2).mean(0) + 1e-3) ** 0.5 * scale + shift

    def logits(self, w: dict[str, th.Tensor], i: int, x: th.Tensor) -> th.Tensor:
        x = self.normalise(x, w[f"qf{i}.0.weight"], w[f"qf{i}.0.bias"])
        for layer in (1, 4):
            x = x @ w[f"qf{i}.{layer}.weight"].T
            x = self.normalise(x, w[f"qf{i}.{layer + 1}.weight"], w[f"qf{i}.{layer + 1}.bias"]).clamp(min=0)
        return x @ w[f"qf{i}.7.weight"].T + w[f"qf{i}.7.bias"]

    def update(self, batch: ReplayBufferSamples, next_actions: th.Tensor, next_log_prob: th.Tensor, lr: float) -> float:
        n, gamma, ent_coef, tau = len(batch.rewards), 0.99, 0.3, 0.005
        x = th.cat([th.cat([batch.observations, batch.actions], 1), th.cat([batch.next_observations, next_actions], 1)])
        p = th.stack([th.softmax(self.logits(self.target, i, x)[n:], 1) for i in range(2)])
        means = (p * self.z).sum(2)
        p = th.where((means[0] <= means[1])[:, None], p[0], p[1])
        tz = batch.rewards + gamma * (1 - batch.dones) * (self.z - ent_coef * next_log_prob[:, None])
        distance = (tz.clamp(self.z[0], self.z[-1])[:, :, None] - self.z).abs() / (self.z[1] - self.z[0])
        m = (p[:, :, None] * (1 - distance).clamp(min=0)).sum(1)

        weights = {name: weight.requires_grad_() for name, weight in self.weights.items()}
        loss = sum(-(m * th.log_softmax(self.logits(weights, i, x)[:n], 1)).sum(1).mean() for i in range(2))
        gradients = th.autograd.grad(loss, list(weights.values()))
        self.n_steps += 1
        for (name, weight), g in zip(weights.items(), gradients, strict=True):
            first, second = self.moments[name]
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            self.moments[name] = first, second
            step = lr * (first / (1 - 0.9**self.n_steps)) / ((second / (1 - 0.999**self.n_steps)) ** 0.5 + 1e-8)
            weight = weight.detach() - step
            self.weights[name] = weight / (weight**2).sum(1, keepdim=True) ** 0.5 if weight.ndim == 2 else weight
            self.target[name] = (1 - tau) * self.target[name] + tau * self.weights[name]
        return loss.item()


class DoubleExtractor(FlattenExtractor):
    """SB3 makes single precision of observations."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


def test_categorical_is_its_reference(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    policy_kwargs = {"critic": "categorical", "n_atoms": 11, "v_min": -3.0, "v_max": 2.0, "net_arch": [16, 12]}
    policy_kwargs["features_extractor_class"] = DoubleExtractor
    model = make_model(
        PathwiseAC, policy_kwargs=policy_kwargs, ent_coef=0.3, learning_rate=1e-2, policy_delay=100, engine="eager"
    )
    model.policy.double()
    model.ent_coef_tensor = model.ent_coef_tensor.double().fill_(0.3)
    model.learn(0)
    generator = th.Generator().manual_seed(2)
    columns = [th.randn(32, size, generator=generator).double() for size in (2, 2, 2, 1, 1)]
    # Some rewards lead beyond the support, some episodes end
    batch = ReplayBufferSamples(*columns[:3], (columns[3] > 1).double(), 2 * columns[4])
    monkeypatch.setattr(ReplayBuffer, "sample", lambda *args, **kwargs: batch)
    reference = Reference(model.critic, 11, -3.0, 2.0)
    for seed in range(20):
        th.manual_seed(seed)
        with th.no_grad():
            next_actions, next_log_prob = model.actor.action_log_prob(batch.next_observations)
        loss = reference.update(batch, next_actions, next_log_prob, lr=1e-2)
        th.manual_seed(seed)
        model.train(gradient_steps=1, batch_size=32)
        assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(loss, rel=1e-8)
    for networks, expected in ((model.critic, reference.weights), (model.critic_target, reference.target)):
        for name, param in networks.named_parameters():
            th.testing.assert_close(param.detach(), expected[name].detach(), rtol=1e-8, atol=1e-9, msg=name)
    rows = [param.norm(dim=1) for param in model.critic.parameters() if param.ndim == 2]
    th.testing.assert_close(th.cat(rows), th.ones(2 * (16 + 12 + 11)).double())


def test_projection_keeps_probability_and_mean() -> None:
    rule = CategoricalCritic(n_atoms=9, v_min=-1.0, v_max=3.0)
    probs = th.rand(6, 9).double().softmax(1)
    returns = th.linspace(-1, 3, 54).double().view(6, 9)
    projected = rule.project(returns, probs)
    th.testing.assert_close(projected.sum(1), th.ones(6).double())
    th.testing.assert_close((projected * rule.atoms(probs)).sum(1), (probs * returns).sum(1))
    # Atoms themselves stay, the ends included, and what lies beyond is put there
    th.testing.assert_close(rule.project(rule.atoms(probs).expand(6, 9), probs), probs)
    th.testing.assert_close(rule.project(th.full((6, 9), 1e6).double(), probs)[:, -1], probs.sum(1))


# -- Like SAC's ----------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "dict": lambda: {"env": "PointDict-v0", "policy": "MultiInputPolicy"},
    "image": lambda: {"env": "PointImage-v0", "policy": "CnnPolicy"},
    "shared": lambda: {
        "env": "PointImage-v0",
        "policy": "CnnPolicy",
        "policy_kwargs": {"share_features_extractor": True},
    },
    "her": lambda: {
        "env": BitFlippingEnv(continuous=True, n_bits=3),
        "policy": "MultiInputPolicy",
        "replay_buffer_class": HerReplayBuffer,
    },
    "n_steps": lambda: {"n_steps": 3, "policy_delay": 2},
    "several_envs": lambda: {"env": make_vec_env("PointVector-v0", 2), "gradient_steps": -1, "max_grad_norm": 0.5},
    "beta": lambda: {"policy_kwargs": {"distribution": "beta", "activation_fn": th.nn.Tanh}},
    "gsde": lambda: {"use_sde": True, "ent_coef": 0.1},
    "no_hidden_layers": lambda: {"policy_kwargs": {"net_arch": []}},
}


def trained(make_model: MakeModel, cls: type[SAC], critic_kwargs: dict[str, Any], setting: str) -> Any:
    kwargs = SETTINGS[setting]()
    kwargs["policy_kwargs"] = kwargs.get("policy_kwargs", {}) | critic_kwargs
    return make_model(cls, **kwargs).learn(60)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(make_model: MakeModel, tmp_path: Path, critic_kwargs: dict[str, Any], setting: str) -> None:
    """Everything learns, twice the same, and travels."""
    for cls in (PathwiseAC, LikelihoodRatioAC):
        model, again = (trained(make_model, cls, critic_kwargs, setting) for _ in range(2))
        parameters = model.policy.state_dict()
        assert all(th.equal(tensor, again.policy.state_dict()[name]) for name, tensor in parameters.items())
        kwargs = SETTINGS[setting]()
        kwargs["policy_kwargs"] = kwargs.get("policy_kwargs", {}) | critic_kwargs
        untrained = dict(make_model(cls, **kwargs).policy.named_parameters())
        still = [name for name, param in model.policy.named_parameters() if th.equal(param, untrained[name])]
        assert not still
        assert all(tensor.isfinite().all() for tensor in parameters.values())

        obs, env = model.env.observation_space.sample(), model.get_env()
        actions, _ = model.predict(obs, deterministic=True)
        model.save(tmp_path / "model")
        loaded = cls.load(tmp_path / "model", env=env)
        model.policy.save(tmp_path / "policy")
        policy = type(model.policy).load(tmp_path / "policy")
        # gSDE keeps a graph in SAC too
        copies = [] if model.use_sde else [copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy))]
        for other in (loaded, policy, *copies):
            assert (other.predict(obs, deterministic=True)[0] == actions).all()
        assert vars(policy.critic_rule) == vars(loaded.critic_rule) == vars(model.critic_rule)
        assert vars(model.critic_rule) != vars(type(model.critic_rule)())
        loaded.learn(30)
        assert loaded._n_updates > model._n_updates


def test_there_is_no_target_where_none_is_needed(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(PathwiseAC, policy_kwargs=CRITIC_KWARGS["batch_renorm"])
    assert not any("target" in name for name in model.policy.state_dict())
    model.save(tmp_path / "model")
    # SAC cannot learn with it, and says so
    with pytest.raises(ValueError, match="no target networks"):
        SAC.load(tmp_path / "model", env=make("PointVector-v0")).learn(40)


@pytest.mark.parametrize("critic", ["quantile", "categorical"])
def test_sac_does_not_learn_something_else(make_model: MakeModel, tmp_path: Path, critic: str) -> None:
    make_model(PathwiseAC, policy_kwargs=CRITIC_KWARGS[critic]).save(tmp_path / "model")
    with pytest.raises(TypeError, match="cat"):
        SAC.load(tmp_path / "model", env=make("PointVector-v0")).learn(40)


@pytest.mark.parametrize("actor_batch_norm", [True, False])
def test_modes(make_model: MakeModel, actor_batch_norm: bool) -> None:
    """Running statistics learn from replayed transitions only, once per update; nobody else's mode is touched."""
    kwargs = {"critic": "batch_renorm", "actor_batch_norm": actor_batch_norm, "features_extractor_class": TinyExtractor}
    model = make_model(LikelihoodRatioAC, policy_kwargs=kwargs, policy_delay=3).learn(0)
    model.learn(80)
    norms = {"critic": [], "actor": []}
    for part, network in (("critic", model.critic), ("actor", model.actor)):
        norms[part] = [module for module in network.modules() if isinstance(module, BatchRenorm1d)]
    assert {int(module.steps) for module in norms["critic"]} == {model._n_updates}
    assert {int(module.steps) for module in norms["actor"]} == ({model._n_updates // 3} if actor_batch_norm else set())
    before = copy.deepcopy(model.policy.state_dict())
    model.predict(model.observation_space.sample())
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    # SAC trains other layers in training mode
    seen = set()
    extractor = model.actor.features_extractor.net[1]
    extractor.register_forward_hook(lambda module, args, output: seen.add(module.training))
    model.train(gradient_steps=3, batch_size=8)
    assert seen == {True}


class MeanCritic(Critic):
    """
    The mean of SAC's critics, scaled.

    :param scale: Of the value
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def make(self, policy: Any, features_extractor: Any) -> Any:
        return SACPolicy.make_critic(policy, features_extractor)

    def loss(self, agent: Any, replay_data: Any, next_actions: Any, next_log_prob: Any, ent_coef: Any) -> Any:
        with th.no_grad():
            next_q_values = self.value(agent.critic_target, replay_data.next_observations)(next_actions[None])[0]
            next_values = (next_q_values - ent_coef * next_log_prob)[:, None]
            target = replay_data.rewards + (1 - replay_data.dones) * agent.gamma * next_values
        q_values = th.cat(agent.critic(replay_data.observations, replay_data.actions), dim=1)
        return (q_values - target).abs().mean(), target

    def value(self, critic: Any, obs: Any) -> Any:
        return lambda actions: self.scale * th.stack([th.cat(critic(obs, a), dim=1).mean(dim=1) for a in actions])


def test_own_critic(algorithm: type[SAC], make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CRITICS, "mean", MeanCritic)
    model = make_model(algorithm, policy_kwargs={"critic": "mean", "scale": 0.5}).learn(60)
    model.save(tmp_path / "model")
    loaded = PathwiseAC.load(tmp_path / "model", env=make("PointVector-v0")).learn(30)
    assert type(loaded.critic_rule) is MeanCritic and loaded.critic_rule.scale == 0.5
    with pytest.raises(ValueError, match=r"scale.*arguments of critic='mean'"):
        make_model(algorithm, policy_kwargs={"critic": "twin", "scale": 0.5})


# -- The critics' learning rate ------------------------------------------------------------------------------------------


def test_qf_learning_rate(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(PathwiseAC, learning_rate=1e-3, qf_learning_rate=lambda left: 0.1 * left).learn(50, log_interval=1)
    rates = [group["lr"] for part in (model.actor, model.critic) for group in part.optimizer.param_groups]
    logged = [model.logger.name_to_value[f"train/{name}"] for name in ("learning_rate", "qf_learning_rate")]
    assert rates == logged == [1e-3, pytest.approx(0.1 * (1 - 50 / 50), abs=0.003)]
    assert model.ent_coef_optimizer.param_groups[0]["lr"] == 1e-3

    model = make_model(PathwiseAC, learning_rate=1e-3, qf_learning_rate=0.0).learn(0)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(50)
    moved = {
        name.partition(".")[0] for name, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[name])
    }
    assert moved == {"actor"}
    model.save(tmp_path / "model")
    env = make("PointVector-v0")
    assert PathwiseAC.load(tmp_path / "model").qf_learning_rate == 0.0
    assert (
        PathwiseAC.load(tmp_path / "model", env=env, qf_learning_rate=0.02).learn(30).critic.optimizer.param_groups[0]["lr"]
        == 0.02
    )
    assert load_weights_only(PathwiseAC, tmp_path / "model.zip", env, train_freq=1).qf_learning_rate == 0.0

    model = make_model(PathwiseAC).learn(50, log_interval=1)
    assert "train/qf_learning_rate" not in model.logger.name_to_value


# -- Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy_kwargs, words",
    [
        ({"critic": "crossq"}, ["critic", "twin", "quantile", "batch_renorm", "categorical", "'crossq'"]),
        ({"critic": ["twin"]}, ["critic must be one of"]),
        ({"n_quantiles": 5}, ["n_quantiles", "critic='quantile'", "'twin'"]),
        ({"critic": "quantile", "renorm_warmup_steps": 5}, ["renorm_warmup_steps", "critic='batch_renorm'", "'quantile'"]),
        ({"critic": "quantile", "n_quantiles": 0}, ["n_quantiles", "at least 1"]),
        ({"critic": "quantile", "top_quantiles_to_drop_per_net": 25}, ["top_quantiles_to_drop_per_net=25", "n_quantiles=25"]),
        ({"critic": "quantile", "top_quantiles_to_drop_per_net": -1}, ["top_quantiles_to_drop_per_net", "at least 0"]),
        ({"critic": "categorical", "n_atoms": 1}, ["n_atoms", "at least 2"]),
        ({"critic": "categorical", "v_min": 5.0}, ["v_min < v_max"]),
        ({"critic": "categorical", "v_max": float("inf")}, ["v_min < v_max"]),
    ],
)
def test_bad_policy_kwargs(algorithm: type[SAC], make_model: MakeModel, policy_kwargs: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, policy_kwargs=policy_kwargs)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "critic, kwargs, words",
    [
        ("batch_renorm", {"batch_size": 1}, ["batch_size", "at least 2"]),
        ("categorical", {"batch_size": 1}, ["batch_size", "at least 2"]),
        ("batch_renorm", {"tau": 0.01}, ["tau=0.01", "no target networks", "Leave it out"]),
        ("batch_renorm", {"target_update_interval": 2}, ["target_update_interval=2", "no target networks"]),
        ("twin", {"qf_learning_rate": -1.0}, ["qf_learning_rate", "non-negative"]),
        ("twin", {"qf_learning_rate": "fast"}, ["qf_learning_rate", "non-negative"]),
        ("quantile", {"policy": SACPolicy}, ["SACPolicy", "no choice of critic", "'MlpPolicy'"]),
    ],
)
def test_bad_arguments(algorithm: type[SAC], make_model: MakeModel, critic: str, kwargs: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make_model(algorithm, policy_kwargs={"critic": critic}, **kwargs)
    assert all(word in str(error.value) for word in words), error.value


def test_a_batch_of_one_in_training(make_model: MakeModel, critic_kwargs: dict[str, Any]) -> None:
    model = make_model(PathwiseAC, policy_kwargs=critic_kwargs).learn(30)
    before = copy.deepcopy(model.policy.state_dict())
    if model.critic_rule.min_batch_size == 1:
        model.train(gradient_steps=1, batch_size=1)
        return
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        model.train(gradient_steps=1, batch_size=1)
    # Batches have been seen by nobody
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())


def test_critic_that_does_not_share(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Selfish(MeanCritic):
        def make(self, policy: Any, features_extractor: Any) -> Any:
            return super().make(policy, None)

    monkeypatch.setitem(CRITICS, "selfish", Selfish)
    kwargs = {"env": "PointImage-v0", "policy": "CnnPolicy"}
    make_model(PathwiseAC, policy_kwargs={"critic": "selfish"}, **kwargs)
    with pytest.raises(ValueError, match=r"share_features_extractor=True: critic='selfish'.*Leave"):
        make_model(PathwiseAC, policy_kwargs={"critic": "selfish", "share_features_extractor": True}, **kwargs)


def test_fixed_ent_coef_beside_scaled_rewards(make_model: MakeModel, critic_kwargs: dict[str, Any]) -> None:
    env = VecNormalize(make_vec_env("PointVector-v0"))
    with pytest.warns(UserWarning, match="ent_coef=0.1 is fixed"):
        make_model(PathwiseAC, env=env, ent_coef=0.1, policy_kwargs=critic_kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(PathwiseAC, env=env, policy_kwargs=critic_kwargs)
        make_model(
            PathwiseAC,
            env=VecNormalize(make_vec_env("PointVector-v0"), norm_reward=False),
            ent_coef=0.1,
            policy_kwargs=critic_kwargs,
        )
