"""
The two parts of an update that stock modules make slow on small networks: multilayer perceptrons and Adam.

Both are drop-in: same parameters, same state dictionaries, same arithmetic in float32, to the last bit, so that PathwiseAC
stays SAC. What they save is bookkeeping and memory traffic. No reinforcement learning here.
"""

import functools
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam

# What a user may choose for the products
PRECISIONS = {"float32": th.float32, "bfloat16": th.bfloat16}
# Products with fewer rows or columns take as long in bfloat16 as in float32
MIN_WIDTH = 64

OptimizerT = TypeVar("OptimizerT", bound=th.optim.Optimizer)


class FusedMLP(nn.Sequential):
    """
    A ``Sequential`` of ``Linear`` layers with a ``ReLU`` after each but, perhaps, the last.

    The children are those of the module that it replaces, so that names and state dictionaries stay. Hooks of the children
    are not called. Called as a module it is like any other; ``evaluate`` and ``backward`` do the same without autograd, in
    memory that is used again at the next step, and so is in the cache: allocating it anew costs a quarter of an update.

    :param modules: ``Linear`` and ``ReLU`` modules in turn, beginning with a ``Linear``
    """

    # Of products of large matrices. The others stay in float32, and with them observations, actions and Q-values: there is
    # nothing to gain
    dtype = th.float32

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        # The networks of a policy share it
        self.memory: dict[tuple, th.Tensor] = {}
        self._trace: list[th.Tensor] | None = None

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """
        :param module: Any module
        :return: Whether it can be replaced
        """
        return type(module) is nn.Sequential and all(
            type(child) is nn.ReLU if i % 2 else type(child) is nn.Linear and child.bias is not None
            for i, child in enumerate(module)
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Inputs, shape (B, in_features)
        :return: Outputs, shape (B, out_features), float32
        """
        if self._trace is not None:
            trace, self._trace = self._trace, None
            trace += self.evaluate(x, use="trace")
            return trace[-1].requires_grad_()
        return self._run(x, first=0)

    def trace(self) -> list[th.Tensor]:
        """
        Make the next call of the network an ``evaluate`` whose output is a leaf of the graph: what autograd finds to be the
        gradient with respect to it is for ``backward`` to carry on.

        :return: a list, to be filled with what ``evaluate`` returns
        """
        self._trace = []
        return self._trace

    def _run(self, x: th.Tensor, first: int) -> th.Tensor:
        for i in range(first, len(self), 2):
            linear = cast(nn.Linear, self[i])
            dtype = self._dtype_for(x, linear.weight)
            x = F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))
            if i < len(self) - 1:
                # In place: the product is not needed for the gradient, and the cache holds it
                x = x.relu_()
        return x.float()

    def _dtype_for(self, x: th.Tensor, weight: th.Tensor) -> th.dtype:
        return self.dtype if min(len(x), *weight.shape) >= MIN_WIDTH else th.float32

    @property
    def layers(self) -> list[tuple[th.Tensor, th.Tensor]]:
        """:return: weight and bias of every layer"""
        # nn.Module's attributes take their time
        params = [child._parameters for child in self._modules.values() if child is not None and child._parameters]
        return [(cast(th.Tensor, param["weight"]), cast(th.Tensor, param["bias"])) for param in params]

    @th.no_grad()
    def evaluate(self, x: th.Tensor, use: object = None) -> list[th.Tensor]:
        """
        The network without a graph, for ``backward``.

        :param x: Inputs, shape (B, in_features)
        :param use: Name of the memory for the hidden layers' outputs: the next call with the same name overwrites them,
            whichever network of the policy it is for
        :return: the layers' inputs, a ReLU being part of the layer before, and the output, which alone is float32 in any case
        """
        activations, layers = [], self.layers
        n_relus = len(self) // 2
        for i, (weight, bias) in enumerate(layers):
            dtype = self._dtype_for(x, weight)
            x = self._cast(x, dtype, (use, "input"), i)
            activations.append(x)
            is_output = i == len(layers) - 1
            out = None if is_output else self._buffer(use, i, (len(x), len(bias)), x)
            x = th.addmm(bias.to(dtype), x, self._cast(weight, dtype, "weight", i).t(), out=out)
            if i < n_relus:
                x.relu_()
        return [*activations, x.float()]

    @th.no_grad()
    def backward(self, grad: th.Tensor, activations: Sequence[th.Tensor], *, weights: bool, inputs: bool) -> th.Tensor | None:
        """
        Backpropagation (Rumelhart, Hinton and Williams, 1986) through the network.

        :param grad: Gradient with respect to the outputs, shape (B, out_features)
        :param activations: What ``evaluate`` returned
        :param weights: Whether to write the gradients of weights and biases, in place of those that they have
        :param inputs: Whether to return the gradient with respect to the inputs
        :return: Gradient with respect to the inputs, shape (B, in_features), or ``None``
        """
        layers, n_relus = self.layers, len(self) // 2
        for i in reversed(range(len(layers))):
            (weight, bias), x, y = layers[i], activations[i], activations[i + 1]
            if i < n_relus:
                grad = _threshold_backward(grad, y, 0, grad_input=self._buffer("grad", i, y.shape, y))
            if weights:
                _write_grad(bias, th.sum, grad, 0)
            grad = self._cast(grad, x.dtype, "grad", i)
            if weights:
                _write_grad(weight, th.mm, grad.t(), x)
            if i > 0 or inputs:
                weight = self._cast(weight, x.dtype, "weight", i)
                grad = th.mm(grad, weight, out=self._buffer("grad", i - 1, (len(grad), weight.shape[1]), grad))
        return grad if inputs else None

    def _cast(self, x: th.Tensor, dtype: th.dtype, use: object, layer: int) -> th.Tensor:
        return x if x.dtype == dtype else self._buffer(use, layer, x.shape, x, dtype).copy_(x)

    def _buffer(
        self, use: object, layer: int, shape: tuple[int, ...], like: th.Tensor, dtype: th.dtype | None = None
    ) -> th.Tensor:
        n_rows, n_columns = shape
        key = (use, layer, n_columns, dtype or like.dtype)
        buffer = self.memory.get(key)
        if buffer is None or len(buffer) < n_rows:
            buffer = self.memory[key] = like.new_empty(shape, dtype=dtype)
        return buffer if len(buffer) == n_rows else buffer[:n_rows]

    def given(self, features: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
        """
        The network as a function of its last inputs, the first ones being fixed: their part of the first layer is computed
        once.

        :param features: First inputs, shape (B, in_features - d)
        :return: maps the last inputs, shape (B, d), to outputs, shape (B, out_features)
        """
        linear = cast(nn.Linear, self[0])
        weight, weight_last = linear.weight.split([features.shape[1], linear.in_features - features.shape[1]], dim=1)
        fixed_part = F.linear(features, weight, linear.bias)

        def network(last_inputs: th.Tensor) -> th.Tensor:
            x = th.addmm(fixed_part, last_inputs, weight_last.t())
            return self._run(x.relu_(), first=2) if len(self) > 1 else x

        return network


# By its name in C++: the gradient of a ReLU, into given memory
_threshold_backward = th.ops.aten.threshold_backward.grad_input


def _write_grad(param: th.Tensor, function: Callable[..., th.Tensor], *args: Any) -> None:
    if not param.requires_grad:
        param.grad = None
    elif param.grad is not None and args[0].dtype == param.dtype:
        function(*args, out=param.grad)
    elif param.grad is not None:
        param.grad.copy_(function(*args))
    else:
        param.grad = function(*args).to(param.dtype)


def fuse_mlps(policy: SACPolicy, dtype: th.dtype = th.float32) -> None:
    """
    Replace what can be replaced of a policy's networks by ``FusedMLP``, in place. Parameters and their names stay.

    :param policy: SAC's policy, or one derived from it
    :param dtype: dtype of the hidden layers' products
    """

    memory: dict[tuple, th.Tensor] = {}

    def fused(module: nn.Module) -> nn.Module:
        if FusedMLP.supports(module):
            module = FusedMLP(*cast(nn.Sequential, module)).train(module.training)
        if isinstance(module, FusedMLP):
            module.dtype, module.memory = dtype, memory
        return module

    if isinstance(getattr(policy.actor, "latent_pi", None), nn.Sequential):
        policy.actor.latent_pi = cast(nn.Sequential, fused(policy.actor.latent_pi))
    for critic in (policy.critic, policy.critic_target):
        for i, q_net in enumerate(getattr(critic, "q_networks", [])):
            critic.q_networks[i] = fused(q_net)
            setattr(critic, f"qf{i}", critic.q_networks[i])


def fused_q_networks(critic: ContinuousCritic) -> list[FusedMLP] | None:
    """
    :param critic: Critics
    :return: their networks, if they can all be trained without autograd: what precedes them has nothing to learn
    """
    q_networks = [q_net for q_net in getattr(critic, "q_networks", []) if isinstance(q_net, FusedMLP)]
    learns_features = not critic.share_features_extractor and any(True for _ in critic.features_extractor.parameters())
    is_stock = type(critic).forward is ContinuousCritic.forward and len(q_networks) == len(critic.q_networks)
    return q_networks if is_stock and not learns_features else None


def fused_latent_pi(actor: Actor) -> FusedMLP | None:
    """
    :param actor: Actor
    :return: its hidden layers, if they can be trained without autograd: what precedes them has nothing to learn
    """
    learns_features = any(True for _ in actor.features_extractor.parameters())
    is_stock = type(actor).get_action_dist_params is Actor.get_action_dist_params
    return actor.latent_pi if is_stock and isinstance(actor.latent_pi, FusedMLP) and not learns_features else None


def autocast_module(module: nn.Module, dtype: th.dtype) -> None:
    """
    Run a module's products and convolutions in another dtype, its parameters and outputs staying in float32.

    :param module: Any module that returns a tensor, such as a feature extractor
    :param dtype: dtype of the products
    """
    contexts: list[th.autocast] = []

    def enter(_: nn.Module, args: tuple) -> None:
        device = next((param.device.type for param in module.parameters()), "cpu")
        contexts.append(th.autocast(device, dtype=dtype))
        contexts[-1].__enter__()

    def leave(_: nn.Module, args: tuple, output: th.Tensor) -> th.Tensor:
        contexts.pop().__exit__(None, None, None)
        return output if output is None else output.float()

    if next(module.parameters(), None) is not None:
        module.register_forward_pre_hook(enter)
        # In case of an exception too: then there is no output
        module.register_forward_hook(leave, always_call=True)


def warn_if_slow(dtype: th.dtype, device: th.device) -> None:
    """
    Warn if a CPU would emulate a dtype.

    :param dtype: dtype of the products
    :param device: where they are computed
    """
    if device.type != "cpu" or dtype != th.bfloat16 or not hasattr(th.cpu, "get_capabilities"):
        return
    capabilities = th.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        warnings.warn(
            "precision='bfloat16': this CPU has no instructions for bfloat16 and emulates them, which is slower than "
            "precision='float32'."
        )


class LeanAdam(Adam):
    """
    Torch's Adam, stripped to the case that reinforcement learning uses: one group, no weight decay, no variants.

    The moments of all parameters lie side by side in memory, so that a step is a handful of operations however many
    parameters there are. State dictionary and rounding are Adam's. (Torch's ``fused=True`` is as fast, but rounds otherwise: a
    ReLU that flips then sends a parameter away from SAC's by more than 1e-3 within 150 updates, for two seeds in eight.)

    :param params: Parameters
    :param lr: learning rate
    :param betas: decay of the two moments
    :param eps: term added to the denominator
    """

    # The parameters of the last step, as they lie in memory, and their ids
    _runs: "list[_Run]"
    _laid_out: list[int] | None = None

    @classmethod
    def of(cls, optimizer: OptimizerT) -> "OptimizerT | LeanAdam":
        """
        :param optimizer: Any optimizer
        :return: A lean one in its place and state, or ``optimizer`` itself if it is more than plain Adam
        """
        variants = ("weight_decay", "amsgrad", "maximize", "differentiable", "capturable", "fused")
        if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
            return optimizer
        (group,) = optimizer.param_groups
        if any(group[variant] for variant in variants):
            return optimizer
        lean = cls(group["params"], lr=group["lr"], betas=group["betas"], eps=group["eps"])
        lean.load_state_dict(optimizer.state_dict())
        return lean

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._laid_out = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        # As torch's, without the wrapping for profilers, which takes longer than this
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None if set_to_none or param.grad is None else th.zeros_like(param)

    @th.no_grad()
    def gather_grads(self) -> list[th.Tensor]:
        """
        Bring all gradients side by side. Those that are written in place from now on will be there already.

        :return: all gradients, in as few tensors as possible
        """
        params = [param for param in self.param_groups[0]["params"] if param.grad is not None]
        ids = list(map(id, params))
        if ids != self._laid_out:
            self._runs, self._laid_out = self._lay_side_by_side(params), ids
        for run in self._runs:
            for param, grad in zip(run.params, run.grads, strict=True):
                if param.grad is not grad:
                    param.grad = grad.copy_(cast(th.Tensor, param.grad))
        return [run.grad for run in self._runs]

    @th.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of Adam (https://arxiv.org/abs/1412.6980, algorithm 1)."""
        for hook in self._optimizer_step_pre_hooks.values():
            hook(self, (), {})
        (group,) = self.param_groups
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        self.gather_grads()
        for run in self._runs:
            run.step += scalar(1.0, run.step.dtype)
            step, dtype = run.step[0].item(), run.denom.dtype
            # Plain numbers where they are cheap, see scalar() for the others
            run.exp_avg.lerp_(run.grad, 1 - beta1)
            run.exp_avg_sq.mul_(scalar(beta2, dtype)).addcmul_(run.grad, run.grad, value=1 - beta2)
            denom = th.sqrt(run.exp_avg_sq, out=run.denom)
            denom.div_((1 - beta2**step) ** 0.5).add_(scalar(eps, dtype))
            th._foreach_addcdiv_(run.params, run.exp_avgs, run.denoms, -lr / (1 - beta1**step))
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})

    # Tells the base class not to wrap it for hooks (called above) and the profiler, which costs as much as a third of it
    step.hooked = True  # type: ignore[attr-defined]

    def _lay_side_by_side(self, params: list[th.Tensor]) -> "list[_Run]":
        alike: dict[tuple, list[th.Tensor]] = defaultdict(list)
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = th.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(param), th.zeros_like(param)
            alike[state["step"].item(), param.dtype, param.device].append(param)
        return [_Run(run, [self.state[param] for param in run]) for run in alike.values()]


class _Run:
    """
    Parameters of one dtype and device, updated equally often, and what Adam knows of them side by side in memory.

    :param params: the parameters
    :param states: their states, which become views of the memory of the run
    """

    def __init__(self, params: list[th.Tensor], states: list[dict[str, th.Tensor]]) -> None:
        self.params = params
        self.step = th.stack([state["step"] for state in states])
        self.exp_avg, self.exp_avg_sq = (
            th.cat([state[name].reshape(-1) for state in states]) for name in ("exp_avg", "exp_avg_sq")
        )
        self.grad, self.denom = th.empty_like(self.exp_avg), th.empty_like(self.exp_avg)
        self.exp_avgs, self.grads, self.denoms = map(self._views, (self.exp_avg, self.grad, self.denom))
        views = zip(self.step, self.exp_avgs, self._views(self.exp_avg_sq), strict=True)
        for state, (step, exp_avg, exp_avg_sq) in zip(states, views, strict=True):
            state.update(step=step, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)

    def _views(self, flat: th.Tensor) -> list[th.Tensor]:
        parts = flat.split([param.numel() for param in self.params])
        return [part.view(param.shape) for part, param in zip(parts, self.params, strict=True)]


@functools.lru_cache
def scalar(value: float, dtype: th.dtype) -> th.Tensor:
    """
    A number as a tensor. Torch would convert a plain one anew, in a microsecond or two, each time that it is added to or
    multiplied with a tensor.

    :param value: the number
    :param dtype: dtype of the tensors that it meets
    :return: shape ()
    """
    return th.tensor(value, dtype=dtype)
