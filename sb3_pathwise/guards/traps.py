"""
The classic traps of soft actor-critic: they are warned about, once each, and training goes on.

Everything here looks now and then at a model in training, changes nothing in it and draws no random number. What stops
training is in ``finite.py``, what is refused before training in ``arguments.py``.
"""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch.distributions import Independent, MixtureSameFamily, Normal

from sb3_pathwise.distributions import policy_distribution
from sb3_pathwise.guards.rollouts import CheckedSAC
from sb3_pathwise.guards.scale import is_readable, off_scale, replayed, replayed_arrays

UPDATES_BETWEEN_LOOKS = 1_000


def warn_of_scale(model: CheckedSAC) -> None:
    """
    Look at the scale of what is in the replay buffer when learning starts: what is too large may end training long before the
    first look of ``warn_of_traps``. (What is small may still grow.)

    :param model: The model, about to be updated
    """
    if model._n_updates == 0:
        _warn(model, _scale_traps(model, also_small=False))


def warn_of_traps(model: CheckedSAC, gradient_steps: int) -> None:
    """
    Look once every ``UPDATES_BETWEEN_LOOKS`` updates for the classic traps, and warn of each only once in a model's life.

    :param model: The model in training
    :param gradient_steps: Updates since the last call
    """
    interval = UPDATES_BETWEEN_LOOKS
    if model._n_updates // interval > (model._n_updates - gradient_steps) // interval:
        _warn(model, _scale_traps(model), _entropy_traps(model), _actor_traps(model))


def _warn(model: CheckedSAC, *traps: Iterator[tuple[str, str]]) -> None:
    for trap, message in itertools.chain(*traps):
        if trap not in model._warned_of:
            model._warned_of.append(trap)
            warnings.warn(f"At step {model.num_timesteps}, after {model._n_updates} updates: {message}", UserWarning)


def _scale_traps(model: SAC, also_small: bool = True) -> Iterator[tuple[str, str]]:
    for name, finding, remedy in off_scale(replayed_arrays(model), also_small):
        yield f"scale of {name}", f"{finding}. {remedy}"


def _entropy_traps(model: SAC) -> Iterator[tuple[str, str]]:
    if model.log_ent_coef is None:
        return
    ent_coef = model.log_ent_coef.detach().exp().item()
    if ent_coef < 1e-5:
        yield (
            "ent_coef collapse",
            f"the entropy coefficient has collapsed to {ent_coef:.3g}: nothing rewards exploration any more. Lower "
            "target_entropy, scale rewards up, or fix ent_coef.",
        )
    if ent_coef > 100:
        yield (
            "ent_coef explosion",
            f"the entropy coefficient has grown to {ent_coef:.3g} and drowns the rewards: the policy cannot reach "
            "target_entropy. Lower target_entropy (its scale is that of actions in [-1, 1]), or fix ent_coef.",
        )


def _actor_traps(model: SAC) -> Iterator[tuple[str, str]]:
    yield from _squashed_gaussian_traps(model)
    # SAC's layer for the mean, or ours for all parameters. Weights alone: dead hidden units leave biases a gradient
    heads = [head for name in ("mu", "head") if isinstance(head := getattr(model.actor, name, None), th.nn.Module)]
    grads = [param.grad for head in heads for param in head.parameters() if param.grad is not None and param.ndim > 1]
    # Adam's default eps: a gradient below it moves nothing
    if grads and max(grad.abs().max().item() for grad in grads) < 1e-8:
        yield (
            "dead actor mean",
            "the gradient of the actor's mean is zero: its hidden units are dead, its tanh is saturated, or the critics "
            "do not depend on the action. Lower the learning rate, scale observations, or use another activation_fn.",
        )


def _squashed_gaussian_traps(model: SAC) -> Iterator[tuple[str, str]]:
    if not is_readable(model):
        return
    # Batch norm must not learn from this look; rollouts and updates set the mode they need
    model.policy.set_training_mode(False)
    with th.no_grad():
        policy_dist = policy_distribution(model.actor, _replayed_observations(model))
    base: Any = None if policy_dist is None else policy_dist.base
    if isinstance(base, MixtureSameFamily):
        base = base.component_distribution
    if not isinstance(base, Independent) or not isinstance(base.base_dist, Normal):
        return
    saturated = (base.base_dist.loc.abs() > 3).float().mean().item()
    if saturated > 0.9:
        yield (
            "saturated tanh",
            f"{saturated:.0%} of the actor's mean actions lie where tanh is flat (|mean| > 3 before squashing), where hardly "
            "any gradient passes. Scale rewards and observations to unit scale, lower the learning rate, or raise ent_coef.",
        )
    log_std = base.base_dist.scale.log()
    clamped = ((log_std < LOG_STD_MIN + 1e-3) | (log_std > LOG_STD_MAX - 1e-3)).float().mean().item()
    # gSDE has no clamp
    if clamped > 0.5 and not model.use_sde:
        yield (
            "clamped log_std",
            f"{clamped:.0%} of the policy's log standard deviations lie at their clamp, {LOG_STD_MIN} or {LOG_STD_MAX}, "
            "where they get no gradient. Look at target_entropy and the scale of observations and rewards.",
        )


def _replayed_observations(model: SAC) -> PyTorchObs:
    buffer = model.replay_buffer
    assert buffer is not None
    observations: Any = buffer.observations
    if isinstance(observations, dict):
        obs: Any = buffer._normalize_obs(
            {key: replayed(model, array) for key, array in observations.items()}, model._vec_normalize_env
        )
        return {key: buffer.to_torch(array) for key, array in obs.items()}
    obs = buffer._normalize_obs(replayed(model, observations), model._vec_normalize_env)
    return buffer.to_torch(obs)
