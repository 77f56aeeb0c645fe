"""
What an update needs in order to be recorded as a CUDA graph. All but the recording itself is tested without a GPU: there a
recorder takes its place that calls the function again. Where there is a GPU, the graph is compared with the plain update.
"""

import copy
import gc
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch.profiler import profile

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC
from sb3_pathwise.engines import choose_engine, cuda_graph
from sb3_pathwise.engines.cuda_graph import WARM_UP_UPDATES, CudaGraphEngine, StaticBatch, reason_not_to_record
from sb3_pathwise.guards import NonFiniteError
from sb3_pathwise.routes import pathwise

DICTIONARY: dict[str, Any] = {
    "env": "PointDict-v0",
    "policy": "MultiInputPolicy",
    "policy_kwargs": {"features_extractor_class": CombinedExtractor},
}
Function = Callable[[], dict[str, th.Tensor]]
MakeModel = Callable[..., Any]


class Repeat:
    """Replays a function by calling it."""

    n_records = n_replays = 0

    def warm_up(self, function: Function) -> dict[str, th.Tensor]:
        return function()

    def record(self, function: Function) -> Function:
        Repeat.n_records += 1

        def replay() -> dict[str, th.Tensor]:
            Repeat.n_replays += 1
            return function()

        return replay


class Refuse(Repeat):
    def record(self, function: Function) -> Function:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            # As a GPU does, seen on an H100
            raise RuntimeError("operation failed due to a previous error during capture")


class OtherNoise(Repeat):
    def record(self, function: Function) -> Function:
        def replay() -> dict[str, th.Tensor]:
            th.rand(1)
            return function()

        return replay


class Watch(Repeat):
    """Looks for operations that wait for a GPU. The optimizer's own kernels do it on a CPU alone."""

    waited: list[str]

    def warm_up(self, function: Function) -> dict[str, th.Tensor]:
        with profile() as profiler:
            results = function()
        for event in profiler.events():
            if event.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"):
                parents = []
                while event is not None:
                    parents.append(event.name)
                    event = event.cpu_parent
                if not any(name.startswith("Optimizer.step") for name in parents):
                    Watch.waited.append(" < ".join(parents))
        return results


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch, make_model: MakeModel) -> MakeModel:
    """``make_model`` with an engine that replays its updates, on a CPU."""
    monkeypatch.setattr(CudaGraphEngine, "reason_not", staticmethod(reason_not_to_record))
    monkeypatch.setattr(cuda_graph, "CudaRecorder", Repeat)
    Repeat.n_records = Repeat.n_replays = 0
    return lambda cls, **kwargs: make_model(cls, engine="cuda_graph", **copy.deepcopy(kwargs))


def engine_of(model: Any) -> CudaGraphEngine:
    engine = choose_engine(model)
    assert isinstance(engine, CudaGraphEngine)
    return engine


def parameters(model: SAC) -> th.Tensor:
    return th.cat([param.detach().flatten() for param in model.policy.parameters()])


@pytest.mark.parametrize(
    "kwargs, n_kinds, n_until_states",
    [
        ({}, 1, 1),
        ({"policy_delay": 2, "max_grad_norm": 0.5}, 2, 2),
        # The rest of the first train() warms up an engine that gives way to one that knows the states
        ({"gradient_steps": 4, "target_update_interval": 2}, 2, 4),
        ({"ent_coef": 0.2, "n_steps": 3}, 1, 1),
        ({"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1, "amsgrad": True}}}, 1, 1),
        (DICTIONARY, 1, 1),
    ],
)
def test_replayed_is_plain(
    algorithm: type[SAC],
    make_model: MakeModel,
    graphed: MakeModel,
    kwargs: dict[str, Any],
    n_kinds: int,
    n_until_states: int,
) -> None:
    model = graphed(algorithm, **kwargs).learn(60)
    engine = engine_of(model)
    assert engine.failure is None and len(engine._graphs) == Repeat.n_records == n_kinds
    n_updates = model._n_updates
    assert Repeat.n_replays == n_updates - n_until_states - n_kinds * WARM_UP_UPDATES
    plain = make_model(algorithm, engine="eager", **copy.deepcopy(kwargs)).learn(60)
    assert plain._n_updates == n_updates
    # Adam's rounding differs
    assert 0 < (parameters(model) - parameters(plain)).abs().max() < 1e-4
    for name, value in plain.logger.name_to_value.items():
        if name.startswith("train/"):
            assert model.logger.name_to_value[name] == pytest.approx(value, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("kwargs", [{}, {"policy_delay": 2, "max_grad_norm": 0.5}, DICTIONARY])
def test_waits_for_nothing(
    algorithm: type[SAC], graphed: MakeModel, monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, Any]
) -> None:
    Watch.waited = []
    monkeypatch.setattr(cuda_graph, "CudaRecorder", Watch)
    model = graphed(algorithm, **kwargs).learn(40)
    assert engine_of(model)._n_warm_ups and not Watch.waited


@pytest.mark.parametrize("recorder, message", [(Refuse, "not permitted when"), (OtherNoise, "differs from the plain update")])
def test_falls_back(
    make_model: MakeModel,
    graphed: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recorder: type[Repeat],
    message: str,
) -> None:
    monkeypatch.setattr(cuda_graph, "CudaRecorder", recorder)
    monkeypatch.setattr(cuda_graph, "WARM_UP_UPDATES", 0)
    with caplog.at_level(logging.WARNING):
        model = graphed(PathwiseAC).learn(40)
    assert [record.getMessage() for record in caplog.records if message in record.getMessage()]
    assert not engine_of(model)._graphs
    # The trial has left no trace, neither in a weight nor in the random numbers
    assert th.equal(parameters(model), parameters(make_model(PathwiseAC, engine="eager").learn(40)))


def test_alarm(graphed: MakeModel) -> None:
    model = graphed(PathwiseAC, learning_rate=1e-2).learn(40)
    model.replay_buffer.rewards[:] = np.nan
    before = [param.detach().clone() for param in model.critic.parameters()]
    steps = [state["step"].item() for state in model.critic.optimizer.state.values()]
    with pytest.raises(NonFiniteError, match=r"reward is not finite .*seen in target"):
        model.train(gradient_steps=2, batch_size=16)
    # No step is taken from then on, not even the actor's
    assert all(th.equal(one, other) for one, other in zip(model.critic.parameters(), before, strict=True))
    assert steps == [state["step"].item() for state in model.critic.optimizer.state.values()]
    assert th.isfinite(parameters(model)).all()
    # It goes on when the cause is gone
    model.replay_buffer.rewards[:] = 0
    model.train(gradient_steps=1, batch_size=16)
    assert not th.equal(next(model.critic.parameters()), before[0])


def test_alarm_while_it_is_tried(graphed: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "WARM_UP_UPDATES", 10**6)
    model = graphed(PathwiseAC).learn(40)
    monkeypatch.setattr(cuda_graph, "WARM_UP_UPDATES", 0)
    before, rewards = parameters(model), model.replay_buffer.rewards.copy()
    model.replay_buffer.rewards[:] = np.nan
    with pytest.raises(NonFiniteError, match="reward is not finite"):
        model.train(gradient_steps=1, batch_size=16)
    assert th.equal(parameters(model), before)
    model.replay_buffer.rewards[:] = rewards
    model.train(gradient_steps=2, batch_size=16)
    assert len(engine_of(model)._graphs) == 1


def test_learning_rate_follows_its_schedule(graphed: MakeModel) -> None:
    rates = iter([1e-3] * 100)
    model = graphed(PathwiseAC, learning_rate=lambda _: next(rates)).learn(40)
    rates = iter([0.0] * 100)
    before = [param.detach().clone() for param in model.actor.parameters()]
    n_replays = Repeat.n_replays
    model.train(gradient_steps=1, batch_size=16)
    assert Repeat.n_replays == n_replays + 1
    assert all(th.equal(one, other) for one, other in zip(model.actor.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "name, value", [("gamma", 0.5), ("tau", 0.1), ("max_grad_norm", 1.0), ("ent_coef_tensor", th.ones(()))]
)
def test_new_constant_needs_a_new_graph(graphed: MakeModel, name: str, value: Any) -> None:
    model = graphed(PathwiseAC, ent_coef=0.1).learn(40)
    model.train(gradient_steps=1, batch_size=16)
    assert Repeat.n_records == 1
    setattr(model, name, value)
    model.train(gradient_steps=WARM_UP_UPDATES + 1, batch_size=16)
    assert Repeat.n_records == 2


def test_new_state_needs_a_new_graph(graphed: MakeModel, tmp_path: Any) -> None:
    model = graphed(PathwiseAC).learn(40)
    engine = engine_of(model)
    model.save(tmp_path / "model")
    model.set_parameters(tmp_path / "model.zip")
    n_replays = Repeat.n_replays
    model.train(gradient_steps=WARM_UP_UPDATES, batch_size=16)
    assert Repeat.n_replays == n_replays and engine_of(model) is not engine
    model.train(gradient_steps=2, batch_size=16)
    assert Repeat.n_replays == n_replays + 2


def test_steps_that_somebody_sets(graphed: MakeModel) -> None:
    model = graphed(PathwiseAC).learn(40)
    for state in model.actor.optimizer.state.values():
        state["step"].fill_(1000)
    model.train(gradient_steps=2, batch_size=16)
    assert {state["step"].item() for state in model.actor.optimizer.state.values()} == {1002}


def test_gradients_are_those_of_the_replay(graphed: MakeModel) -> None:
    model = graphed(PathwiseAC).learn(40)
    graphs = engine_of(model)._graphs
    ((kind, (graph, grads)),) = graphs.items()
    params = [param for optimizer in (model.critic, model.actor) for param in optimizer.parameters()]
    metrics = graph()
    marks = [(param, th.full_like(param, 7.0)) for param, _ in grads]
    graphs[kind] = (lambda: metrics, marks)
    model.train(gradient_steps=1, batch_size=16)
    assert all((param.grad == 7).all() for param in [*params, model.log_ent_coef])


class Look(BaseCallback):
    """Looks at what SB3 would show between two updates."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        model: Any = self.model
        optimizers = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
        groups = [[group | {"params": None} for group in optimizer.param_groups] for optimizer in optimizers]
        steps = [[state["step"] for state in optimizer.state.values()] for optimizer in optimizers]
        attributes = sorted([*vars(model), *(name for optimizer in optimizers for name in vars(optimizer))])
        self.seen.append((groups, steps, attributes, len(pickle.dumps(model.policy)), th.distributions.Normal._validate_args))
        return True


def test_nothing_is_seen_of_it(make_model: MakeModel, graphed: MakeModel) -> None:
    looks = Look(), Look()
    model = graphed(PathwiseAC)
    for one, look in zip((make_model(PathwiseAC, engine="eager"), model), looks, strict=True):
        one.learn(40, callback=look)
    assert looks[0].seen == looks[1].seen and engine_of(model)._graphs


def test_an_update_that_fails_leaves_plain_optimizers(graphed: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graphed(PathwiseAC).learn(40)
    expected = [dict(vars(model)), *(dict(group) for group in model.critic.optimizer.param_groups)]
    monkeypatch.setattr(type(model.critic_rule), "value", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.train(gradient_steps=1, batch_size=16)
    assert expected == [dict(vars(model)), *(dict(group) for group in model.critic.optimizer.param_groups)]
    assert all(state["step"].shape == () for state in model.critic.optimizer.state.values())
    assert th.distributions.Normal._validate_args


def test_checkpoints_interchange(graphed: MakeModel, make_model: MakeModel, tmp_path: Any) -> None:
    model = graphed(PathwiseAC).learn(40)
    model.save(tmp_path / "model")
    for cls in (SAC, PathwiseAC):
        loaded = cls.load(tmp_path / "model", env=model.get_env(), device="cpu")
        loaded.replay_buffer = model.replay_buffer
        loaded.learn(5, reset_num_timesteps=False)
        assert loaded._n_updates > model._n_updates
    sac = make_model(SAC).learn(40)
    sac.save(tmp_path / "sac")
    loaded = PathwiseAC.load(tmp_path / "sac", env=sac.get_env(), device="cpu", engine="cuda_graph")
    loaded.replay_buffer = sac.replay_buffer
    loaded.learn(5, reset_num_timesteps=False)
    assert engine_of(loaded)._graphs
    steps = {state["step"].item() for state in loaded.critic.optimizer.state.values()}
    assert steps == {loaded._n_updates} and loaded._n_updates > sac._n_updates


def test_no_graph_outlives_its_update(algorithm: type[SAC], make_model: MakeModel) -> None:
    # One that does would bring its stream into the recording: its gradients' accumulators are used again
    def in_graphs() -> set[int]:
        tensors = [value for value in gc.get_objects() if issubclass(type(value), th.Tensor)]
        return {id(tensor) for tensor in tensors if tensor.grad_fn is not None}

    model = make_model(algorithm, engine="eager").learn(40)
    gc.collect()
    gc.disable()
    try:
        before = in_graphs()
        model.train(gradient_steps=2, batch_size=16)
        model.actor.action_log_prob(model.replay_buffer.sample(4).observations)
        assert in_graphs() - before
        with th.no_grad():
            model.actor.action_log_prob(model.replay_buffer.sample(4).observations)
        assert not in_graphs() - before
    finally:
        gc.enable()


@pytest.mark.parametrize("kwargs", [{}, {"n_steps": 3}, DICTIONARY])
def test_batch_stays_where_it_is(make_model: MakeModel, kwargs: dict[str, Any]) -> None:
    def tensors(samples: Any) -> list[th.Tensor]:
        parts = [list(part.values()) if isinstance(part, dict) else [part] for part in samples if part is not None]
        return [tensor for part in parts for tensor in part]

    model = make_model(PathwiseAC, **copy.deepcopy(kwargs)).learn(40)
    first, second, small = (model.replay_buffer.sample(batch_size) for batch_size in (16, 16, 8))
    batch = StaticBatch(first)
    addresses = [tensor.data_ptr() for tensor in tensors(batch.samples)]
    assert not set(addresses) & {tensor.data_ptr() for tensor in tensors(first)}
    for samples in (first, second):
        batch.fill(samples)
        for ours, theirs in zip(tensors(batch.samples), tensors(samples), strict=True):
            assert th.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert addresses == [tensor.data_ptr() for tensor in tensors(batch.samples)]
    assert [part is None for part in batch.samples] == [part is None for part in first]
    assert StaticBatch.signature(first) == StaticBatch.signature(second) != StaticBatch.signature(small)


class OwnExtractor(FlattenExtractor):
    pass


class OwnModule(th.nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return x


class OwnRoute(PathwiseAC):
    def route(dist: Any, objective: Any, n_samples: int = 1) -> th.Tensor:
        return pathwise(dist, objective, n_samples)


class OwnSurrogate(PathwiseAC):
    def actor_surrogate(self, dist: Any, objective: Any) -> th.Tensor:
        return super().actor_surrogate(dist, objective)


@pytest.mark.parametrize(
    "cls, kwargs, reason",
    [
        (PathwiseAC, {"use_sde": True}, "gSDE"),
        (PathwiseAC, {"policy_kwargs": {"distribution": "beta"}}, "squashed Gaussian"),
        (PathwiseAC, {"policy_kwargs": {"features_extractor_class": OwnExtractor}}, "OwnExtractor"),
        (PathwiseAC, {"policy_kwargs": {"activation_fn": OwnModule}}, "OwnModule"),
        (PathwiseAC, {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, "RMSprop"),
        (OwnRoute, {}, "own route"),
        (OwnSurrogate, {}, "own actor_surrogate"),
    ],
)
def test_who_is_not_recorded(graphed: MakeModel, cls: type[SAC], kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"engine='cuda_graph' cannot run this model: .*{reason}"):
        graphed(cls, **kwargs)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "mu has hooks": lambda model: model.actor.mu.register_forward_hook(lambda *args: None),
    "mu has hooks of gradients": lambda model: model.actor.mu.weight.register_hook(lambda grad: 0 * grad),
    "ParametrizedLinear": lambda model: th.nn.utils.parametrizations.spectral_norm(model.actor.mu),
    "Actor has methods of its own": lambda model: setattr(model.actor, "action_log_prob", model.actor.action_log_prob),
    "own check_descent": lambda model: setattr(model, "check_descent", lambda *args, **kwargs: None),
    "an optimizer has hooks": lambda model: model.critic.optimizer.register_step_post_hook(lambda *args: None),
    "or methods of its own": lambda model: th.optim.lr_scheduler.ConstantLR(model.critic.optimizer),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_who_is_not_recorded_any_more(graphed: MakeModel, reason: str) -> None:
    model = graphed(PathwiseAC).learn(40)
    CHANGES[reason](model)
    with pytest.raises(ValueError, match=f"engine='cuda_graph' cannot run this model: .*{reason}"):
        model.train(gradient_steps=1, batch_size=16)


def test_only_when_asked_for(make_model: MakeModel, graphed: MakeModel) -> None:
    assert not isinstance(choose_engine(make_model(PathwiseAC)), CudaGraphEngine)


def test_not_on_a_cpu(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="the model is on cpu"):
        make_model(PathwiseAC, engine="cuda_graph")


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cls", [PathwiseAC, LikelihoodRatioAC])
@pytest.mark.parametrize("kwargs", [{}, {"policy_delay": 2}, {"gradient_steps": 4}])
def test_graph_is_the_plain_update(make_model: MakeModel, cls: type[SAC], kwargs: dict[str, Any]) -> None:
    model, plain = (make_model(cls, device="cuda", engine=name, **kwargs).learn(60) for name in ("cuda_graph", "eager"))
    assert engine_of(model).failure is None and engine_of(model)._graphs
    assert (parameters(model) - parameters(plain)).abs().max() < 1e-3


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_a_recording_that_fails_leaves_the_device_usable(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(cuda_graph.CudaRecorder):
        def record(self, function: Function) -> Function:
            return super().record(lambda: {name: th.tensor(value.item()) for name, value in function().items()})

    monkeypatch.setattr(cuda_graph, "CudaRecorder", Waits)
    model = make_model(PathwiseAC, device="cuda", engine="cuda_graph").learn(60)
    assert engine_of(model).failure is not None and th.isfinite(parameters(model)).all()
    assert th.cuda.current_stream() == th.cuda.default_stream()
