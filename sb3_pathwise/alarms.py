"""
Alarms: a number that is not finite stops training before it reaches the replay buffer or a weight, and the classic traps of
soft actor-critic are warned about, once each.

Everything that looks at numbers and complains is here. What is learned from them is in ``learner.py``, which calls this;
how a training goes on after it was stopped is in ``persistence``. No random number is drawn here.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch.distributions import Independent, MixtureSameFamily, Normal

from sb3_pathwise.distributions import policy_distribution

# Updates between two looks for traps, and states looked at
UPDATES_BETWEEN_LOOKS = 1_000
N_STATES = 256

# What most often makes a quantity non-finite, and where to look
CAUSES = {
    "observation": "the environment returned it. Look for unstable physics, a division by zero or an unbounded state.",
    "reward": "the environment returned it. Look for a division by zero, or the logarithm or root of a negative number.",
    "action": "the policy or the action noise produced it. Look for observations too large for float32 in the network, or a "
    "sigma that is not finite.",
    "target": "the target networks or the entropy term produced it. Look for rewards so large that Q-values overflow (use "
    "VecNormalize), gamma above 1, or a custom critic.",
    "critic_loss": "the critics' outputs overflowed. Look for too high a learning rate, or rewards far from unit scale.",
    "actor_loss": "the critics' or the policy's outputs overflowed. Look for too high a learning rate, or rewards far from "
    "unit scale.",
    "ent_coef_loss": "the entropy coefficient or a log-probability overflowed. Look at target_entropy and train/ent_coef.",
    "gradient": "the loss is finite, its derivative is not. Look for a square root, a logarithm or a norm at 0 in a custom "
    "network, or set max_grad_norm and a lower learning rate.",
    "parameter": "an update overflowed. Look for too high a learning rate.",
}


class NonFiniteError(FloatingPointError):
    """
    Something that training needs to be finite is not.

    :param quantity: What it is: one of ``CAUSES``
    :param model: The model in training
    :param where: Where in the quantity, for the message
    """

    def __init__(self, quantity: str, model: BaseAlgorithm, where: str = "") -> None:
        self.quantity = quantity
        self.num_timesteps = model.num_timesteps
        self.n_updates = model._n_updates
        spared = "It is not saved" if quantity == "parameter" else "No weight and no replay buffer has seen it"
        super().__init__(
            f"{quantity} is not finite at step {self.num_timesteps}, after {self.n_updates} updates{where}. Likely cause: "
            f"{CAUSES[quantity]} {spared}; the last checkpoint is good."
        )


def check_finite(model: SAC, quantity: str, value: np.ndarray | dict[str, np.ndarray]) -> None:
    """
    :param model: The model in training
    :param quantity: What ``value`` is: one of ``CAUSES``
    :param value: An array whose first dimension is the environment, or one array for each key
    :raises NonFiniteError: if it holds a NaN or an infinity
    """
    for key, array in value.items() if isinstance(value, dict) else ((None, value),):
        # The sum of squares shows them, in half the time of isfinite(); but it also overflows
        if array.dtype.kind == "f" and not math.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
            per_env = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            key_text = "" if key is None else f", key {key!r}"
            raise NonFiniteError(quantity, model, f" (environment {int(per_env.argmin())}{key_text})")


def check_descent(model: SAC, name: str, loss: th.Tensor, grad_norm: th.Tensor, **causes: th.Tensor) -> None:
    """
    To be called between the backward pass and the optimizer's step. It waits for the device.

    :param model: The model in training
    :param name: Name of the loss
    :param loss: Loss, a scalar
    :param grad_norm: Norm of its gradient, a scalar
    :param causes: Tensors that the loss came from, by name, earliest first; looked at only if something is wrong
    :raises NonFiniteError: if the loss or its gradient is not finite, naming the earliest quantity that is not
    """
    if math.isfinite(grad_norm.item()) and math.isfinite(loss.item()):
        return
    for quantity, tensor in (causes | {name: loss}).items():
        if not th.isfinite(tensor).all():
            raise NonFiniteError(quantity, model, "" if quantity == name else f" (seen in {name})")
    raise NonFiniteError("gradient", model, f" (of {name})")


class DeferredChecks:
    """
    ``check_descent`` without waiting for the device: what is not finite is noted there, and from then on no optimizer that
    ``found_inf`` was given to takes a step, until the host looks.

    :param device: where the model is
    """

    def __init__(self, device: th.device) -> None:
        # Torch's fused optimizers take no step while it is 1 (the name is theirs, from mixed precision)
        self.found_inf = th.zeros((), device=device, dtype=th.float32)
        # The losses in their order, and what of them is not finite, the earliest cause first
        self._flags: dict[tuple[str, str], th.Tensor] = {}

    def check(
        self, optimizer: th.optim.Optimizer, name: str, loss: th.Tensor, grad_norm: th.Tensor, **causes: th.Tensor
    ) -> None:
        """
        To be called between the backward pass and the optimizer's step.

        :param optimizer: The optimizer
        :param name: Name of the loss
        :param loss: Loss, a scalar
        :param grad_norm: Norm of its gradient, a scalar
        :param causes: Tensors that the loss came from, by name, earliest first
        """
        for quantity, tensor in (causes | {name: loss, "gradient": grad_norm}).items():
            flag = self._flags.setdefault((name, quantity), th.zeros_like(self.found_inf))
            # The sum shows it
            flag.copy_(th.maximum(flag, (~th.isfinite(tensor.sum())).to(flag.dtype)))
            self.found_inf.copy_(th.maximum(self.found_inf, flag))

    def raise_if_any(self, model: SAC) -> None:
        """
        To be called by the host, which waits for the device.

        :param model: The model in training
        :raises NonFiniteError: if something was not finite, naming the earliest quantity
        """
        if not self.found_inf.item():
            return
        name, quantity = next(key for key, flag in self._flags.items() if flag.item())
        self.reset()
        raise NonFiniteError(quantity, model, "" if quantity == name else f" (seen in {name})")

    def reset(self) -> None:
        """Forget what was noted."""
        for flag in (self.found_inf, *self._flags.values()):
            flag.zero_()


class CheckedSAC(SAC):
    """SAC whose observations, rewards and actions are checked on their way to the replay buffer and the environment."""

    # Traps that have been warned about
    _warned_of: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warned_of = []

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        total_timesteps, callback = super()._setup_learn(*args, **kwargs)
        assert self._last_obs is not None
        check_finite(self, "observation", self._last_obs)
        return total_timesteps, callback

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        try:
            action, buffer_action = super()._sample_action(*args, **kwargs)
        except ValueError as error:
            # Torch's distributions refuse parameters that are not finite
            if "found invalid values" not in str(error):
                raise
            raise NonFiniteError("action", self) from error
        check_finite(self, "action", action)
        return action, buffer_action

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        # VecNormalize clips infinities, and the buffer holds what it has not normalized
        normalizer = self._vec_normalize_env
        check_finite(self, "observation", new_obs if normalizer is None else normalizer.old_obs)
        check_finite(self, "reward", reward if normalizer is None else normalizer.old_reward)
        for env_idx in dones.nonzero()[0]:
            terminal_obs = infos[env_idx].get("terminal_observation")
            if terminal_obs is not None:
                arrays = terminal_obs if isinstance(terminal_obs, dict) else {"terminal_observation": terminal_obs}
                check_finite(self, "observation", {key: np.asarray(array)[None] for key, array in arrays.items()})
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)


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
