"""
The update as a CUDA graph: recorded once, then replayed by the device without the host, which is slower than the GPU at
networks of this size.

What is recorded is ``update.py``. Here is what recording asks for: who may be recorded, a batch that stays where it is, Adam
and alarms that do not wait for the device, and a trial of each graph against the plain update. None of it can be seen from
outside: optimizers are plain while nobody records, and their counts of steps are back on the host when ``train()`` ends.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import Actor
from torch import nn
from torch.distributions import Distribution
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves, tree_map_only

from sb3_pathwise.critics.twin import TwinCritic
from sb3_pathwise.engines.base import Engine
from sb3_pathwise.guards import DeferredChecks
from sb3_pathwise.update import Metrics, update

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

# Updates of each kind before one is recorded: libraries set themselves up at their first call
WARM_UP_UPDATES = 3
# How far a replay may be from the plain update, relative to the step. Sums on a GPU are rounded anew each time
TOLERANCE = 0.05

# By exact type: nothing is known of what a subclass does
_RECORDABLE = (
    *(Actor, ContinuousCritic, FlattenExtractor, NatureCNN, CombinedExtractor),
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Linear, nn.Conv2d, nn.Flatten),
    *(nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.LayerNorm),
)
# What a graph knows as numbers, and who writes to it has changed the update
_CONSTANTS = ("gamma", "tau", "max_grad_norm", "target_entropy", "n_action_samples", "baseline")

Function = Callable[[], Metrics]
# A graph writes gradients where it has always written them
Gradients = list[tuple[th.Tensor, th.Tensor | None]]

_log = logging.getLogger(__name__)


class CudaGraphEngine(Engine):
    """
    The plain update, replayed from a graph as soon as there is one that agrees with it.

    Every kind of update (with or without actor, with or without targets) has its graph. After a few updates it is recorded and
    tried: the same update is done both ways, from the same state with the same random numbers. If recording fails or the
    results differ, all goes on with the plain update, and the reason is logged.

    :param model: The model, for which ``reason_not`` is ``None``
    """

    def __init__(self, model: "ActorCritic") -> None:
        self.failure: str | None = None
        self._recorder = CudaRecorder()
        self._checks = DeferredChecks(model.device)
        self._learning_rates = [th.zeros((), device=model.device, dtype=th.float32) for _ in _groups(model)]
        # Adam's state, and its counts of steps on the device, once there are any
        self._states: list[dict[str, th.Tensor]] = []
        self._steps = th.zeros(0, device=model.device)
        self._constants: list[Any] = []
        self._batches: dict[Hashable, StaticBatch] = {}
        self._graphs: dict[Hashable, tuple[Function, Gradients]] = {}
        self._n_warm_ups: Counter[Hashable] = Counter()

    @staticmethod
    def reason_not(model: "ActorCritic") -> str | None:
        if model.device.type != "cuda":
            return f"the model is on {model.device}"
        if model.device.index not in (None, th.cuda.current_device()):
            return f"the model is on {model.device}, which is not the current device"
        return reason_not_to_record(model)

    def begin(self, model: "ActorCritic") -> None:
        constants: list[Any] = [getattr(model, name) for name in _CONSTANTS]
        if model.log_ent_coef is None:
            # Read by a graph where it was
            constants.append(model.ent_coef_tensor.data_ptr())
        if constants != self._constants:
            self._constants, self._graphs, self._n_warm_ups = constants, {}, Counter()
        self._to_device(model)

    def update(
        self, model: "ActorCritic", replay_data: ReplayBufferSamples, update_actor: bool, update_targets: bool
    ) -> Metrics:
        if self.failure is not None or not self._has_state(model):
            return update(model, replay_data, update_actor, update_targets)
        signature = StaticBatch.signature(replay_data)
        if signature not in self._batches:
            self._batches[signature] = StaticBatch(replay_data)
        batch = self._batches[signature]
        batch.fill(replay_data)
        kind = (signature, update_actor, update_targets)
        if kind in self._graphs:
            graph, own_grads = self._graphs[kind]
            for param, grad in own_grads:
                param.grad = grad
            # One operation; the next replay overwrites the original
            metrics = graph()
            return dict(zip(metrics, th.stack(cast(list[th.Tensor], list(metrics.values()))).unbind(), strict=True))

        def plain() -> Metrics:
            return update(model, batch.samples, update_actor, update_targets)

        grads: Gradients = []

        def recordable() -> Metrics:
            with self._recordable(model):
                metrics = plain()
            optimizers = _optimizers(model)[: None if update_actor else 1]
            grads[:] = [(param, param.grad) for optimizer in optimizers for param in _trained(optimizer)]
            return metrics

        if self._n_warm_ups[kind] < WARM_UP_UPDATES:
            self._n_warm_ups[kind] += 1
            return self._recorder.warm_up(recordable)
        metrics, replay = self._try(model, plain, recordable)
        if replay is not None:
            self._graphs[kind] = (replay, grads)
        return metrics

    def end(self, model: "ActorCritic") -> None:
        for state, step in zip(self._states, self._steps.tolist(), strict=True):
            state["step"].fill_(step)
        self._checks.raise_if_any(model)

    def _try(self, model: "ActorCritic", plain: Function, recordable: Function) -> tuple[Metrics, Function | None]:
        """
        One update, done both ways. The plain one has the last word: of the other no trace is left but its graph, if it agrees.
        """
        self.end(model)
        state = [*_tensors(model), self._steps]
        before, replayed, replay = [tensor.clone() for tensor in state], [], None
        try:
            with th.random.fork_rng([] if model.device.type == "cpu" else [model.device]):
                replay = self._recorder.record(recordable)
                replay()
                replayed = [tensor.clone() for tensor in state]
        except RuntimeError as error:
            # The end of a recording that has failed fails too, and says less
            first = error.__context__ or error
            self.failure = str(first).partition("\n")[0] or type(first).__name__
        self._checks.reset()
        th._foreach_copy_(state, before)
        metrics = plain()
        self._to_device(model)
        difference = _difference(replayed, before, state) if self.failure is None else 0.0
        if difference > TOLERANCE:
            self.failure = f"its replay differs from the plain update by {difference:.0%} of the step"
        if self.failure is None:
            return metrics, replay
        _log.warning("The update is not replayed as a CUDA graph: %s", self.failure)
        self._states, self._steps, self._graphs = [], self._steps[:0], {}
        return metrics, None

    def _has_state(self, model: "ActorCritic") -> bool:
        """Whether every optimizer has taken its first step, which creates its state."""
        if not self._states:
            params = [(optimizer, param) for optimizer in _optimizers(model) for param in _trained(optimizer)]
            if not all(param in optimizer.state for optimizer, param in params):
                return False
            self._states = [optimizer.state[param] for optimizer, param in params]
            self._steps = th.zeros(len(params), device=model.device, dtype=th.float32)
            self._to_device(model)
        return bool(self._states)

    def _to_device(self, model: "ActorCritic") -> None:
        for learning_rate, group in zip(self._learning_rates, _groups(model), strict=True):
            learning_rate.fill_(float(group["lr"]))
        self._steps.copy_(th.tensor([state["step"].item() for state in self._states]))

    @contextmanager
    def _recordable(self, model: "ActorCritic") -> Iterator[None]:
        """A context in which an update does not wait for the device."""
        changes: list[tuple[dict[str, Any], dict[str, Any]]] = [(vars(model), {"check_descent": self._checks.check})]
        for optimizer in _optimizers(model):
            # No step is taken while found_inf is 1: a name of torch's, for mixed precision
            changes.append(
                (vars(optimizer), {"found_inf": self._checks.found_inf, "_warned_capturable_if_run_uncaptured": True})
            )
        for group, learning_rate in zip(_groups(model), self._learning_rates, strict=True):
            changes.append((group, {"fused": True, "capturable": True, "lr": learning_rate}))
        changes += [(state, {"step": step}) for state, step in zip(self._states, self._steps.unbind(), strict=True)]
        before = [(target, {name: target[name] for name in values if name in target}) for target, values in changes]
        validates = Distribution._validate_args
        try:
            Distribution.set_default_validate_args(False)
            for target, values in changes:
                target.update(values)
            yield
        finally:
            Distribution.set_default_validate_args(validates)
            for (target, old), (_, values) in zip(before, changes, strict=True):
                target.update(old)
                for name in values.keys() - old.keys():
                    del target[name]


def reason_not_to_record(model: "ActorCritic") -> str | None:
    """
    :param model: The model, its networks and optimizers being made
    :return: the first reason why its update could not be recorded on any device, or ``None``
    """
    if model.use_sde:
        return "gSDE's exploration matrices are shared with the rollouts"
    if type(model.actor.action_dist) is not SquashedDiagGaussianDistribution:
        return f"{type(model.actor.action_dist).__name__} is not the squashed Gaussian, and may ask the host while it draws"
    if type(model.critic_rule) is not TwinCritic:
        return f"of {type(model.critic_rule).__name__} it is not known whether it can be"
    for name in ("route", "actor_surrogate", "check_descent"):
        function: Any = getattr(type(model), name)
        if not getattr(function, "__module__", "").startswith("sb3_pathwise.") or name in vars(model):
            return f"of its own {name} it is not known whether it can be"
    if any(getattr(torch_module, f"_global_{name}_hooks") for name in ("forward", "forward_pre", "backward", "backward_pre")):
        return "there are global hooks of modules"
    for network in (model.actor, model.critic, model.critic_target):
        for name, module in network.named_modules():
            reason = _reason_not_module(module)
            if reason is not None:
                return f"{name or type(network).__name__} {reason}"
    for optimizer in _optimizers(model):
        if type(optimizer) is not th.optim.Adam or any(group["differentiable"] for group in optimizer.param_groups):
            return f"{type(optimizer).__name__} with these arguments is not plain Adam"
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or _hidden_methods(optimizer):
            return "an optimizer has hooks, or methods of its own"
    return None


def _reason_not_module(module: nn.Module) -> str | None:
    if type(module) not in _RECORDABLE:
        return f"is a {type(module).__name__}, of which it is not known whether it can be"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    if any(param._backward_hooks or param._post_accumulate_grad_hooks for param in module.parameters(recurse=False)):
        return "has hooks of gradients"
    return "has methods of its own" if _hidden_methods(module) else None


def _hidden_methods(instance: Any) -> list[str]:
    return [name for name in vars(instance) if callable(getattr(type(instance), name, None))]


class StaticBatch:
    """
    A batch that lies in the same memory of the device for ever.

    :param like: A batch of the same signature as all that follow
    """

    def __init__(self, like: ReplayBufferSamples) -> None:
        self.samples: ReplayBufferSamples = tree_map_only(th.Tensor, th.clone, like)

    @staticmethod
    def signature(samples: ReplayBufferSamples) -> Hashable:
        """
        :param samples: A batch
        :return: equal for batches that can take each other's place
        """
        return tuple((leaf.shape, leaf.dtype) if isinstance(leaf, th.Tensor) else leaf for leaf in tree_leaves(samples))

    def fill(self, samples: ReplayBufferSamples) -> None:
        """
        :param samples: A batch, on any device
        """
        ours, theirs = (
            [leaf for leaf in tree_leaves(batch) if isinstance(leaf, th.Tensor)] for batch in (self.samples, samples)
        )
        th._foreach_copy_(ours, theirs)


class CudaRecorder:
    """Records CUDA graphs (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/)."""

    def warm_up(self, function: Function) -> Metrics:
        """
        :param function: To be called on a stream of its own
        :return: what it returns
        """
        stream = th.cuda.Stream()
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            results = function()
        th.cuda.current_stream().wait_stream(stream)
        return results

    def record(self, function: Function) -> Function:
        """
        :param function: To be recorded; torch registers the default random generator
        :return: its replay
        """
        graph = th.cuda.CUDAGraph()
        generator = th.cuda.default_generators[th.cuda.current_device()]
        spare = generator.clone_state()
        try:
            # The outer context, because a recording that fails leaves its own stream behind
            with th.cuda.stream(th.cuda.current_stream()), th.cuda.graph(graph):
                results = function()
        except RuntimeError:
            # and a generator that believes to be recorded still
            generator.graphsafe_set_state(spare)
            raise

        def replay() -> Metrics:
            graph.replay()
            return results

        return replay


def _optimizers(model: "ActorCritic") -> list[th.optim.Optimizer]:
    optimizers = [model.critic.optimizer, model.actor.optimizer, model.ent_coef_optimizer]
    return [optimizer for optimizer in optimizers if optimizer is not None]


def _groups(model: "ActorCritic") -> list[dict[str, Any]]:
    return [group for optimizer in _optimizers(model) for group in optimizer.param_groups]


def _trained(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]


def _tensors(model: "ActorCritic") -> list[th.Tensor]:
    """:return: all that an update writes to, but for counts of steps"""
    tensors = list(model.policy.state_dict().values())
    if model.log_ent_coef is not None:
        tensors.append(model.log_ent_coef.detach())
    for optimizer in _optimizers(model):
        tensors += [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    return tensors


def _difference(actual: list[th.Tensor], before: list[th.Tensor], expected: list[th.Tensor]) -> float:
    """:return: for the worst tensor, how far it is from the expected one over how far that is from the one before"""
    worst = 0.0
    for got, old, new in zip(actual, before, expected, strict=True):
        difference, step = (got - new).double().norm().item(), (new - old).double().norm().item()
        worst = max(worst, difference / max(step, 1e-12)) if math.isfinite(difference) else math.inf
    return worst
