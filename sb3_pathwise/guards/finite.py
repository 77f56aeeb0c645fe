"""
A number that is not finite stops training before it reaches the replay buffer, the environment or a weight.

``check_finite`` looks at observations, rewards and actions on their way (``rollouts.py``), ``check_descent`` at losses and
gradients before an optimizer takes its step, ``DeferredChecks`` at the same where the host must not wait. Why it went wrong is
for ``causes.py``, what is finite and still looks wrong for ``traps.py``, and how a training goes on after it was stopped for
``persistence``. No random number is drawn here.
"""

import math
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm

# What most often makes a quantity non-finite, and where to look, if looking at the model has shown nothing
CAUSES = {
    "observation": "the environment returned it. Look for unstable physics, a division by zero or an unbounded state.",
    "reward": "the environment returned it. Look for a division by zero, or the logarithm or root of a negative number.",
    "action": "the policy or the action noise produced it. Look for observations too large for float32 in the network, or a "
    "sigma that is not finite.",
    "target": "the target networks or the entropy term produced it. Look for Q-values that grow without bound: gamma above 1, "
    "too high a learning rate, or a custom critic.",
    "critic_loss": "the critics' outputs overflowed. Look for too high a learning rate.",
    "actor_loss": "the critics' or the policy's outputs overflowed. Look for too high a learning rate.",
    "ent_coef_loss": "the entropy coefficient or a log-probability overflowed. Look at target_entropy and train/ent_coef.",
    "gradient": "the loss is finite, its derivative is not, or overflows in its norm. Look for a square root, a logarithm or "
    "a norm at 0 in a custom network, or set a lower learning rate.",
    "parameter": "an update overflowed, or somebody wrote to it. Look for too high a learning rate.",
}
#: Steps at which the last exact checkpoints of models were taken
CHECKPOINTS: "WeakKeyDictionary[BaseAlgorithm, int]" = WeakKeyDictionary()


class NonFiniteError(FloatingPointError):
    """
    Something that training needs to be finite is not.

    :param quantity: What it is
    :param model: The model in training
    :param where: Where in the quantity, for the message
    :param cause: Why, and where to look; empty: what is most often the cause
    :param spared: What it has not reached
    :param trust_checkpoint: Whether it can be in no checkpoint
    """

    def __init__(
        self,
        quantity: str,
        model: BaseAlgorithm,
        where: str = "",
        cause: str = "",
        spared: str = "No weight has seen it.",
        trust_checkpoint: bool = True,
    ) -> None:
        self.quantity = quantity
        self.where = where
        self.cause = cause or CAUSES[quantity]
        self.spared = spared
        self.num_timesteps = model.num_timesteps
        self.n_updates = model._n_updates
        checkpoint = ""
        if trust_checkpoint and model in CHECKPOINTS:
            checkpoint = f" The last checkpoint, of step {CHECKPOINTS[model]}, is good."
        super().__init__(
            f"{quantity} is not finite at step {self.num_timesteps}, after {self.n_updates} updates{where}. Likely cause: "
            f"{self.cause} {spared}{checkpoint}"
        )


def first_not_finite(tensors: Iterable[tuple[str, th.Tensor]]) -> str | None:
    """
    :param tensors: Tensors by name
    :return: the name of the first that holds a NaN or an infinity, if there is one
    """
    return next((name for name, tensor in tensors if not th.isfinite(tensor).all()), None)


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
            where = f" (environment {int(per_env.argmin())}{key_text})"
            raise NonFiniteError(quantity, model, where, spared="No weight and no replay buffer has seen it.")


def check_descent(
    model: SAC, optimizer: th.optim.Optimizer, name: str, loss: th.Tensor, grad_norm: th.Tensor, **causes: th.Tensor
) -> None:
    """
    To be called between the backward pass and the optimizer's step. It waits for the device.

    :param model: The model in training
    :param optimizer: The optimizer
    :param name: Name of the loss
    :param loss: Loss, a scalar
    :param grad_norm: Norm of its gradient, a scalar
    :param causes: Tensors of any shape that the loss came from, by name, earliest first; looked at only if something is wrong
    :raises NonFiniteError: if the loss or its gradient is not finite, naming the earliest quantity that is not
    """
    if math.isfinite(grad_norm.item()) and math.isfinite(loss.item()):
        return
    quantity = first_not_finite((causes | {name: loss}).items())
    if quantity is not None:
        raise NonFiniteError(quantity, model, "" if quantity == name else f" (seen in {name})")
    names = {param: name for name, param in model.policy.named_parameters()}
    grads = {names.get(param, "log_ent_coef"): param.grad for group in optimizer.param_groups for param in group["params"]}
    broken = first_not_finite((name, grad) for name, grad in grads.items() if grad is not None)
    if broken is not None:
        where, cause = (
            f"in {broken}, the loss being finite",
            "a square root, a logarithm or a norm at 0 in a custom network or route.",
        )
    else:
        largest = max(grad.abs().max().item() for grad in grads.values() if grad is not None)
        where = f"its entries are finite, up to {largest:.3g}, and overflow in their norm"
        cause = "targets, features or weights of that size, or too high a learning rate."
    raise NonFiniteError("gradient", model, f" (of {name}; {where})", cause)


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
        :param causes: Tensors of any shape that the loss came from, by name, earliest first
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
