"""
An update as a CUDA graph: recorded once, then replayed by the device without the host, which is slower than the GPU at
networks of this size.

Here is what recording asks for: who may be recorded, a batch that stays where it is, an Adam without the host, and a trial of
each graph against the plain update. What an update does is in ``learner.py``, and is the same with and without a graph.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol, cast

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import Actor, ContinuousCritic
from torch import nn

from sb3_pathwise.fast import DropInAdam, FusedMLP, is_plain_adam
from sb3_pathwise.guards import DeferredChecks

Metrics = dict[str, th.Tensor]
Update = Callable[[ReplayBufferSamples, bool, bool], Metrics]

# Plain updates of each kind before one is recorded: libraries set themselves up at their first call
WARM_UP_UPDATES = 3
# How far a replay may be from the plain update, relative to the step. Sums on a GPU are rounded anew each time
TOLERANCE = 0.05
# Bytes: torch's tensors of any dtype may begin here
ALIGNMENT = 16

_CAPTURABLE_MODULES = (
    *(Actor, ContinuousCritic, FlattenExtractor, NatureCNN, CombinedExtractor, FusedMLP),
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Linear, nn.Conv2d, nn.Flatten),
    *(nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.LeakyReLU, nn.SiLU, nn.LayerNorm),
)

_log = logging.getLogger(__name__)


def reason_not_to_capture(model: SAC) -> str | None:
    """
    :param model: The model, its networks and optimizers being made
    :return: Why its update is not to be recorded, or ``None`` if it is
    """
    if model.device.type != "cuda":
        return f"it runs on {model.device}"
    return reason_not_to_record(model)


def reason_not_to_record(model: SAC) -> str | None:
    """
    :param model: The model, its networks and optimizers being made
    :return: Why its update could not be recorded on any device, or ``None``
    """
    if model.use_sde:
        return "gSDE's exploration matrices are shared with the rollouts"
    if getattr(model.policy, "distribution", "squashed_gaussian") != "squashed_gaussian":
        return "distributions other than the squashed Gaussian ask the host while they draw"
    for network in (model.actor, model.critic, model.critic_target):
        for name, module in network.named_modules():
            # By exact type: nothing is known of what a subclass does
            if type(module) not in _CAPTURABLE_MODULES:
                return f"of {type(module).__name__} ({name or 'the network itself'}) it is not known whether it can be"
    optimizers = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
    for optimizer in filter(None, optimizers):
        if not is_plain_adam(optimizer):
            return f"{type(optimizer).__name__} with these arguments is not plain Adam"
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return "an optimizer has hooks"
    return None


class CapturableAdam(DropInAdam):
    """
    Torch's fused Adam with its learning rate and its counts of steps on the device. State dictionaries are plain Adam's.

    :param params: Parameters
    :param lr: learning rate
    :param betas: decay of the two moments
    :param eps: term added to the denominator
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        self.n_loads = 0
        self._make_capturable()

    def _make_capturable(self) -> None:
        (group,) = self.param_groups
        device = group["params"][0].device
        group["fused"] = True
        # Torch has nothing to capture on a CPU
        group["capturable"] = device.type == "cuda"
        if not hasattr(self, "lr"):
            self.lr = th.zeros((), device=device)
        self.lr.fill_(float(group["lr"]))
        for state in self.state.values():
            state["step"] = state["step"].to(device, th.float32)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._make_capturable()
        # Its tensors are others now
        self.n_loads += 1

    def state_dict(self) -> dict[str, Any]:
        plain = super().state_dict()
        plain["param_groups"] = [group | {"fused": None, "capturable": False} for group in plain["param_groups"]]
        plain["state"] = {key: state | {"step": state["step"].cpu()} for key, state in plain["state"].items()}
        return plain

    def follow_schedule(self) -> None:
        """Bring the learning rate that SB3 has set to the device. Not to be recorded."""
        self.lr.fill_(self.param_groups[0]["lr"])

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """
        One step, with the learning rate on the device; none if ``found_inf`` is 1, see ``DeferredChecks``.

        :param closure: Not used
        """
        (group,) = self.param_groups
        learning_rate, group["lr"] = group["lr"], self.lr
        try:
            super().step()
        finally:
            group["lr"] = learning_rate


class StaticBatch:
    """
    A batch that lies in the same memory of the device for ever, and is filled by one copy from pinned memory.

    :param like: A batch on the CPU, of the same shapes as all that follow
    :param device: where to
    """

    def __init__(self, like: ReplayBufferSamples, device: th.device) -> None:
        tensors = list(_tensors(like))
        offsets, end = [], 0
        for tensor in tensors:
            offsets.append(end)
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self._host = th.empty(end, dtype=th.uint8, pin_memory=device.type == "cuda")
        self._device = th.empty(end, dtype=th.uint8, device=device)
        self._host_views, device_views = (
            [
                flat[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                for tensor, offset in zip(tensors, offsets, strict=True)
            ]
            for flat in (self._host, self._device)
        )
        self.samples = _with_tensors(like, iter(device_views))
        self._copied = th.cuda.Event() if device.type == "cuda" else None

    @staticmethod
    def signature(samples: ReplayBufferSamples) -> Hashable:
        """
        :param samples: A batch
        :return: shapes and dtypes: equal for batches that can take each other's place
        """
        return tuple((tensor.shape, tensor.dtype) for tensor in _tensors(samples))

    def fill(self, samples: ReplayBufferSamples) -> None:
        """
        :param samples: A batch on the CPU
        """
        if self._copied is not None:
            # The last copy may not have begun
            self._copied.synchronize()
        for view, tensor in zip(self._host_views, _tensors(samples), strict=True):
            view.copy_(tensor)
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _tensors(samples: ReplayBufferSamples) -> Iterator[th.Tensor]:
    for part in samples:
        if isinstance(part, dict):
            yield from part.values()
        elif part is not None:
            yield part


def _with_tensors(samples: ReplayBufferSamples, tensors: Iterator[th.Tensor]) -> ReplayBufferSamples:
    parts = [
        {key: next(tensors) for key in part} if isinstance(part, dict) else None if part is None else next(tensors)
        for part in samples
    ]
    return type(samples)(*cast(list[Any], parts))


def sample_on_host(replay_buffer: ReplayBuffer, batch_size: int, env: Any) -> ReplayBufferSamples:
    """
    :param replay_buffer: Any of SB3's
    :param batch_size: Transitions
    :param env: VecNormalize, or ``None``
    :return: A batch on the CPU, whatever the buffer's device
    """
    device, replay_buffer.device = replay_buffer.device, th.device("cpu")
    try:
        return replay_buffer.sample(batch_size, env=env)
    finally:
        replay_buffer.device = device


class Recorder(Protocol):
    """Records what is done on a device."""

    def warm_up(self, function: Callable[[], Metrics]) -> Metrics:
        """
        :param function: To be called where it will be recorded later
        :return: what it returns
        """
        ...

    def record(self, function: Callable[[], Metrics]) -> Callable[[], Metrics]:
        """
        :param function: To be recorded
        :return: the same function, replayed. Its results are overwritten by the next replay
        """
        ...


class CudaRecorder:
    """Records CUDA graphs (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/)."""

    def warm_up(self, function: Callable[[], Metrics]) -> Metrics:
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

    def record(self, function: Callable[[], Metrics]) -> Callable[[], Metrics]:
        """
        :param function: To be recorded; torch registers the default random generator
        :return: its replay
        """
        graph = th.cuda.CUDAGraph()
        with th.cuda.graph(graph):
            results = function()

        def replay() -> Metrics:
            graph.replay()
            return results

        return replay


class GraphedUpdate:
    """
    The update of a model, replayed from a graph as soon as there is one that agrees with it.

    Every kind of update (with or without actor, with or without targets) has its graph. After a few plain updates it is
    recorded and tried: the same update is done both ways, from the same state with the same random numbers. If recording fails
    or the results differ, all goes on without graphs, and the reason is logged.

    :param model: The model, its Adams being ``CapturableAdam``
    :param update: What is to be replayed
    :param checks: The alarms that ``update`` sets
    :param recorder: Who records
    """

    def __init__(self, model: SAC, update: Update, checks: DeferredChecks, recorder: Recorder | None = None) -> None:
        self.model = model
        self.update = update
        self.checks = checks
        self.recorder = recorder or CudaRecorder()
        self.failure: str | None = None
        self._batches: dict[Hashable, StaticBatch] = {}
        self._graphs: dict[Hashable, Callable[[], Metrics]] = {}
        self._n_plain: Counter[Hashable] = Counter()

    def __call__(self, samples: ReplayBufferSamples, update_actor: bool, update_targets: bool) -> Metrics:
        """
        :param samples: Batch of transitions, on the CPU
        :param update_actor: Whether the actor and the temperature take a step too
        :param update_targets: Whether the target networks follow
        :return: what to log, scalars on the device
        """
        signature = StaticBatch.signature(samples)
        if signature not in self._batches:
            self._batches[signature] = StaticBatch(samples, self.model.device)
        batch = self._batches[signature]
        batch.fill(samples)

        def update() -> Metrics:
            return self.update(batch.samples, update_actor, update_targets)

        # Graphs know addresses: those of another optimizer, or of a state since replaced, are of no use
        memory = tuple((id(optimizer), optimizer.n_loads) for optimizer in self._optimizers())
        kind = (signature, update_actor, update_targets, memory)
        if self.failure is not None:
            return update()
        if self._n_plain[kind] < WARM_UP_UPDATES:
            self._n_plain[kind] += 1
            return self.recorder.warm_up(update)
        if kind not in self._graphs:
            return self._record(kind, update)
        return _copy(self._graphs[kind]())

    def follow_schedules(self) -> None:
        """To be called when SB3 has set the learning rates."""
        for optimizer in self._optimizers():
            optimizer.follow_schedule()

    def _record(self, kind: Hashable, update: Callable[[], Metrics]) -> Metrics:
        state, before = self._state(), [tensor.clone() for tensor in self._state()]
        generator = _get_generator_state(self.model.device)
        metrics = _copy(update())
        expected = [tensor.clone() for tensor in state]
        generator_after = _get_generator_state(self.model.device)
        self._forget_casts()
        try:
            _restore(state, before)
            _set_generator_state(self.model.device, generator)
            graph = self.recorder.record(update)
            _restore(state, before)
            _set_generator_state(self.model.device, generator)
            results = _copy(graph())
            difference = _difference(state, before, expected)
        except RuntimeError as error:
            self.failure = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            if difference > TOLERANCE:
                self.failure = f"its replay differs from the plain update by {difference:.0%} of the step"
        if self.failure is not None:
            _log.warning("The update is not replayed as a CUDA graph: %s", self.failure)
            self._graphs.clear()
            _restore(state, expected)
            _set_generator_state(self.model.device, generator_after)
            self._forget_casts()
            return metrics
        self._graphs[kind] = graph
        return results

    def _optimizers(self) -> list[CapturableAdam]:
        optimizers = [self.model.critic.optimizer, self.model.actor.optimizer, self.model.ent_coef_optimizer]
        return [cast(CapturableAdam, optimizer) for optimizer in optimizers if optimizer is not None]

    def _state(self) -> list[th.Tensor]:
        state = list(self.model.policy.state_dict().values())
        if self.model.log_ent_coef is not None:
            state.append(self.model.log_ent_coef.detach())
        for optimizer in self._optimizers():
            for param_state in optimizer.state.values():
                state += param_state.values()
        return state

    def _forget_casts(self) -> None:
        for module in self.model.policy.modules():
            if isinstance(module, FusedMLP):
                module.forget_casts()


def _copy(metrics: Metrics) -> Metrics:
    # One operation; the next replay overwrites the original
    return dict(zip(metrics, th.stack(list(metrics.values())).unbind(), strict=True))


def _restore(state: list[th.Tensor], values: list[th.Tensor]) -> None:
    with th.no_grad():
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)


def _difference(state: list[th.Tensor], before: list[th.Tensor], expected: list[th.Tensor]) -> float:
    """:return: for the worst tensor, how far it is from the expected one over how far that is from the one before"""
    worst = 0.0
    for actual, old, new in zip(state, before, expected, strict=True):
        difference, step = (actual - new).double().norm().item(), (new - old).double().norm().item()
        worst = max(worst, difference / max(step, 1e-12)) if math.isfinite(difference) else math.inf
    return worst


def _get_generator_state(device: th.device) -> th.Tensor:
    return th.cuda.get_rng_state(device) if device.type == "cuda" else th.get_rng_state()


def _set_generator_state(device: th.device, state: th.Tensor) -> None:
    if device.type == "cuda":
        th.cuda.set_rng_state(state, device)
    else:
        th.set_rng_state(state)
