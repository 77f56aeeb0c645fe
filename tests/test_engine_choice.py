"""
Who runs a model: what the fused engine says against it, and that the updates are then those of the plain one, to the last bit;
that the choice is made again when the model changes; and that nothing of it is in the model.

How equal the engines are is in ``test_engines.py``, what users do to their models between updates, against SB3's SAC, in
``test_interventions.py``; engines and precisions that cannot be had are in ``test_bad_input.py``.
"""

import copy
import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import Actor
from test_engines import assert_runs, renew, same_bits, state, train
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC
from sb3_pathwise.critics import CRITICS
from sb3_pathwise.engines import choose_engine
from sb3_pathwise.engines.eager import EagerEngine
from sb3_pathwise.engines.fused import FusedEngine
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import pathwise

MakeModel = Callable[..., Any]
Change = Callable[[Any, pytest.MonkeyPatch], Any]


class CurvatureAC(ActorCritic):
    """A route that differentiates a gradient with respect to the distribution's parameters."""

    @staticmethod
    def route(dist: Any, objective: Any) -> th.Tensor:
        values = objective(dist.rsample((2,))).mean(0)
        (grad,) = th.autograd.grad(values.sum(), dist.base_dist.loc, create_graph=True)
        return values - 0.1 * grad.square().sum(dim=-1)


@pytest.fixture
def make_filled(make_model: MakeModel) -> MakeModel:
    """A factory of models that have replay and no update yet."""

    def make(cls: type[SAC] = PathwiseAC, **kwargs: Any) -> Any:
        policy_kwargs = {"net_arch": {"pi": [16, 16], "qf": [16, 16, 16]}} | kwargs.pop("policy_kwargs", {})
        model = make_model(cls, learning_starts=40, policy_kwargs=policy_kwargs, **kwargs)
        return model.learn(40, log_interval=1000)

    return make


def halved(function: Any) -> Any:
    """The function, its (first) result halved; it passes for what it wraps."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return (0.5 * result[0], *result[1:]) if isinstance(result, tuple) else 0.5 * result

    return wrapper


class Scale(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return 0.5 * x.flatten(1)


class RegularisedAC(PathwiseAC):
    def actor_surrogate(self, dist: Any, objective: Any) -> th.Tensor:
        return super().actor_surrogate(dist, objective) - self.actor.mu.weight.square().sum()


class Bounded(ContinuousCritic):
    def forward(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        return tuple(q_values.tanh() for q_values in super().forward(obs, actions))


class Wide(nn.Sequential):
    pass


class MyParameter(nn.Parameter):
    pass


def halve_linear(module: nn.Module, args: Any, output: Any) -> Any:
    return 0.5 * output if isinstance(module, nn.Linear) else output


def halve_gradients(optimizer: th.optim.Optimizer) -> None:
    for param in optimizer.param_groups[0]["params"]:
        param.grad.mul_(0.5)


def drop_bias(model: Any) -> None:
    for critic in (model.critic, model.critic_target):
        critic.qf0[0].bias = None
    renew(model.critic)


def tie_layers(model: Any) -> None:
    for critic in (model.critic, model.critic_target):
        critic.qf0[4].weight = critic.qf0[2].weight
    renew(model.critic)


def two_groups(actor: Any) -> None:
    renew(actor)
    heads = {"params": actor.optimizer.param_groups[0]["params"][-2:], "weight_decay": 0.1}
    del actor.optimizer.param_groups[0]["params"][-2:]
    actor.optimizer.add_param_group(heads)


def accumulate(network: Any, patch: pytest.MonkeyPatch) -> None:
    network.zero_grad()
    patch.setattr(network.optimizer, "zero_grad", lambda: None)


def wrap_route(model: Any) -> None:
    @functools.wraps(pathwise)
    def route(dist: Any, objective: Any, n_samples: int = 1) -> th.Tensor:
        return pathwise(dist, objective, n_samples) - model.actor.mu.weight.square().sum()

    model.__class__ = type("MyAC", (PathwiseAC,), {"route": route})


def patch_method(owner: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(owner, name, halved(getattr(owner, name)))


# What is done to a model that fused has run, and what fused says of it
CHANGES: dict[str, tuple[str, Callable[[Any, pytest.MonkeyPatch], Any]]] = {
    "hook": ("0 has hooks", lambda m, p: m.actor.latent_pi[0].register_forward_hook(lambda *args: 0.5 * args[2])),
    "hook of a parameter": ("a parameter of mu has hooks", lambda m, p: m.actor.mu.weight.register_hook(lambda g: 0.5 * g)),
    "type of a layer": ("contains ELU", lambda m, p: m.actor.latent_pi.__setitem__(1, nn.ELU())),
    "method": ("a method of", lambda m, p: patch_method(m.critic, "forward", p)),
    "method of SB3's actor": ("Actor.action_log_prob is", lambda m, p: patch_method(Actor, "action_log_prob", p)),
    "method of SB3's critic": ("Critic.forward is", lambda m, p: patch_method(ContinuousCritic, "forward", p)),
    "method of the rule": ("a method of TwinCritic is", lambda m, p: patch_method(m.critic_rule, "loss", p)),
    "surrogate": ("actor_surrogate is", lambda m, p: setattr(m, "__class__", RegularisedAC)),
    "surrogate of the class": ("actor_surrogate is", lambda m, p: patch_method(ActorCritic, "actor_surrogate", p)),
    "route of the class": ("route, pathwise, reaches parameters", lambda m, p: wrap_route(m)),
    "optimizer": ("weight_decay=0.1", lambda m, p: renew(m.actor, weight_decay=0.1)),
    "groups": ("several groups", lambda m, p: two_groups(m.actor)),
    "state": ("the state of its Adam", lambda m, p: [s.update(more=s["step"]) for s in m.actor.optimizer.state.values()]),
    "zero_grad": ("its optimizer has hooks", lambda m, p: accumulate(m.actor, p)),
    "layers that share": ("layers share them", lambda m, p: tie_layers(m)),
    "networks that share": (
        "share parameters, or their memory",
        lambda m, p: setattr(m.critic_target.qf0[2].weight, "data", m.critic.qf0[2].weight.data),
    ),
    "transposed in place": (
        "2 is not contiguous",
        lambda m, p: setattr(m.actor.latent_pi[2].weight, "data", m.actor.latent_pi[2].weight.data.t()),
    ),
    "frozen": ("mu is frozen", lambda m, p: m.actor.mu.requires_grad_(False)),
    "image": ("normalise images", lambda m, p: setattr(m.actor, "normalize_images", False)),
    "extractor": ("FlattenExtractor, Scale", lambda m, p: setattr(m.critic.features_extractor, "flatten", Scale())),
    "hook of all modules": ("hooks of modules", lambda m, p: p.setitem(torch_module._global_forward_hooks, 0, halve_linear)),
    "hook of all optimizers": (
        "hooks of optimizers",
        lambda m, p: p.setitem(torch_optimizer._global_optimizer_pre_hooks, 0, lambda *args: halve_gradients(args[0])),
    ),
    "normalised actor": (
        "a normalised actor",
        lambda m, p: [CRITICS["batch_renorm"]().prepare_actor(m.actor), renew(m.actor)],
    ),
    "class of critics": ("a critic is a Bounded", lambda m, p: setattr(m.critic, "__class__", Bounded)),
    "list of critics": (
        "are not the same networks",
        lambda m, p: m.critic.q_networks.__setitem__(0, copy.deepcopy(m.critic.qf1)),
    ),
    "fewer targets": ("same networks", lambda m, p: m.critic_target.q_networks.pop(0)),
    "head": ("its heads are not Linear", lambda m, p: [setattr(m.actor.mu, "bias", None), renew(m.actor)]),
    "layer without bias": ("a layer has no bias", lambda m, p: drop_bias(m)),
    "distribution": ("DiagGaussianDistribution", lambda m, p: setattr(m.actor, "action_dist", DiagGaussianDistribution(2))),
    "method of the distribution": (
        "a method of its distribution",
        lambda m, p: patch_method(m.actor.action_dist, "proba_distribution_net", p),
    ),
    "type of a parameter": (
        "mu is a MyParameter",
        lambda m, p: [setattr(m.actor.mu, "bias", MyParameter(th.ones(2))), renew(m.actor)],
    ),
    "hook of the temperature": ("log_ent_coef has hooks", lambda m, p: m.log_ent_coef.register_hook(lambda grad: -grad)),
    "temperature": ("of the temperature", lambda m, p: setattr(m, "ent_coef_optimizer", th.optim.SGD([m.log_ent_coef], 0.1))),
}
# Those that can have no effect on what is computed
HARMLESS = ("image", "method of the distribution")


@pytest.mark.parametrize("name", CHANGES)
def test_what_it_cannot_follow_is_as_in_eager(make_filled: MakeModel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    word, change = CHANGES[name]
    model = train(make_filled(), 5)
    assert_runs(model, FusedEngine)
    eager, unchanged = copy.deepcopy(model), copy.deepcopy(model)
    eager.engine = unchanged.engine = "eager"
    train(unchanged, 5)
    for one in (model, eager):
        change(one, monkeypatch)
    assert word in str(FusedEngine.reason_not(model))
    for one in (model, eager):
        train(one, 5)
    assert_runs(model, EagerEngine)
    assert same_bits(model, eager)
    assert name in HARMLESS or not same_bits(eager, unchanged)
    model.engine = "fused"
    with pytest.raises(ValueError, match=f"'fused' cannot run this model: fused: .*{word}.* Use engine='auto'"):
        train(model, 1)


# What models cannot even be trained with, or not those that the table above is for
@pytest.mark.parametrize(
    "word, critic, change",
    [
        ("the model is on meta", "twin", lambda m: setattr(m, "device", th.device("meta"))),
        ("parameters are of torch.bfloat16", "twin", lambda m: m.policy.bfloat16()),
        ("parameters are of torch.float32, torch.float64", "twin", lambda m: m.actor.double()),
        ("log_ent_coef is not SAC's", "twin", lambda m: setattr(m, "log_ent_coef", th.zeros((), requires_grad=True))),
        ("a critic is a Critic", "quantile", lambda m: setattr(m.policy, "critic_rule", CRITICS["twin"]())),
        ("Wide is not a Sequential", "quantile", lambda m: setattr(m.critic.qf0, "__class__", Wide)),
        ("there are more critics than targets", "twin", lambda m: m.critic_target.q_networks.pop()),
        ("there are more critics than targets", "quantile", lambda m: m.critic_target.q_networks.pop()),
        ("Wide is not a Sequential", "batch_renorm", lambda m: setattr(m.critic.qf0, "__class__", Wide)),
        ("contains LayerNorm", "batch_renorm", lambda m: m.critic.qf0.__setitem__(0, nn.LayerNorm(4))),
        ("is not affine", "batch_renorm", lambda m: setattr(m.critic.qf0[0], "affine", False)),
        ("a layer has no bias", "batch_renorm", lambda m: setattr(m.critic.qf0[1], "bias", None)),
        ("its last layer is not", "batch_renorm", lambda m: m.actor.latent_pi.append(nn.Linear(16, 16))),
    ],
)
def test_other_reasons(make_filled: MakeModel, word: str, critic: str, change: Callable[[Any], Any]) -> None:
    model = make_filled(policy_kwargs={"critic": critic})
    assert_runs(model, FusedEngine)
    change(model)
    assert word in str(FusedEngine.reason_not(model))
    assert_runs(model, EagerEngine)


def test_autocast_is_as_in_eager(make_filled: MakeModel) -> None:
    model = train(make_filled(), 5)
    eager = copy.deepcopy(model)
    eager.engine = "eager"
    with th.autocast("cpu", dtype=th.bfloat16):
        for one in (model, eager):
            train(one, 5)
        assert "autocast" in str(FusedEngine.reason_not(model))
        assert_runs(model, EagerEngine)
    assert same_bits(model, eager)
    assert_runs(model, FusedEngine)


@pytest.mark.parametrize(
    "word, cls, kwargs",
    [
        ("gSDE", PathwiseAC, {"use_sde": True}),
        ("DistributionActor", PathwiseAC, {"policy_kwargs": {"distribution": "beta"}}),
        ("DistributionActor", LikelihoodRatioAC, {"policy_kwargs": {"distribution": "gaussian_mixture"}}),
        ("Tanh", PathwiseAC, {"policy_kwargs": {"activation_fn": nn.Tanh}}),
        ("AdamW", PathwiseAC, {"policy_kwargs": {"optimizer_class": th.optim.AdamW}}),
        ("amsgrad=True", PathwiseAC, {"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}}),
        ("tensors", PathwiseAC, {"policy_kwargs": {"optimizer_kwargs": {"betas": (th.tensor(0.9), th.tensor(0.99))}}}),
        ("TinyExtractor", PathwiseAC, {"env": "PointImage-v0", "policy": "CnnPolicy"}),
        ("not BatchRenorm1d", PathwiseAC, {"policy_kwargs": {"critic": "batch_renorm", "batch_norm": False}}),
        ("second derivatives", CurvatureAC, {}),
    ],
)
def test_what_it_never_runs(make_model: MakeModel, caplog: Any, word: str, cls: type[SAC], kwargs: dict[str, Any]) -> None:
    with caplog.at_level(logging.INFO, logger="sb3_pathwise"):
        auto, eager = (make_model(cls, engine=name, **copy.deepcopy(kwargs)).learn(30) for name in ("auto", "eager"))
    assert any("not run by the fused engine" in text and word in text for text in caplog.messages)
    assert_runs(auto, EagerEngine)
    assert same_bits(auto, eager)
    with pytest.raises(ValueError, match=f"engine='fused' cannot run this model: fused: .*{word}"):
        make_model(cls, engine="fused", **copy.deepcopy(kwargs))


def test_chosen_once_and_again_when_the_model_changes(make_filled: MakeModel) -> None:
    model = train(make_filled(PathwiseAC), 2)
    engine = choose_engine(model)
    assert type(engine) is FusedEngine
    assert choose_engine(train(model, 2)) is engine
    handle = model.critic.qf0.register_forward_hook(lambda *args: None)
    assert_runs(model, EagerEngine)
    handle.remove()
    assert_runs(model, FusedEngine)
    model.engine = "eager"
    assert_runs(model, EagerEngine)


def test_nothing_of_it_is_in_the_model(make_filled: MakeModel, tmp_path: Any) -> None:
    model, sac = train(make_filled(PathwiseAC), 3), train(make_filled(SAC), 3)
    assert_runs(model, FusedEngine)
    ours, theirs = (len(pickle.dumps(one.policy)) for one in (model, sac))
    assert ours == pytest.approx(theirs, rel=0.01)
    for one, name in ((model, "ours"), (sac, "theirs")):
        one.save(tmp_path / name)
    # Less by the step counts, which lie side by side
    ours, theirs = ((tmp_path / f"{name}.zip").stat().st_size for name in ("ours", "theirs"))
    assert 0.9 * theirs < ours < 1.01 * theirs
    assert b"engines" not in pickle.dumps(model.policy) and b"engines" not in (tmp_path / "ours.zip").read_bytes()
    copied = copy.deepcopy(model)
    addresses = [{tensor.untyped_storage().data_ptr() for tensor in state(one).values()} for one in (model, copied)]
    assert not addresses[0] & addresses[1]
    before = {name: tensor.clone() for name, tensor in state(copied).items()}
    train(model, 2)
    assert all(th.equal(tensor, before[name]) for name, tensor in state(copied).items())
    assert same_bits(train(copied, 2), model)
