"""
The classic traps of soft actor-critic: they are warned about, once each, and training goes on.

Everything here looks now and then at a model in training, changes nothing in it and draws no random number. What stops
training is in ``finite.py``, what is refused before training in ``arguments.py``.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch.distributions import Independent, MixtureSameFamily, Normal

from sb3_pathwise.distributions import policy_distribution
from sb3_pathwise.guards.finite import CheckedSAC

# Updates between two looks for traps, and states looked at
UPDATES_BETWEEN_LOOKS = 1_000
N_STATES = 256


def warn_of_traps(model: CheckedSAC, gradient_steps: int) -> None:
    """
    Look once every ``UPDATES_BETWEEN_LOOKS`` updates for the classic traps, and warn of each only once in a model's life.

    :param model: The model in training
    :param gradient_steps: Updates since the last call
    """
    interval = UPDATES_BETWEEN_LOOKS
    if model._n_updates // interval == (model._n_updates - gradient_steps) // interval:
        return
    for trap, message in _traps(model):
        if trap not in model._warned_of:
            model._warned_of.append(trap)
            warnings.warn(f"At step {model.num_timesteps}, after {model._n_updates} updates: {message}", UserWarning)


def _traps(model: SAC) -> Iterator[tuple[str, str]]:
    yield from _scale_traps(model)
    yield from _entropy_traps(model)
    yield from _actor_traps(model)


def _replayed(model: SAC, array: np.ndarray) -> np.ndarray:
    """
    Up to N_STATES rows of an array of the replay buffer, evenly spread: no random number is drawn.
    """
    assert model.replay_buffer is not None
    rows = np.linspace(0, model.replay_buffer.size() - 1, N_STATES).astype(int)
    return array[rows, np.arange(N_STATES) % model.n_envs]


def _scale_traps(model: SAC) -> Iterator[tuple[str, str]]:
    buffer, normalizer = model.replay_buffer, model._vec_normalize_env
    assert buffer is not None
    arrays: dict[str, np.ndarray] = {}
    if normalizer is None or not normalizer.norm_reward:
        arrays["rewards"] = buffer.rewards
    if isinstance(buffer.observations, dict):
        normalized = normalizer.norm_obs_keys or [] if normalizer is not None and normalizer.norm_obs else []
        arrays |= {f"observations {key!r}": obs for key, obs in buffer.observations.items() if key not in normalized}
    elif normalizer is None or not normalizer.norm_obs:
        arrays["observations"] = buffer.observations
    for name, array in arrays.items():
        # Integers are images, which SB3 divides by 255, or categories
        if array.dtype.kind != "f" or array.size == 0:
            continue
        values = np.abs(_replayed(model, array).astype(np.float64)).reshape(N_STATES, -1)
        largest_rms, largest = np.sqrt(np.square(values).mean(axis=0).max()), values.max()
        if largest_rms > 100 or 0 < largest < 0.01:
            yield (
                f"scale of {name}",
                f"{name} are far from unit scale (largest root mean square {largest_rms:.3g}, largest absolute value "
                f"{largest:.3g}). Networks learn badly from them: wrap the environment in VecNormalize, or rescale them.",
            )


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
            {key: _replayed(model, array) for key, array in observations.items()}, model._vec_normalize_env
        )
        return {key: buffer.to_torch(array) for key, array in obs.items()}
    obs = buffer._normalize_obs(_replayed(model, observations), model._vec_normalize_env)
    return buffer.to_torch(obs)
