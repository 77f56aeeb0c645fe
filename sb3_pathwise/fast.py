"""
The two parts of an update that stock modules make slow on small networks: multilayer perceptrons and Adam.

Both are drop-in: same parameters, same state dictionaries, same arithmetic in float32, to the last bit, so that PathwiseAC
stays SAC. What they save is bookkeeping and memory traffic. No reinforcement learning here.
"""

import functools
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

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
# Parameters to update at a time: with gradient, moments and denominator they fill 1.5 MB of cache
CHUNK_SIZE = 75_000

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
        self._casts: dict[th.Tensor, tuple[int, th.Tensor]] = {}

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
        for i in range(0, len(self), 2):
            linear = cast(nn.Linear, self[i])
            dtype = self._dtype_for(x, linear.weight)
            x = F.linear(x.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))
            if i < len(self) - 1:
                # In place: the product is not needed for the gradient, and the cache holds it
                x = x.relu_()
        return x.float()

    def _dtype_for(self, x: th.Tensor, weight: th.Tensor) -> th.dtype:
        if self.dtype is th.float32:
            return th.float32
        return self.dtype if min(len(x), *weight.shape) >= MIN_WIDTH else th.float32

    @property
    def layers(self) -> list[tuple[th.Tensor, th.Tensor]]:
        """:return: weight and bias of every layer"""
        # nn.Module's attributes take their time
        params = [child._parameters for child in self._modules.values() if child is not None and child._parameters]
        return [(cast(th.Tensor, param["weight"]), cast(th.Tensor, param["bias"])) for param in params]

    @th.no_grad()
    def evaluate(self, x: th.Tensor, use: object = None, first: th.Tensor | None = None) -> list[th.Tensor]:
        """
        The network without a graph, for ``backward``.

        :param x: Inputs, shape (B, in_features); with ``first``, the last inputs only
        :param use: Name of the memory for the outputs of hidden layers, a ReLU at the end making it one: the next call with
            the same name overwrites them, whichever network of the policy it is for
        :param first: What ``first_layer`` returned for the other inputs
        :return: the layers' inputs, a ReLU being part of the layer before, and the output, which alone is float32 in any case
        """
        activations, layers = [], self.layers
        n_relus = len(self) // 2
        for i, (weight, bias) in enumerate(layers):
            dtype = self._dtype_for(x, weight)
            if x.dtype is not dtype:
                x = self._buffer((use, "input"), i, x.shape, x, dtype).copy_(x)
            activations.append(x)
            out = self._buffer(use, i, (len(x), len(bias)), x) if i < n_relus else None
            if i == 0 and first is not None:
                x = th.addmm(first, x, weight[:, -x.shape[1] :].t(), out=out)
            else:
                x = th.addmm(self._as(bias, dtype), x, self._as(weight, dtype).t(), out=out)
            if i < n_relus:
                x.relu_()
        return [*activations, x.float()]

    @th.no_grad()
    def first_layer(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: First inputs of the network, shape (B, features_dim)
        :return: Their part of the first layer, shape (B, out_features), to be computed once for many last inputs
        """
        linear = cast(nn.Linear, self[0])
        return F.linear(features, linear.weight[:, : features.shape[1]], linear.bias)

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
            dtype = x.dtype
            if grad.dtype is not dtype:
                grad = self._buffer("grad", i, grad.shape, grad, dtype).copy_(grad)
            if weights:
                _write_grad(weight, th.mm, grad.t(), x)
            if i > 0 or inputs:
                weight = self._as(weight, dtype)
                grad = th.mm(grad, weight, out=self._buffer("grad", i - 1, (len(grad), weight.shape[1]), grad))
        return grad if inputs else None

    def _as(self, param: th.Tensor, dtype: th.dtype) -> th.Tensor:
        """:return: the parameter in another dtype, converted anew only if it has changed"""
        if param.dtype is dtype:
            return param
        version, converted = self._casts.get(param, (-1, None))
        if converted is None or version != param._version:
            converted = param.to(dtype) if converted is None else converted.copy_(param)
            self._casts[param] = (param._version, converted)
        return converted

    def forget_casts(self) -> None:
        """To be called where parameters may have been written to behind torch's back, as through ``param.data``."""
        self._casts = {param: (-1, converted) for param, (_, converted) in self._casts.items()}

    def _buffer(
        self, use: object, layer: int, shape: tuple[int, ...], like: th.Tensor, dtype: th.dtype | None = None
    ) -> th.Tensor:
        # By its exact shape, and for ever: graphs of the device know its address
        key = (use, layer, *shape, dtype or like.dtype)
        buffer = self.memory.get(key)
        if buffer is None:
            buffer = self.memory[key] = like.new_empty(shape, dtype=dtype)
        return buffer


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


def fuse_mlps(policy: SACPolicy, dtype: th.dtype = th.float32) -> list[FusedMLP]:
    """
    Replace what can be replaced of a policy's networks by ``FusedMLP``, in place. Parameters and their names stay.

    :param policy: SAC's policy, or one derived from it
    :param dtype: dtype of the hidden layers' products
    :return: the new networks
    """
    networks: list[FusedMLP] = []
    memory: dict[tuple, th.Tensor] = {}

    def fused(module: nn.Module) -> nn.Module:
        if FusedMLP.supports(module):
            module = FusedMLP(*cast(nn.Sequential, module)).train(module.training)
        if isinstance(module, FusedMLP):
            module.dtype, module.memory = dtype, memory
            networks.append(module)
        return module

    if isinstance(getattr(policy.actor, "latent_pi", None), nn.Sequential):
        policy.actor.latent_pi = cast(nn.Sequential, fused(policy.actor.latent_pi))
    for critic in (policy.critic, policy.critic_target):
        for i, q_net in enumerate(getattr(critic, "q_networks", [])):
            critic.q_networks[i] = fused(q_net)
            setattr(critic, f"qf{i}", critic.q_networks[i])
    return networks


def fused_q_networks(critic: ContinuousCritic) -> list[FusedMLP] | None:
    """
    :param critic: Critics
    :return: their networks, if they can all be trained without autograd: what precedes them has nothing to learn
    """
    q_networks = [q_net for q_net in getattr(critic, "q_networks", []) if isinstance(q_net, FusedMLP)]
    learns_features = not critic.share_features_extractor and any(True for _ in critic.features_extractor.parameters())
    is_stock = type(critic).forward is ContinuousCritic.forward and len(q_networks) == len(critic.q_networks)
    return q_networks if is_stock and not learns_features else None


class GaussianNetwork:
    """
    SAC's actor, from features to the mean and the log standard deviation of a Gaussian, differentiated by hand.

    :param actor: Actor, for which ``supports`` is true
    """

    def __init__(self, actor: Actor) -> None:
        self.latent_pi = cast(FusedMLP, actor.latent_pi)
        self.heads = [cast(nn.Linear, head) for head in (actor.mu, actor.log_std)]
        self.params = {*self.latent_pi.parameters(), *actor.mu.parameters(), *cast(nn.Linear, actor.log_std).parameters()}

    @staticmethod
    def supports(actor: Actor) -> bool:
        """
        :param actor: Actor
        :return: Whether it is SAC's own, and all that it learns is in its hidden layers and heads
        """
        heads = [getattr(actor, name, None) for name in ("mu", "log_std")]
        parts_are_stock = isinstance(actor.latent_pi, FusedMLP) and all(type(head) is nn.Linear for head in heads)
        learns_features = any(True for _ in actor.features_extractor.parameters())
        return parts_are_stock and not learns_features and type(actor).get_action_dist_params is Actor.get_action_dist_params

    @th.no_grad()
    def evaluate(self, features: th.Tensor, use: object) -> tuple[list[th.Tensor], list[th.Tensor]]:
        """
        :param features: shape (B, features_dim)
        :param use: Name of the memory for the hidden layers, see ``FusedMLP.evaluate``
        :return: for ``backward``, what ``FusedMLP.evaluate`` returned; mean and log standard deviation, before SAC clamps it,
            each of shape (B, d)
        """
        activations = self.latent_pi.evaluate(features, use)
        return activations, [F.linear(activations[-1], head.weight, head.bias) for head in self.heads]

    @th.no_grad()
    def backward(self, grads: Sequence[th.Tensor], activations: list[th.Tensor]) -> None:
        """
        Write the gradients of all parameters, in place of those that they have.

        :param grads: Gradients with respect to mean and log standard deviation
        :param activations: What ``evaluate`` returned
        """
        latent, grad_latent = activations[-1], None
        for i, (head, grad) in enumerate(zip(self.heads, grads, strict=True)):
            _write_grad(head.bias, th.sum, grad, 0)
            _write_grad(head.weight, th.mm, grad.t(), latent)
            through_head = th.mm(grad, head.weight, out=self.latent_pi._buffer(("head", i), 0, latent.shape, latent))
            grad_latent = through_head if grad_latent is None else grad_latent.add_(through_head)
        self.latent_pi.backward(cast(th.Tensor, grad_latent), activations, weights=True, inputs=False)


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


def is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: Any optimizer
    :return: Whether it is torch's Adam with one group and no variants
    """
    variants = ("weight_decay", "amsgrad", "maximize", "differentiable", "capturable", "fused")
    if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
        return False
    return not any(optimizer.param_groups[0][variant] for variant in variants)


class DropInAdam(Adam):
    """Adam that can take the place of torch's, state and all."""

    @classmethod
    def of(cls, optimizer: OptimizerT) -> "OptimizerT | DropInAdam":
        """
        :param optimizer: Any optimizer
        :return: One of this class in its place and state, or ``optimizer`` itself if it is more than plain Adam
        """
        if not is_plain_adam(optimizer):
            return optimizer
        (group,) = optimizer.param_groups
        substitute = cls(group["params"], lr=group["lr"], betas=group["betas"], eps=group["eps"])
        substitute.load_state_dict(optimizer.state_dict())
        return substitute


class LeanAdam(DropInAdam):
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
            step, dtype = run.step[0].item(), run.step.dtype
            # Plain numbers where they are cheap, see scalar() for the others
            for chunk in run.chunks:
                chunk.exp_avg.lerp_(chunk.grad, 1 - beta1)
                chunk.exp_avg_sq.mul_(scalar(beta2, dtype)).addcmul_(chunk.grad, chunk.grad, value=1 - beta2)
                th.sqrt(chunk.exp_avg_sq, out=chunk.denom).div_((1 - beta2**step) ** 0.5).add_(scalar(eps, dtype))
                th._foreach_addcdiv_(chunk.params, chunk.exp_avgs, chunk.denoms, -lr / (1 - beta1**step))
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
        exp_avg, exp_avg_sq = (th.cat([state[name].reshape(-1) for state in states]) for name in ("exp_avg", "exp_avg_sq"))
        self.grad = th.empty_like(exp_avg)
        exp_avgs, exp_avg_sqs, self.grads = (_views(flat, params) for flat in (exp_avg, exp_avg_sq, self.grad))
        for i, state in enumerate(states):
            state.update(step=self.step[i], exp_avg=exp_avgs[i], exp_avg_sq=exp_avg_sqs[i])

        bounds = [0]
        sizes = [param.numel() for param in params]
        for i in range(1, len(params)):
            if sum(sizes[bounds[-1] : i + 1]) > CHUNK_SIZE:
                bounds.append(i)
        self.chunks = []
        denom = th.empty(0)
        for first, last in itertools.pairwise([*bounds, len(params)]):
            part = slice(sum(sizes[:first]), sum(sizes[:last]))
            n_elements = part.stop - part.start
            if len(denom) < n_elements:
                denom = th.empty_like(exp_avg[part])
            denoms = _views(denom[:n_elements], params[first:last])
            flat = (exp_avg[part], exp_avg_sq[part], self.grad[part], denom[:n_elements])
            self.chunks.append(_Chunk(params[first:last], exp_avgs[first:last], denoms, *flat))


class _Chunk(NamedTuple):
    """Neighbours in a run, few enough to stay in the cache from one operation of a step to the next."""

    params: list[th.Tensor]
    exp_avgs: list[th.Tensor]
    denoms: list[th.Tensor]
    exp_avg: th.Tensor
    exp_avg_sq: th.Tensor
    grad: th.Tensor
    denom: th.Tensor


def _views(flat: th.Tensor, params: list[th.Tensor]) -> list[th.Tensor]:
    parts = flat.split([param.numel() for param in params])
    return [part.view(param.shape) for part, param in zip(parts, params, strict=True)]


@functools.lru_cache
def scalar(value: float, dtype: th.dtype, device: th.device | None = None) -> th.Tensor:
    """
    A number as a tensor. Torch would convert a plain one anew, in a microsecond or two, each time that it is added to or
    multiplied with a tensor.

    :param value: the number
    :param dtype: dtype of the tensors that it meets
    :param device: where, if not on the CPU, from where it may meet tensors of any device but in ``th._foreach`` functions
    :return: shape ()
    """
    return th.tensor(value, dtype=dtype, device=device)
