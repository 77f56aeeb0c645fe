"""
Arguments of our own that cannot work, and routes that are none, are refused by name, before a weight changes.

SAC's arguments are checked in ``arguments.py``.
"""

import copy
import inspect
import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import MultiInputPolicy as SACMultiInputPolicy
from stable_baselines3.sac.policies import SACPolicy
from torch.distributions import Distribution

from sb3_pathwise import routes
from sb3_pathwise.contrib import POLICIES
from sb3_pathwise.distributions import draw_actions, has_foreign_draws
from sb3_pathwise.guards import arguments
from sb3_pathwise.guards.undisturbed import undisturbed
from sb3_pathwise.objective import surrogate_of_objective
from sb3_pathwise.policies import DistributionPolicy
from sb3_pathwise.routes import Objective

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

PRECISIONS = ("float32", "bfloat16")
_BUILT_IN = (routes.pathwise, routes.likelihood_ratio, routes.measure_valued, routes.mixed)
# States on which a route is tried: no number of samples that anybody would take
_N_STATES = 7
_CHECKED: "WeakSet[ActorCritic]" = WeakSet()


def check_early_arguments(cls: type["ActorCritic"], policy: Any, device: Any, policy_kwargs: Any) -> None:
    """
    Those that the constructors of SB3 use at once.

    :param cls: The algorithm
    :param policy: Name or class of the policy
    :param device: Device on which the code should run
    :param policy_kwargs: Arguments of the policy, or ``None``
    :raises ValueError: if one of them is of no use
    """
    is_known = isinstance(policy, type) and (issubclass(policy, SACPolicy) or policy in POLICIES)
    if not isinstance(policy, str) and not is_known:
        raise ValueError(
            f"policy: {getattr(policy, '__name__', repr(policy))} is not a SACPolicy. {cls.__name__} takes SAC's "
            "policies, and loads models saved by SAC, by sb3-contrib's TQC or CrossQ, or by another algorithm of "
            "sb3_pathwise; load other models with their own class."
        )
    arguments.check_early_arguments(device, policy_kwargs)


def check_model(model: "ActorCritic") -> None:
    """
    :param model: The model, before its networks are made
    :raises ValueError: if an argument is out of range, or two of them exclude each other
    """
    # Again, for models that were loaded
    check_early_arguments(type(model), model.policy_class, model.device, model.policy_kwargs)
    arguments.check_arguments(model)
    if issubclass(model.policy_class, SACMultiInputPolicy) and not isinstance(model.observation_space, spaces.Dict):
        raise ValueError(
            f"policy: MultiInputPolicy needs a Dict observation space, not {model.observation_space}; "
            "use MlpPolicy (vectors) or CnnPolicy (images)."
        )
    if "critic" in model.policy_kwargs and not issubclass(model.policy_class, DistributionPolicy):
        raise ValueError(
            f"policy_kwargs: {model.policy_class.__name__} has no choice of critic. Use a policy of sb3_pathwise, such as "
            "'MlpPolicy', or leave critic out."
        )
    _check_distribution(model)
    _check_route_arguments(model)
    if not isinstance(model.policy_delay, int) or model.policy_delay < 1:
        raise ValueError(f"policy_delay must be an integer of at least 1, got {model.policy_delay!r}.")
    if model.max_grad_norm is not None and not (isinstance(model.max_grad_norm, (int, float)) and model.max_grad_norm > 0):
        raise ValueError(f"max_grad_norm must be positive, or None not to clip, got {model.max_grad_norm!r}.")
    if model.qf_learning_rate is not None:
        arguments.check("qf_learning_rate", model.qf_learning_rate, arguments.LEARNING_RATE)
    if model.precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(map(repr, PRECISIONS))}, got {model.precision!r}.")
    if model.precision == "bfloat16" and model.device.type == "cpu" and hasattr(th.cpu, "get_capabilities"):
        capabilities = th.cpu.get_capabilities()
        if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            warnings.warn(
                "precision='bfloat16': this CPU has no instructions for bfloat16 and emulates them, which is slower than "
                "precision='float32'."
            )


def _check_distribution(model: "ActorCritic") -> None:
    distribution = model.policy_kwargs.get("distribution", "squashed_gaussian")
    if distribution in DistributionPolicy.distributions and distribution not in model.supported_distributions:
        family: Any = next(base for base in type(model).__mro__ if base.__name__ == "ActorCritic")
        ours = [cls for cls in family.__subclasses__() if cls.__module__.startswith("sb3_pathwise.")]
        others = [cls.__name__ for cls in ours if distribution in cls.supported_distributions]
        raise ValueError(
            f"distribution={distribution!r} cannot be used by {type(model).__name__}, whose gradient needs one of "
            f"{', '.join(model.supported_distributions)}. Use {' or '.join(others)} with it."
        )


def _check_route_arguments(model: "ActorCritic") -> None:
    own = model.route_arguments()
    for name in ("n_action_samples", "baseline"):
        if name not in own and getattr(model, name) is not None:
            raise ValueError(f"{name}: the route of {type(model).__name__} has no such argument, leave it out.")
    if "n_action_samples" in own and not (
        isinstance(model.n_action_samples, int) and model.n_action_samples >= model.min_action_samples
    ):
        raise ValueError(
            f"n_action_samples must be an integer of at least {model.min_action_samples}, got {model.n_action_samples!r}."
        )
    # What it means to somebody else's route we do not know
    if "baseline" in own and type(model).route in _BUILT_IN:
        if model.baseline not in routes.BASELINES:
            raise ValueError(f"baseline must be one of {', '.join(routes.BASELINES)}, got {model.baseline!r}.")
        if model.baseline == "leave_one_out" and model.n_action_samples == 1:
            raise ValueError(
                "baseline='leave_one_out' compares an action with the others of its state and needs "
                "n_action_samples of at least 2, got 1. Draw more, or use baseline='mean_action'."
            )


def check_critic(model: "ActorCritic") -> None:
    """
    :param model: The model, its networks being made
    :raises ValueError: if an argument does not go with its critic
    """
    critic = model.critic_rule
    check_batch_size(model, model.batch_size)
    for name in () if critic.has_target else ("tau", "target_update_interval"):
        if getattr(model, name) != inspect.signature(SAC).parameters[name].default:
            raise ValueError(
                f"{name}={getattr(model, name)!r} has no effect: {type(critic).__name__} has no target networks. Leave it out."
            )
    normalizer = model._vec_normalize_env
    if normalizer is not None and normalizer.norm_reward and model.log_ent_coef is None:
        warnings.warn(
            f"ent_coef={model.ent_coef} is fixed, but the scale of the rewards, against which it is weighed, changes in "
            'training with VecNormalize(norm_reward=True). Let it be learned, ent_coef="auto".'
        )


def check_batch_size(model: "ActorCritic", batch_size: int) -> None:
    """
    :param model: The model, its networks being made
    :param batch_size: Size of the batches to learn from
    :raises ValueError: if its critic cannot
    """
    critic = model.critic_rule
    if batch_size < critic.min_batch_size:
        raise ValueError(
            f"batch_size must be at least {critic.min_batch_size} with {type(critic).__name__}, which normalises by the "
            f"batch's statistics, got {batch_size}."
        )


def check_own_route(model: "ActorCritic") -> None:
    """
    Try a route that somebody else has written, on the untrained model.

    :param model: The model, its networks being made
    :raises ValueError: if it has no route, or the route does not keep to its contract
    """
    cls = type(model)
    if overrides_surrogate(cls):
        # It may need what is not there yet, see check_surrogate()
        return
    if not hasattr(cls, "route"):
        raise ValueError(f"{cls.__name__} has no route: set the class attribute `route` to a function as in routes.py.")
    if cls.route not in _BUILT_IN:
        _check_signature(cls)
        space = copy.deepcopy(model.observation_space)
        samples = [space.sample() for _ in range(_N_STATES)]
        stacked: Any = (
            {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
            if isinstance(samples[0], dict)
            else np.stack(samples)
        )
        obs, _ = model.policy.obs_to_tensor(stacked)
        with undisturbed(model):
            model.policy.set_training_mode(False)
            _try_surrogate(model, obs)


def check_surrogate(model: "ActorCritic") -> None:
    """
    Try a surrogate that somebody else has written, or on draws that somebody else's actor makes, once, before the first
    update.

    :param model: The model, about to be updated
    :raises ValueError: if it does not keep to its contract, or needs to know more of the policy than its draws
    """
    if model in _CHECKED:
        return
    cls = type(model)
    if overrides_surrogate(cls):
        needs_trial = True
    else:
        takes_one_draw = cls.route is routes.pathwise and model.n_action_samples == 1
        needs_trial = has_foreign_draws(model.actor) and not takes_one_draw
    if needs_trial:
        assert model.replay_buffer is not None
        with undisturbed(model):
            _try_surrogate(model, model.replay_buffer.sample(_N_STATES, env=model._vec_normalize_env).observations)
    _CHECKED.add(model)


def overrides_surrogate(cls: type["ActorCritic"]) -> bool:
    """
    :param cls: An algorithm
    :return: whether its surrogate is more than its route
    """
    return not cls.actor_surrogate.__module__.startswith("sb3_pathwise.")


def _check_signature(cls: type["ActorCritic"]) -> None:
    if not callable(cls.route):
        raise ValueError(f"route of {cls.__name__} must be a function as in routes.py, got {cls.route!r}.")
    signature = inspect.signature(cls.route)
    try:
        signature.bind(None, None, **dict.fromkeys({"n_samples", "baseline"} & signature.parameters.keys()))
    except TypeError as error:
        raise ValueError(
            f"route of {cls.__name__} must be a function of (dist, objective), and of n_samples and baseline if it likes, got "
            f"{signature}. Override actor_surrogate(self, dist, objective) if it needs the model, too."
        ) from error


def _try_surrogate(model: "ActorCritic", obs: PyTorchObs) -> None:
    if model.use_sde:
        model.actor.reset_noise()
    draw = draw_actions(model.actor, obs)

    def checked_surrogate(dist: Distribution, objective: Objective) -> th.Tensor:
        surrogate = model.actor_surrogate(dist, objective)
        _check_surrogate(model, surrogate, draw.log_prob)
        return surrogate

    ent_coef = th.ones((), device=model.device)
    value = model.critic_rule.value(model.critic, obs)
    try:
        surrogate_of_objective(checked_surrogate, draw, value, ent_coef, model.samples_gaussian_entropy)
    except NotImplementedError as error:
        base = draw.policy_dist.base
        if base.has_rsample:
            raise
        raise ValueError(
            f"{_name(model)} needs rsample, which {type(base).__name__} has not: choose another "
            "policy_kwargs=dict(distribution=...), or a route that needs no more than sample and log_prob."
        ) from error


def _check_surrogate(model: "ActorCritic", surrogate: th.Tensor, log_prob: th.Tensor) -> None:
    if not isinstance(surrogate, th.Tensor) or surrogate.shape != log_prob.shape:
        got = tuple(surrogate.shape) if isinstance(surrogate, th.Tensor) else type(surrogate).__name__
        raise ValueError(
            f"{_name(model)} must return a surrogate of shape {tuple(log_prob.shape)}, one for each state, got {got}."
        )
    # The critics' parameters do not count
    params = {id(param) for param in model.actor.parameters()}
    if reached(log_prob) & params and not reached(surrogate) & params:
        raise ValueError(
            f"{_name(model)} returns a surrogate that cannot be differentiated: its gradient with respect to the "
            "distribution's parameters must be the route's estimate (see sb3_pathwise.routes)."
        )


def reached(output: th.Tensor) -> set[int]:
    """
    :param output: Any tensor
    :return: ids of the tensors that it can be differentiated with respect to
    """
    nodes = [output.grad_fn]
    seen = set(nodes)
    variables = {id(output)} if output.is_leaf and output.requires_grad else set()
    for node in nodes:
        if node is not None:
            # Where a graph ends, it knows the tensor
            variables |= {id(node.variable)} if hasattr(node, "variable") else set()
            parents = {parent for parent, _ in node.next_functions} - seen
            seen |= parents
            nodes += parents
    return variables


def _name(model: "ActorCritic") -> str:
    cls = type(model)
    name = "actor_surrogate" if overrides_surrogate(cls) else getattr(cls.route, "__name__", "route")
    return f"{name} of {cls.__name__}"
