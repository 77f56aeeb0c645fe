"""
Whether a model is still what it was: modules, parameters and their storage, hooks, optimizers and the tensors of their state.

Learning rates are not part of it, since SB3 sets them at each ``train()``, nor is the content of tensors.
"""

from typing import TYPE_CHECKING, Any

import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq.policies import CrossQCritic
from sb3_contrib.tqc.policies import Critic as QuantileNetworks
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.sac.policies import Actor
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULES = (nn.Sequential, nn.Linear, nn.ReLU, BatchRenorm1d, FlattenExtractor, CombinedExtractor, ContinuousCritic)
_DISTRIBUTION = ("log_prob_from_params", "actions_from_params", "proba_distribution", "get_actions", "sample", "log_prob")
#: Methods that the plain update goes through, and that somebody may replace in the class
STOCK: tuple[tuple[type, str], ...] = (
    *((cls, "forward") for cls in (*_MODULES, CrossQCritic, QuantileNetworks)),
    *((cls, "extract_features") for cls in (Actor, ContinuousCritic, CrossQCritic, QuantileNetworks)),
    *((Actor, name) for name in ("action_log_prob", "get_action_dist_params")),
    *((SquashedDiagGaussianDistribution, name) for name in _DISTRIBUTION),
    *((th.optim.Adam, name) for name in ("step", "zero_grad")),
)
_NETWORKS = ("actor", "critic", "critic_target")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")


def fingerprint(model: "ActorCritic") -> tuple[object, ...]:
    """
    :param model: The model
    :return: equal as long as nobody has changed the model otherwise than by an update; tens of microseconds
    """
    prints: list[object] = [len(getattr(torch_module, name)) for name in _GLOBAL_HOOKS]
    prints += [len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks), th.is_autocast_enabled("cpu")]
    prints += [getattr(cls, name) for cls, name in STOCK]
    prints += [getattr(model.__class__, "route", None), model.__class__.actor_surrogate]
    # An own attribute of an instance may hide a method: their number is looked at
    prints += [len(vars(model)), model.engine, model.precision, model.device, model.use_sde, id(model.ent_coef_optimizer)]
    prints += [id(model.__class__), id(model.critic_rule.__class__), id(model.log_ent_coef)]
    prints += [value for value in vars(model.critic_rule).values() if isinstance(value, (int, float)) or callable(value)]
    if model.log_ent_coef is not None:
        prints += [len(model.log_ent_coef._backward_hooks or ()), len(model.log_ent_coef._post_accumulate_grad_hooks or ())]
    action_dist = getattr(model.actor, "action_dist", None)
    prints += [id(action_dist), getattr(action_dist, "epsilon", None)]
    prints += filter(callable, getattr(action_dist, "__dict__", {}).values())
    for name in _NETWORKS:
        network: Any = getattr(model, name, None)
        # A list, which the modules below are not to be relied on to agree with
        prints += [getattr(network, "normalize_images", None), *map(id, getattr(network, "q_networks", ()))]
    # SB3's aliases are the policy's networks, unless somebody has replaced them on one side only
    modules: list[Any] = [model.policy]
    modules += [
        network for name in _NETWORKS if (network := getattr(model, name, None)) is not getattr(model.policy, name, None)
    ]
    add = prints.append
    for module in modules:
        if module is None:
            continue
        attributes = module.__dict__
        add(id(module))
        add(id(module.__class__))
        add(len(attributes))
        for name in _HOOKS:
            if attributes[name]:
                add((name, len(attributes[name])))
        for param in attributes["_parameters"].values():
            if param is not None:
                add(id(param))
                add(param.data_ptr())
                add(param.shape)
                add(param.is_contiguous())
                add(param.requires_grad)
                if param._backward_hooks or param._post_accumulate_grad_hooks:
                    add((len(param._backward_hooks or ()), len(param._post_accumulate_grad_hooks or ())))
        if attributes["_buffers"]:
            prints += [*map(id, attributes["_buffers"].values()), attributes.get("affine")]
        modules += attributes["_modules"].values()
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        if optimizer is not None:
            _add_optimizer(prints, optimizer)
    return tuple(prints)


def _add_optimizer(prints: list[object], optimizer: Optimizer) -> None:
    prints += [id(optimizer), id(optimizer.__class__), len(optimizer.__dict__), len(optimizer.state)]
    prints += [len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)]
    for group in optimizer.param_groups:
        prints.append(id(group))
        prints += [value for name, value in group.items() if name not in ("lr", "params")]
        prints += map(id, group["params"])
    for param, values in optimizer.state.items():
        prints += [id(param), *map(id, values.values())]
