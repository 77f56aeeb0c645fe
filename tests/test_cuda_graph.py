"""
What an update needs in order to be recorded as a CUDA graph. All but the recording itself is tested without a GPU: there a
recorder takes its place that calls the function again. Where there is a GPU, the graph is compared with the plain update.
"""

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC, cuda_graph, learner
from sb3_pathwise.cuda_graph import WARM_UP_UPDATES, CapturableAdam, StaticBatch, reason_not_to_record, sample_on_host
from sb3_pathwise.guards import NonFiniteError

DICTIONARY: dict[str, Any] = {
    "env": "PointDict-v0",
    "policy": "MultiInputPolicy",
    "policy_kwargs": {"features_extractor_class": CombinedExtractor},
}
Function = Callable[[], dict[str, th.Tensor]]


class Repeat:
    """Replays a function by calling it."""

    n_replays = 0

    def warm_up(self, function: Function) -> dict[str, th.Tensor]:
        return function()

    def record(self, function: Function) -> Function:
        def replay() -> dict[str, th.Tensor]:
            Repeat.n_replays += 1
            return function()

        return replay


class Refuse(Repeat):
    def record(self, function: Function) -> Function:
        raise RuntimeError("operation not permitted when stream is capturing")


class OtherNoise(Repeat):
    def record(self, function: Function) -> Function:
        def replay() -> dict[str, th.Tensor]:
            th.rand(1)
            return function()

        return replay


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> type[Repeat]:
    """Have models of this test replay their updates."""
    monkeypatch.setattr(learner, "reason_not_to_capture", reason_not_to_record)
    monkeypatch.setattr(cuda_graph, "CudaRecorder", Repeat)
    Repeat.n_replays = 0
    return Repeat


def parameters(model: SAC) -> th.Tensor:
    return th.cat([param.detach().flatten() for param in model.policy.parameters()])


@pytest.mark.parametrize(
    "kwargs, n_kinds",
    [
        ({}, 1),
        ({"policy_delay": 2, "max_grad_norm": 0.5}, 2),
        ({"gradient_steps": 4, "target_update_interval": 2}, 2),
        ({"ent_coef": 0.2, "n_steps": 3}, 1),
        ({"precision": "bfloat16", "policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 64}, 1),
        (DICTIONARY, 1),
    ],
)
@pytest.mark.parametrize("cls", [PathwiseAC, LikelihoodRatioAC])
def test_replayed_is_plain(
    make_model: Callable[..., Any], graphed: type[Repeat], cls: type[SAC], kwargs: dict[str, Any], n_kinds: int
) -> None:
    model = make_model(cls, **copy.deepcopy(kwargs)).learn(60)
    assert model._graphed_update.failure is None
    assert len(model._graphed_update._graphs) == n_kinds
    n_updates = model._n_updates
    # One replay more for each kind, to try it
    assert graphed.n_replays == n_updates - n_kinds * WARM_UP_UPDATES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "reason_not_to_capture", lambda model: "asked not to")
        plain = make_model(cls, **copy.deepcopy(kwargs)).learn(60)
    assert plain._graphed_update is None and plain._n_updates == n_updates
    # Adam's rounding differs
    assert (parameters(model) - parameters(plain)).abs().max() < (3e-3 if "precision" in kwargs else 1e-4)
    for name, value in plain.logger.name_to_value.items():
        if name.startswith("train/"):
            assert model.logger.name_to_value[name] == pytest.approx(value, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("recorder, message", [(Refuse, "not permitted when"), (OtherNoise, "differs from the plain update")])
def test_falls_back(
    make_model: Callable[..., Any],
    graphed: type[Repeat],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recorder: type[Repeat],
    message: str,
) -> None:
    expected = make_model(PathwiseAC).learn(40)
    monkeypatch.setattr(cuda_graph, "CudaRecorder", recorder)
    with caplog.at_level(logging.WARNING):
        model = make_model(PathwiseAC).learn(40)
    assert [record.getMessage() for record in caplog.records if message in record.getMessage()]
    assert not model._graphed_update._graphs
    # The trial has left no trace, neither in a weight nor in the random numbers
    assert th.equal(parameters(model), parameters(expected))


def test_alarm(make_model: Callable[..., Any], graphed: type[Repeat]) -> None:
    model = make_model(PathwiseAC, learning_rate=1e-2).learn(40)
    before = parameters(model)
    model.replay_buffer.rewards[:] = np.nan
    critic_before = [param.detach().clone() for param in model.critic.parameters()]
    with pytest.raises(NonFiniteError, match=r"target is not finite .*seen in critic_loss"):
        model.train(gradient_steps=2, batch_size=16)
    # No step is taken from then on, not even the actor's
    assert all(th.equal(one, other) for one, other in zip(model.critic.parameters(), critic_before, strict=True))
    assert th.isfinite(parameters(model)).all() and th.isfinite(before).all()
    # It goes on when the cause is gone
    model.replay_buffer.rewards[:] = 0
    model.train(gradient_steps=1, batch_size=16)
    assert not th.equal(next(model.critic.parameters()), critic_before[0])


def test_learning_rate_follows_its_schedule(make_model: Callable[..., Any], graphed: type[Repeat]) -> None:
    rates = iter([1e-3] * 100)
    model = make_model(PathwiseAC, learning_rate=lambda _: next(rates)).learn(40)
    rates = iter([0.0] * 100)
    before = [param.detach().clone() for param in model.actor.parameters()]
    model.train(gradient_steps=1, batch_size=16)
    assert graphed.n_replays > 1
    assert all(th.equal(one, other) for one, other in zip(model.actor.parameters(), before, strict=True))


def test_new_state_needs_a_new_graph(make_model: Callable[..., Any], graphed: type[Repeat], tmp_path: Any) -> None:
    model = make_model(PathwiseAC).learn(40)
    (kind,) = model._graphed_update._graphs
    model.save(tmp_path / "model")
    model.set_parameters(tmp_path / "model.zip")
    n_replays = graphed.n_replays
    model.train(gradient_steps=WARM_UP_UPDATES, batch_size=16)
    assert graphed.n_replays == n_replays
    model.train(gradient_steps=1, batch_size=16)
    assert len(model._graphed_update._graphs) == 2 and kind in model._graphed_update._graphs


def test_checkpoints_interchange(make_model: Callable[..., Any], graphed: type[Repeat], tmp_path: Any) -> None:
    model = make_model(PathwiseAC).learn(40)
    model.save(tmp_path / "model")
    # A graph belongs to a device and a process
    assert "_graphed_update" not in load_from_zip_file(tmp_path / "model")[0]
    for cls in (SAC, PathwiseAC):
        loaded = cls.load(tmp_path / "model", env=model.get_env())
        loaded.replay_buffer = model.replay_buffer
        loaded.learn(5, reset_num_timesteps=False)
        assert loaded._n_updates > model._n_updates
    sac = make_model(SAC).learn(40)
    sac.save(tmp_path / "sac")
    loaded = PathwiseAC.load(tmp_path / "sac", env=sac.get_env())
    assert isinstance(loaded.critic.optimizer, CapturableAdam)
    steps = [state["step"].item() for state in loaded.critic.optimizer.state.values()]
    assert steps and set(steps) == {float(sac._n_updates)}


def test_capturable_adam_is_adam() -> None:
    th.manual_seed(0)
    params = [[th.nn.Parameter(th.full((5, 3), 0.5)), th.nn.Parameter(th.ones(7))] for _ in range(2)]
    adam = th.optim.Adam(params[0], lr=1e-2)
    ours = CapturableAdam.of(th.optim.Adam(params[1], lr=1e-2))
    for step in range(5):
        adam.param_groups[0]["lr"] = ours.param_groups[0]["lr"] = 1e-2 / (step + 1)
        ours.follow_schedule()
        for one, other in zip(*params, strict=True):
            one.grad = other.grad = th.randn_like(one)
        adam.step()
        ours.step()
    for one, other in zip(*params, strict=True):
        th.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    expected, actual = adam.state_dict(), ours.state_dict()
    assert actual["param_groups"] == expected["param_groups"]
    assert all(state["step"] == 5 and state["step"].device.type == "cpu" for state in actual["state"].values())
    # Back and forth
    adam.load_state_dict(actual)
    ours.load_state_dict(adam.state_dict())
    assert ours.param_groups[0]["fused"] and ours.param_groups[0]["lr"] == 1e-2 / 5
    before = params[1][0].detach().clone()
    # What a graph reads is on the device, until follow_schedule()
    ours.param_groups[0]["lr"] = 1.0
    ours.step()
    assert 0 < (params[1][0] - before).abs().max() < 1e-2
    before = params[1][0].detach().clone()
    ours.found_inf = th.ones(())
    ours.step()
    assert th.equal(params[1][0], before)


@pytest.mark.parametrize("kwargs", [{}, {"n_steps": 3}, DICTIONARY])
def test_one_copy_carries_the_batch(make_model: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    model = make_model(PathwiseAC, **kwargs).learn(40)
    first, second = (sample_on_host(model.replay_buffer, 16, None) for _ in range(2))
    batch = StaticBatch(first, th.device("cpu"))
    addresses = [tensor.data_ptr() for tensor in cuda_graph._tensors(batch.samples)]
    for samples in (first, second):
        batch.fill(samples)
        for ours, theirs in zip(cuda_graph._tensors(batch.samples), cuda_graph._tensors(samples), strict=True):
            assert th.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert addresses == [tensor.data_ptr() for tensor in cuda_graph._tensors(batch.samples)]
    assert all(address % cuda_graph.ALIGNMENT == 0 for address in addresses)
    assert [part is None for part in batch.samples] == [part is None for part in first]
    assert StaticBatch.signature(first) == StaticBatch.signature(second)
    assert StaticBatch.signature(first) != StaticBatch.signature(sample_on_host(model.replay_buffer, 8, None))


class OwnExtractor(FlattenExtractor):
    pass


class OwnModule(th.nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return x


@pytest.mark.parametrize(
    "kwargs, reason",
    [
        ({"use_sde": True}, "gSDE"),
        ({"policy_kwargs": {"distribution": "beta"}}, "squashed Gaussian"),
        ({"policy_kwargs": {"features_extractor_class": OwnExtractor}}, "OwnExtractor"),
        ({"policy_kwargs": {"activation_fn": OwnModule}}, "OwnModule"),
        ({"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}, "not plain Adam"),
        ({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, "RMSprop"),
    ],
)
def test_who_is_not_recorded(
    make_model: Callable[..., Any], graphed: type[Repeat], kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = []
        patch.setattr(learner, "reason_not_to_capture", lambda model: found.append(reason_not_to_record(model)) or found[-1])
        model = make_model(PathwiseAC, **kwargs).learn(30)
    assert reason in found[0]
    assert model._graphed_update is None


def test_not_on_a_cpu(make_model: Callable[..., Any]) -> None:
    model = make_model(PathwiseAC, device="cpu")
    assert model._graphed_update is None
    assert cuda_graph.reason_not_to_capture(model) == "it runs on cpu"


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cls", [PathwiseAC, LikelihoodRatioAC])
@pytest.mark.parametrize("kwargs", [{}, {"policy_delay": 2}, {"precision": "bfloat16"}, {"gradient_steps": 4}])
def test_graph_is_the_plain_update(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, cls: type[SAC], kwargs: dict[str, Any]
) -> None:
    model = make_model(cls, device="cuda", **kwargs).learn(60)
    assert model._graphed_update.failure is None and model._graphed_update._graphs
    monkeypatch.setattr(learner, "reason_not_to_capture", lambda model: "asked not to")
    plain = make_model(cls, device="cuda", **kwargs).learn(60)
    assert (parameters(model) - parameters(plain)).abs().max() < 1e-3
