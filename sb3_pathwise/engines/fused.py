"""
The CPU's engine: stock networks of ``Linear`` and ``ReLU``, SAC's squashed Gaussian and plain Adam, differentiated by hand.

What it does is ``update.py``, line for line, with the kernels of ``kernels/``. A route's surrogate stays a small graph over
mean and log standard deviation: routes do not know engines. All state is the model's own: parameters, moments, steps.
"""

from typing import TYPE_CHECKING, Any

import torch as th
from gymnasium import spaces
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from sb3_pathwise.critics.batch_renorm import BatchRenormCritic
from sb3_pathwise.distributions import PolicyDistribution, PolicyDraw, SACTanh
from sb3_pathwise.engines.base import Engine
from sb3_pathwise.engines.fingerprint import STOCK
from sb3_pathwise.engines.kernels.adam import AdamKernel, reason_not_plain
from sb3_pathwise.engines.kernels.batch_renorm import BatchRenormKernel
from sb3_pathwise.engines.kernels.gaussian_actor import GaussianActor
from sb3_pathwise.engines.kernels.linear import Workspace
from sb3_pathwise.engines.kernels.quantile import QuantileKernel
from sb3_pathwise.engines.kernels.squash import SquashedGaussianDraw, clamp, diagonal_gaussian, squash
from sb3_pathwise.engines.kernels.twin import TwinKernel
from sb3_pathwise.guards.own_arguments import reached
from sb3_pathwise.guards.undisturbed import undisturbed
from sb3_pathwise.objective import current_ent_coef, surrogate_of_objective
from sb3_pathwise.update import Metrics

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

KERNELS: dict[type, Any] = {kernel.rule: kernel for kernel in (TwinKernel, QuantileKernel, BatchRenormKernel)}
# Methods of modules that SAC's training goes through, and that an instance may hide
_ORIGINS = ("torch", "stable_baselines3", "sb3_contrib")
_METHODS = ("forward", "action_log_prob", "get_action_dist_params", "extract_features", "__call__")


class FusedEngine(Engine):
    """
    One update by hand, on a CPU.

    :param model: The model, for which ``reason_not`` is ``None``
    """

    precisions = ("float32", "bfloat16")

    def __init__(self, model: "ActorCritic") -> None:
        low_dtype = th.bfloat16 if model.precision == "bfloat16" else None
        self.actor_adam = AdamKernel(model.actor.optimizer)
        self.critic_adam = AdamKernel(model.critic.optimizer)
        self.ent_coef_adam = None if model.ent_coef_optimizer is None else AdamKernel(model.ent_coef_optimizer)
        workspace = Workspace()
        self.actor = GaussianActor(model.actor, self.actor_adam, workspace, low_dtype)
        self.critic = _kernel(model)(model, self.critic_adam, workspace, low_dtype)
        self.dtype = self.actor_adam.grad.dtype
        self.epsilon: float = model.actor.action_dist.epsilon  # type: ignore[union-attr]
        self.tanh = SACTanh(self.epsilon)
        self.is_flat = _is_flat(model.actor)

    @staticmethod
    def reason_not(model: "ActorCritic") -> str | None:
        if model.device.type != "cpu":
            return f"the model is on {model.device}"
        if model.use_sde:
            return "gSDE is not a squashed Gaussian"
        if _origin(type(model).actor_surrogate) != "sb3_pathwise" or "actor_surrogate" in vars(model):
            return "actor_surrogate is overridden, and may reach more than distribution and objective"
        if type(model.critic_rule) not in KERNELS:
            return f"of the critic {type(model.critic_rule).__name__} it knows nothing"
        if any(map(callable, vars(model.critic_rule).values())):
            return f"a method of {type(model.critic_rule).__name__} is overridden"
        normalized = any(isinstance(module, BatchRenorm1d) for module in model.actor.modules())
        if normalized and type(model.critic_rule) is not BatchRenormCritic:
            return f"with {type(model.critic_rule).__name__}, a normalised actor sees the batch's statistics where it acts"
        reason = _reason_not_torch() or _kernel(model).reason_not(model) or GaussianActor.reason_not(model.actor)
        return reason or _reason_not_modules(model) or _reason_not_optimizers(model) or _reason_not_route(model)

    def begin(self, model: "ActorCritic") -> None:
        # Somebody may have written to parameters in the meantime
        self.actor.refresh()
        self.critic.refresh()
        self.critic.refresh_targets()

    def update(
        self, model: "ActorCritic", replay_data: ReplayBufferSamples, update_actor: bool, update_targets: bool
    ) -> Metrics:
        with th.no_grad():
            return self._update(model, replay_data, update_actor, update_targets)

    def _update(
        self, model: "ActorCritic", replay_data: ReplayBufferSamples, update_actor: bool, update_targets: bool
    ) -> Metrics:
        ent_coef = float(current_ent_coef(model))
        metrics: Metrics = {"ent_coef": ent_coef}
        features, next_features = (
            self._features(model, obs) for obs in (replay_data.observations, replay_data.next_observations)
        )
        actions, rewards, dones = (
            tensor.to(self.dtype) for tensor in (replay_data.actions, replay_data.rewards, replay_data.dones)
        )
        discounts = th.rsub(dones, 1).mul_(model.gamma if replay_data.discounts is None else replay_data.discounts)

        # Draw, both states' policies at once where the actor is the same for both
        n_rows = actions.shape[0]
        at_once = update_actor and self.actor.normalized is None
        trace: Any = self.actor.act(th.cat([features, next_features]) if at_once else next_features)
        # In SAC's order of random numbers, or in CrossQ's
        noises = [th.randn(n_rows, actions.shape[1], dtype=self.dtype) for _ in range(1 + update_actor)]
        noise, next_noise = (noises[0], noises[-1]) if model.critic_rule.actor_draws_first else (noises[-1], noises[0])
        next_mean_actions, next_log_std = trace.output[-n_rows:].chunk(2, dim=1)
        _, next_actions, next_log_prob, _, _ = squash(next_mean_actions, clamp(next_log_std), next_noise, self.epsilon)

        # The critics descend their loss
        critic_loss, target_q_values = self.critic.loss(
            th.cat([features, actions], dim=1),
            th.cat([next_features, next_actions], dim=1),
            next_log_prob,
            rewards,
            discounts,
            ent_coef,
        )
        metrics["critic_loss"] = critic_loss
        metrics["critic_grad_norm"] = self._descend(
            model, model.critic.optimizer, self.critic_adam, "critic_loss", critic_loss, target=target_q_values
        )
        self.critic.refresh()

        if update_actor:
            # The actor climbs the surrogate, a graph that begins with the outputs of its network
            trace, outputs = (trace.rows(slice(n_rows)), trace.output[:n_rows]) if at_once else self.actor.learn(features)
            with th.enable_grad():
                leaves = [output.detach().requires_grad_() for output in outputs.chunk(2, dim=1)]
                draw = self._draw(leaves[0], leaves[1], noise)
                surrogate = surrogate_of_objective(
                    model.actor_surrogate, draw, self.critic.value(features), ent_coef, model.samples_gaussian_entropy
                )
            # Of minus its mean
            grads = th.autograd.grad(surrogate, leaves, th.full_like(surrogate, -1 / n_rows), materialize_grads=True)
            self.actor.backward(grads, trace)
            actor_loss, log_prob = -surrogate.detach().mean(), draw.log_prob.detach().mean()
            metrics |= {"actor_loss": actor_loss, "entropy": -log_prob.item()}
            metrics["actor_grad_norm"] = self._descend(model, model.actor.optimizer, self.actor_adam, "actor_loss", actor_loss)
            self.actor.refresh()

            # The temperature follows the entropy
            if self.ent_coef_adam is not None and model.log_ent_coef is not None:
                assert isinstance(model.target_entropy, float) and model.ent_coef_optimizer is not None
                grad = self.ent_coef_adam.grads[0].fill_(-log_prob.item() - model.target_entropy)
                ent_coef_loss = model.log_ent_coef * grad
                metrics["ent_coef_loss"] = ent_coef_loss
                self._descend(model, model.ent_coef_optimizer, self.ent_coef_adam, "ent_coef_loss", ent_coef_loss, clip=False)

        if update_targets and model.critic_rule.has_target:
            self.critic.follow(model.tau)
        return metrics

    def _features(self, model: "ActorCritic", obs: PyTorchObs) -> th.Tensor:
        if self.is_flat and isinstance(obs, th.Tensor):
            return obs.flatten(1).float().to(self.dtype)
        return model.actor.extract_features(obs, model.actor.features_extractor).to(self.dtype)  # type: ignore[arg-type]

    def _draw(self, mean_actions: th.Tensor, log_std: th.Tensor, noise: th.Tensor) -> PolicyDraw:
        x, actions, log_prob, std = SquashedGaussianDraw.apply(mean_actions, log_std, noise, self.epsilon)
        return PolicyDraw(PolicyDistribution(diagonal_gaussian(mean_actions, std), self.tanh), x, actions, log_prob)

    @staticmethod
    def _descend(
        model: "ActorCritic",
        optimizer: th.optim.Optimizer,
        adam: AdamKernel,
        name: str,
        loss: th.Tensor,
        clip: bool = True,
        **causes: th.Tensor,
    ) -> th.Tensor:
        grad_norm = adam.grad_norm()
        model.check_descent(optimizer, name, loss, grad_norm, **causes)
        adam.step(grad_norm, model.max_grad_norm if clip else None)
        return grad_norm


def _kernel(model: "ActorCritic") -> Any:
    return KERNELS[type(model.critic_rule)]


def _origin(function: Any) -> str:
    """The package that a function is written in, whatever ``functools.wraps`` says."""
    names = getattr(getattr(function, "__func__", function), "__globals__", {})
    return names.get("__name__", "").partition(".")[0]


def _is_flat(network: BaseModel) -> bool:
    space = network.observation_space
    if type(network.features_extractor) is not FlattenExtractor or not isinstance(space, spaces.Box):
        return False
    return not (network.normalize_images and is_image_space(space))


def _reason_not_torch() -> str | None:
    if any(getattr(torch_module, f"_global_{name}_hooks") for name in ("forward", "forward_pre", "backward", "backward_pre")):
        return "there are global hooks of modules"
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return "there are global hooks of optimizers"
    if th.is_autocast_enabled("cpu"):
        return "torch's autocast is on"
    for cls, name in STOCK:
        if _origin(getattr(cls, name)) not in _ORIGINS:
            return f"{cls.__name__}.{name} is overridden"
    return None


def _reason_not_modules(model: "ActorCritic") -> str | None:
    networks: list[Any] = [model.actor, model.critic, *([model.critic_target] if model.critic_rule.has_target else [])]
    extractors = [network.features_extractor for network in networks]
    kinds = {type(module) for extractor in extractors for module in extractor.modules()}
    if len(set(map(type, extractors))) != 1 or not kinds <= {FlattenExtractor, CombinedExtractor, nn.Flatten, nn.ModuleDict}:
        return f"the features extractor consists of {', '.join(sorted(kind.__name__ for kind in kinds))}"
    if len({network.normalize_images for network in networks}) != 1:
        return "some networks normalise images and some do not"
    dtypes = set()
    for network in networks:
        for name, module in network.named_modules():
            name = name or type(network).__name__
            if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
                return f"{name} has hooks"
            if any(method in vars(module) for method in _METHODS):
                return f"a method of {name} is overridden"
            for param in module._parameters.values():
                if param is not None:
                    reason = _reason_not_parameter(param, learns=network is not model.critic_target)
                    if reason is not None:
                        return f"a parameter of {name} {reason}"
                    dtypes.add(param.dtype)
    if len(dtypes) != 1 or not dtypes <= {th.float32, th.float64}:
        return f"its parameters are of {', '.join(sorted(map(str, dtypes)))}"
    return None


def _reason_not_parameter(param: th.Tensor, learns: bool) -> str | None:
    if type(param) is not nn.Parameter:
        return f"is a {type(param).__name__}"
    if learns and not param.requires_grad:
        return "is frozen"
    if param._backward_hooks or param._post_accumulate_grad_hooks:
        return "has hooks"
    return None if param.is_contiguous() else "is not contiguous"


def _reason_not_optimizers(model: "ActorCritic") -> str | None:
    addresses: list[int] = []
    for name, network in (("actor", model.actor), ("critic", model.critic), ("target", model.critic_target)):
        if name == "target" and not model.critic_rule.has_target:
            continue
        parts: Any = (network.latent_pi, network.mu, network.log_std) if name == "actor" else network.q_networks
        params = [param for part in parts for _, param in part.named_parameters(remove_duplicate=False)]
        # No layer twice, and none that no kernel knows of
        if list(map(id, network.parameters())) != list(map(id, params)):
            return f"the {name} has other parameters than its layers', or layers share them"
        addresses += [param.data_ptr() for param in params]
        reason = None if name == "target" else reason_not_plain(network.optimizer, params)
        if reason is not None:
            return f"of the {name}, {reason}"
    if len(set(addresses)) != len(addresses):
        return "networks share parameters, or their memory"
    if model.ent_coef_optimizer is not None:
        log_ent_coef = model.log_ent_coef
        if log_ent_coef is None or log_ent_coef.shape != (1,) or not log_ent_coef.requires_grad:
            return "log_ent_coef is not SAC's"
        if log_ent_coef._backward_hooks or log_ent_coef._post_accumulate_grad_hooks:
            return "log_ent_coef has hooks"
        reason = reason_not_plain(model.ent_coef_optimizer, [model.log_ent_coef])  # type: ignore[list-item]
        if reason is not None:
            return f"of the temperature, {reason}"
    return None


def _reason_not_route(model: "ActorCritic") -> str | None:
    if _origin(type(model).route) == "sb3_pathwise":
        return None
    name = getattr(type(model).route, "__name__", "route")
    # A route that reaches more than it is given, the actor's weights by a closure say, is not to be cut off from it
    d = get_action_dim(model.action_space)
    with undisturbed(model), th.enable_grad():
        leaves = [th.zeros(2, d, requires_grad=True) for _ in range(2)]
        x, actions, log_prob, std = SquashedGaussianDraw.apply(*leaves, th.zeros(2, d), SACTanh().epsilon)
        draw = PolicyDraw(PolicyDistribution(diagonal_gaussian(leaves[0], std), SACTanh()), x, actions, log_prob)
        surrogate = surrogate_of_objective(model.actor_surrogate, draw, lambda actions: actions.sum(dim=-1), 1.0)
    if reached(surrogate) - set(map(id, leaves)):
        return f"its route, {name}, reaches parameters beside those of the distribution, or second derivatives"
    return None
