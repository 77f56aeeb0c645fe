"""
A number that is not finite stops training before it reaches the replay buffer, the environment or a weight.

``CheckedSAC`` looks at observations, rewards and actions on their way, ``check_descent`` at losses and gradients before an
optimizer takes its step, ``DeferredChecks`` at the same where the host must not wait. What is finite and still looks wrong is
for ``traps.py``; how a training goes on after it was stopped, for ``persistence``. No random number is drawn here.
"""

import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

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
