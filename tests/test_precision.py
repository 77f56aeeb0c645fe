"""
``precision="bfloat16"``: products in bfloat16, everything that is kept or added up in float32, and learning unharmed.
"""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from sb3_pathwise.fast import FusedMLP, autocast_module, warn_if_slow
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import NatureCNN

from sb3_pathwise import PathwiseAC
from sb3_pathwise import fast as fast_module

WIDE: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 64, "precision": "bfloat16"}


def test_invalid(make_model: Callable[..., Any], algorithm: type[SAC]) -> None:
    with pytest.raises(ValueError, match=r"precision must be 'float32' or 'bfloat16', got 'float16'"):
        make_model(algorithm, precision="float16")


def test_only_products_are_bfloat16(make_model: Callable[..., Any], algorithm: type[SAC]) -> None:
    model = make_model(algorithm, **WIDE).learn(40)
    tensors = [*model.policy.state_dict().values(), *(param.grad for param in model.policy.actor.parameters())]
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        tensors += [value for state in optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in tensors} == {th.float32}
    assert all(th.isfinite(tensor).all() for tensor in tensors)
    batch = model.replay_buffer.sample(64)
    q_net = model.critic.q_networks[0]
    inputs = th.cat([batch.observations, batch.actions], dim=1)
    activations = q_net.evaluate(inputs)
    assert [activation.dtype for activation in activations] == [th.float32, th.bfloat16, th.float32, th.float32]
    assert th.equal(q_net(inputs), activations[-1])


def test_backward_is_close_to_that_in_float32() -> None:
    th.manual_seed(0)
    layers = [th.nn.Linear(8, 64), th.nn.ReLU(), th.nn.Linear(64, 64), th.nn.ReLU(), th.nn.Linear(64, 1)]
    x, grads = th.randn(256, 8), []
    for dtype in (th.float32, th.bfloat16):
        network = FusedMLP(*layers)
        network.dtype = dtype
        network.zero_grad()
        activations = network.evaluate(x)
        grad_inputs = network.backward(th.ones(256, 1), activations, weights=True, inputs=True)
        grads.append([grad_inputs.float(), *(param.grad.clone() for param in network.parameters())])
    for exact, rounded in zip(*grads, strict=True):
        # Up to five per cent, from ReLUs whose input is almost 0. From a wrong gradient it would differ by its own norm
        assert (rounded - exact).norm() < 0.1 * exact.norm()
    assert not th.equal(grads[0][0], grads[1][0])


def test_travels_with_the_checkpoint(make_model: Callable[..., Any], tmp_path: Any) -> None:
    make_model(PathwiseAC, **WIDE).save(tmp_path / "model")
    model = PathwiseAC.load(tmp_path / "model", env=gym.make("PointVector-v0"))
    assert model.precision == "bfloat16"
    assert model.critic.q_networks[0].dtype == th.bfloat16
    assert PathwiseAC.load(tmp_path / "model", precision="float32").critic.q_networks[0].dtype == th.float32


def test_feature_extractor(make_model: Callable[..., Any]) -> None:
    model = make_model(PathwiseAC, "PointImageDict-v0", "MultiInputPolicy", batch_size=64, precision="bfloat16").learn(40)
    assert all(th.isfinite(param).all() for param in model.policy.parameters())
    model.policy.set_training_mode(False)
    extractor = model.actor.features_extractor
    seen = []
    extractor.net[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    obs, _ = model.policy.obs_to_tensor(model.env.observation_space.sample())
    assert model.actor.extract_features(obs, extractor).dtype == th.float32
    assert seen == [th.bfloat16]


def test_autocast_ends_with_an_exception() -> None:
    extractor = NatureCNN(gym.spaces.Box(0, 255, (1, 36, 36), dtype="uint8"), features_dim=4)
    autocast_module(extractor, th.bfloat16)
    with pytest.raises(RuntimeError):
        extractor(th.zeros(1, 2, 36, 36))
    assert not th.is_autocast_enabled("cpu")
    assert extractor(th.zeros(1, 1, 36, 36)).dtype == th.float32


@pytest.mark.parametrize(("capabilities", "n_warnings"), [({"avx512_bf16": False}, 1), ({"amx_bf16": True}, 0)])
def test_warning(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], n_warnings: int) -> None:
    monkeypatch.setattr(fast_module.th.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with pytest.warns(UserWarning) as record:
        warn_if_slow(th.bfloat16, th.device("cpu"))
        warn_if_slow(th.float32, th.device("cpu"))
        warn_if_slow(th.bfloat16, th.device("cuda"))
        warnings.warn("one in any case")
    assert sum("no instructions for bfloat16" in str(warning.message) for warning in record) == n_warnings


def test_learns_as_well_as_float32(make_model: Callable[..., Any]) -> None:
    returns = []
    for precision in ("float32", "bfloat16"):
        model = make_model(PathwiseAC, **WIDE | {"precision": precision, "learning_rate": 3e-3}).learn(500)
        returns.append(sum(episode["r"] for episode in list(model.ep_info_buffer)[-10:]) / 10)
    # Random actions: about -20; learned: about -3 (one seed, 500 steps)
    assert min(returns) > -8, returns


def test_casts_follow_the_weights(make_model: Callable[..., Any]) -> None:
    model = make_model(PathwiseAC, **WIDE).learn(40)
    network, inputs = model.critic.q_networks[0], th.randn(64, 4)
    weight = network[2].weight
    before = network.evaluate(inputs)[-1]
    with th.no_grad():
        weight.mul_(2)
    after = network.evaluate(inputs)[-1]
    assert th.equal(after, network(inputs)) and not th.equal(after, before)
    # Behind torch's back, between two calls of train()
    weight.data.mul_(2)
    model.replay_buffer = None
    with pytest.raises(AssertionError):
        model.train(gradient_steps=1)
    assert th.equal(network.evaluate(inputs)[-1], network(inputs))
