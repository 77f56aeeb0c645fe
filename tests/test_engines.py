"""
Engines are equal: what ``fused`` computes is what ``eager`` computes, whatever the route, the critic and the settings.

In double precision both end at the same parameters after 250 updates, also if somebody has edited the model in between; in
single precision an update differs by rounding, and bfloat16 is close. Which models ``fused`` leaves to ``eager`` is in
``test_engine_choice.py``, each kernel alone in ``test_kernels.py``, CUDA graphs are in ``test_cuda_graph.py``.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common import policies as sb3_policies
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac import policies as sac_policies
from torch import nn
from torch.optim import Adam

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.critics import CRITICS
from sb3_pathwise.engines import choose_engine
from sb3_pathwise.engines.eager import EagerEngine
from sb3_pathwise.engines.fused import KERNELS, FusedEngine
from sb3_pathwise.learner import ActorCritic

MakeModel = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")


def antithetic(dist: Any, objective: Any) -> th.Tensor:
    x = dist.rsample((2,))
    return 0.5 * (objective(x) + objective(2 * dist.mean - x)).mean(0)


class AntitheticAC(ActorCritic):
    """A route of one's own, which evaluates the objective twice."""

    route = antithetic


class GradientPenaltyAC(ActorCritic):
    """A route that differentiates the gradient of the objective."""

    @staticmethod
    def route(dist: Any, objective: Any) -> th.Tensor:
        x = dist.rsample((2,))
        values = objective(x)
        (grad,) = th.autograd.grad(values.square().sum(), x, create_graph=True)
        return values.mean(0) - 0.1 * grad.square().sum(dim=-1).mean(0)


def state(model: Any) -> dict[str, th.Tensor]:
    """All that an update changes; in place, so that copies are to be made."""
    tensors = dict(model.policy.state_dict())
    optimizers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
    if model.ent_coef_optimizer is not None:
        tensors["log_ent_coef"] = model.log_ent_coef.detach()
        optimizers["ent_coef"] = model.ent_coef_optimizer
    for name, optimizer in optimizers.items():
        for param, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{param}.{key}": value for key, value in values.items()}
    return tensors


def difference(model: Any, reference: Any) -> float:
    """The largest difference in any tensor, relative to the tensor's size; logged values count as well."""
    ours, theirs = state(model), state(reference)
    assert ours.keys() == theirs.keys()
    for tensors, one in ((ours, model), (theirs, reference)):
        logs = one.logger.name_to_value
        tensors |= {key: th.tensor(value) for key, value in logs.items() if key.startswith("train/")}
    assert ours.keys() == theirs.keys()
    sizes = {name: tensor.double().abs().max().clamp_min(1e-3) for name, tensor in theirs.items()}
    return max(((ours[name] - theirs[name]).double().abs().max() / size).item() for name, size in sizes.items())


def same_bits(model: Any, reference: Any) -> bool:
    ours, theirs = state(model), state(reference)
    return ours.keys() == theirs.keys() and all(th.equal(tensor, ours[name]) for name, tensor in theirs.items())


def train(model: Any, n_updates: int, seed: int = 0, batch_size: int = 32) -> Any:
    th.manual_seed(seed)
    np.random.seed(seed)
    model.train(n_updates, batch_size)
    return model


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "policy_delay": {"policy_delay": 3},
    "targets": {"target_update_interval": 2, "tau": 0.02},
    "max_grad_norm": {"max_grad_norm": 0.2},
    "shared": {"policy_kwargs": {"share_features_extractor": True}},
    "n_steps": {"n_steps": 3, "gamma": 0.9},
    "VecNormalize": {},
    "Dict": {
        "env": "PointDict-v0",
        "policy": "MultiInputPolicy",
        "policy_kwargs": {"features_extractor_class": CombinedExtractor},
    },
    "ent_coef": {"ent_coef": 0.2},
    "one": {"policy_kwargs": {"n_critics": 1, "net_arch": {"pi": [32], "qf": [48, 40]}}},
    "three": {"policy_kwargs": {"n_critics": 3}},
    "linear": {"policy_kwargs": {"net_arch": []}},
    "samples": {"n_action_samples": 5},
    "mean_action": {"baseline": "mean_action", "qf_learning_rate": 1e-3},
    "renorm": {"policy_kwargs": {"renorm_warmup_steps": 40}},
    "plain_actor": {"policy_kwargs": {"actor_batch_norm": False}},
    "none_dropped": {"policy_kwargs": {"top_quantiles_to_drop_per_net": 0, "n_quantiles": 7}},
}
# Each route with each critic, and with as many settings as there are
MATRIX: list[tuple[Any, str, str]] = [
    (PathwiseAC, "twin", "plain"),
    (PathwiseAC, "twin", "targets VecNormalize"),
    (PathwiseAC, "twin", "one samples max_grad_norm"),
    (PathwiseAC, "twin", "linear n_steps"),
    (LikelihoodRatioAC, "twin", "mean_action shared"),
    (LikelihoodRatioAC, "twin", "VecNormalize policy_delay"),
    (MeasureValuedAC, "twin", "Dict ent_coef"),
    (MeasureValuedAC, "twin", "policy_delay max_grad_norm"),
    (MixedAC, "twin", "three max_grad_norm"),
    (MixedAC, "twin", "Dict shared"),
    (AntitheticAC, "twin", "policy_delay n_steps"),
    (GradientPenaltyAC, "twin", "plain"),
    (PathwiseAC, "quantile", "none_dropped shared ent_coef"),
    (LikelihoodRatioAC, "quantile", "policy_delay max_grad_norm"),
    (MeasureValuedAC, "quantile", "n_steps targets"),
    (MixedAC, "quantile", "one VecNormalize"),
    (GradientPenaltyAC, "quantile", "Dict"),
    (PathwiseAC, "batch_renorm", "renorm"),
    (PathwiseAC, "batch_renorm", "shared samples policy_delay"),
    (LikelihoodRatioAC, "batch_renorm", "plain_actor policy_delay renorm"),
    (MeasureValuedAC, "batch_renorm", "n_steps max_grad_norm"),
    (MixedAC, "batch_renorm", "one VecNormalize"),
    (AntitheticAC, "batch_renorm", "Dict renorm"),
    (PathwiseAC, "categorical", "plain"),
]
CRITICS_OF_ROUTES = [*((cls, "twin") for cls in (PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC))]
CRITICS_OF_ROUTES += [(PathwiseAC, "quantile"), (PathwiseAC, "batch_renorm"), (LikelihoodRatioAC, "batch_renorm")]


@pytest.fixture
def make_filled(make_model: MakeModel) -> MakeModel:
    """A factory of models that have replay and no update yet, with names of settings."""

    def make(cls: type[SAC], settings: str = "plain", **kwargs: Any) -> Any:
        policy_kwargs = {"net_arch": [64, 64]}
        for setting in (*(SETTINGS[name] for name in settings.split()), kwargs):
            policy_kwargs |= setting.get("policy_kwargs", {})
            kwargs = setting | kwargs
        if policy_kwargs.get("critic") == "batch_renorm":
            # Where a ReLU lets all of a batch through, normalisation takes back the bias before it. The gradient of that bias
            # consists of rounding errors, which Adam is not to divide by each other
            policy_kwargs["optimizer_kwargs"] = {"eps": 1e-5}
        if "VecNormalize" in settings:
            kwargs["env"] = VecNormalize(make_vec_env("PointVector-v0", 1))
        model = make_model(cls, learning_starts=80, **kwargs | {"policy_kwargs": policy_kwargs})
        return model.learn(80, log_interval=1000)

    return make


@pytest.fixture
def to_double(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Has models, which have not learned yet, compute in double precision from observation to parameter."""

    def convert(model: Any) -> Any:
        monkeypatch.setattr(BaseBuffer, "to_torch", lambda *args, **kwargs: to_torch(*args, **kwargs).double())
        monkeypatch.setattr(sb3_policies, "preprocess_obs", preprocess)
        model.policy.double()
        if model.log_ent_coef is not None:
            model.log_ent_coef = model.log_ent_coef.detach().double().requires_grad_()
            model.ent_coef_optimizer = Adam([model.log_ent_coef])
        return model

    def preprocess(*args: Any, **kwargs: Any) -> Any:
        obs = preprocess_obs(*args, **kwargs)
        return {key: part.double() for key, part in obs.items()} if isinstance(obs, dict) else obs.double()

    to_torch = BaseBuffer.to_torch
    return convert


def assert_runs(model: Any, engine: type) -> None:
    assert type(choose_engine(model)) is engine, FusedEngine.reason_not(model)


@pytest.mark.parametrize("cls, critic, settings", MATRIX, ids=lambda part: getattr(part, "__name__", part))
def test_same_in_double_precision(
    make_filled: MakeModel, to_double: Callable[[Any], Any], cls: type[SAC], critic: str, settings: str
) -> None:
    pair = [make_filled(cls, settings, policy_kwargs={"critic": critic}, engine=name) for name in ("eager", "auto")]
    if CRITICS[critic] not in KERNELS:
        assert f"of the critic {CRITICS[critic].__name__}" in str(FusedEngine.reason_not(pair[1]))
        assert_runs(pair[1], EagerEngine)
        return
    eager, fused = map(to_double, pair)
    before = [param.clone() for param in eager.policy.parameters()]
    for model in (eager, fused):
        train(model, 250)
    assert_runs(fused, FusedEngine)
    assert all(not th.equal(old, new) for old, new in zip(before, eager.policy.parameters(), strict=True))
    assert difference(fused, eager) < 1e-9


@pytest.mark.parametrize("cls, critic", CRITICS_OF_ROUTES)
def test_one_update_in_single_precision(make_filled: MakeModel, cls: type[SAC], critic: str) -> None:
    """After 500 updates, since Adam's first steps have the size of the learning rate whatever the gradient's."""
    model = train(make_filled(cls, policy_kwargs={"critic": critic}), 500)
    assert_runs(model, FusedEngine)
    eager = copy.deepcopy(model)
    eager.engine = "eager"
    before = th.cat([param.detach().flatten() for param in eager.policy.parameters()])
    for one in (model, eager):
        train(one, 1, seed=1)
    ours, theirs = (th.cat([param.detach().flatten() for param in one.policy.parameters()]) for one in (model, eager))
    assert (theirs - before).abs().max() > 1e-4
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "cls, critic, settings",
    [*((cls, critic, "plain") for cls, critic in CRITICS_OF_ROUTES), (PathwiseAC, "batch_renorm", "renorm")],
)
def test_half_precision_is_close(make_filled: MakeModel, cls: type[SAC], critic: str, settings: str) -> None:
    model = train(make_filled(cls, settings, policy_kwargs={"critic": critic}), 100)
    low = copy.deepcopy(model)
    low.precision = "bfloat16"
    for one in (model, low):
        train(one, 1, seed=1, batch_size=64)
    assert_runs(low, FusedEngine)
    for name in ("actor", "critic"):
        grads = [th.cat([param.grad.flatten() for param in getattr(one, name).parameters()]) for one in (model, low)]
        # Three significant digits, and ReLUs that flip: at least 0.999 measured
        assert th.cosine_similarity(*grads, dim=0) > 0.99, name
        losses = [one.logger.name_to_value[f"train/{name}_loss"] for one in (model, low)]
        assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=0.01) and losses[0] != losses[1]
    train(low, 200)
    assert all(th.isfinite(tensor).all() for tensor in state(low).values())


@pytest.mark.parametrize("critic", ["twin", "quantile", "batch_renorm"])
def test_half_precision_of_double_precision(make_filled: MakeModel, critic: str) -> None:
    model = make_filled(PathwiseAC, policy_kwargs={"critic": critic}, precision="bfloat16")
    model.policy.double()
    train(model, 5)
    assert_runs(model, FusedEngine)
    assert all(param.dtype is th.float64 and th.isfinite(param).all() for param in model.policy.parameters())


def renew(network: Any, **kwargs: Any) -> None:
    network.optimizer = Adam(network.parameters(), lr=3e-4, **kwargs)


def load_old(model: Any) -> None:
    parameters = copy.deepcopy(model.get_parameters())
    train(model, 5)
    model.set_parameters(parameters)


def edit_states(edit: Callable[[dict[str, Any]], Any]) -> Callable[..., None]:
    def change(model: Any, patch: pytest.MonkeyPatch) -> None:
        for network in (model.actor, model.critic):
            for values in network.optimizer.state.values():
                edit(values)

    return change


def new_groups(model: Any, patch: pytest.MonkeyPatch) -> None:
    model.critic.optimizer.param_groups = [dict(group) for group in model.critic.optimizer.param_groups]
    model.learning_rate = 1e-2
    model._setup_lr_schedule()


def new_statistics(model: Any, patch: pytest.MonkeyPatch) -> None:
    for module in model.policy.modules():
        if hasattr(module, "ra_mean"):
            module.ra_mean, module.ra_var, module.steps = module.ra_mean + 1, 2 * module.ra_var, module.steps + 1_000_000


def new_head(model: Any, patch: pytest.MonkeyPatch) -> None:
    th.manual_seed(7)
    model.actor.mu = nn.Linear(64, 2).double()
    renew(model.actor)


EDITS: dict[str, tuple[str, Callable[[Any, pytest.MonkeyPatch], Any]]] = {
    "moments": ("twin", edit_states(lambda values: values["exp_avg"].zero_())),
    "steps": ("twin", edit_states(lambda values: values["step"].fill_(2.0))),
    "new moments": ("twin", edit_states(lambda values: values.update(exp_avg_sq=4 * values["exp_avg_sq"]))),
    "data": ("twin", lambda m, p: [setattr(param, "data", 0.9 * param.data) for param in m.policy.parameters()]),
    "data in place": ("batch_renorm", lambda m, p: [param.data.mul_(0.9) for param in m.policy.parameters()]),
    "state_dict": ("twin", lambda m, p: m.policy.load_state_dict({k: 0.9 * v for k, v in m.policy.state_dict().items()})),
    "set_parameters": ("quantile", lambda m, p: load_old(m)),
    "groups": ("twin", new_groups),
    "head": ("twin", new_head),
    "statistics": ("batch_renorm", new_statistics),
    "dropped": ("quantile", lambda m, p: setattr(m.critic_rule, "top_quantiles_to_drop_per_net", 20)),
    "epsilon": ("twin", lambda m, p: setattr(m.actor.action_dist, "epsilon", 0.1)),
    "LOG_STD_MAX": ("twin", lambda m, p: p.setattr(sac_policies, "LOG_STD_MAX", -1.0)),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_have_their_effect(
    make_filled: MakeModel, to_double: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    critic, edit = EDITS[name]
    pair = [make_filled(PathwiseAC, policy_kwargs={"critic": critic}, engine=engine) for engine in ("eager", "auto")]
    for model in pair:
        train(to_double(model), 20)
    unchanged = train(copy.deepcopy(pair[0]), 20, seed=1)
    for model in pair:
        edit(model, monkeypatch)
    eager, fused = (train(model, 20, seed=1) for model in pair)
    assert_runs(fused, FusedEngine)
    assert difference(fused, eager) < 1e-9 < 1e-3 < difference(unchanged, eager)


@pytest.mark.parametrize("critic", ["twin", "quantile", "batch_renorm"])
def test_same_seed_same_bits_and_models_side_by_side(make_filled: MakeModel, critic: str) -> None:
    one, other, alone = (make_filled(MixedAC, policy_kwargs={"critic": critic}) for _ in range(3))
    for param in other.policy.parameters():
        param.data.mul_(1.1)
    for seed in range(5):
        for model in (one, other):
            train(model, 3, seed=seed)
    for seed in range(5):
        train(alone, 3, seed=seed)
    assert_runs(one, FusedEngine)
    assert same_bits(one, alone) and not same_bits(one, other)
