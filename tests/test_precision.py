"""
``precision="bfloat16"``: products in bfloat16, everything that is kept or added up in float32, and learning unharmed.

Which arguments and models it cannot be had with is in ``test_bad_input.py``.
"""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import SAC
from torch import nn

from sb3_pathwise import PathwiseAC

MakeModel = Callable[..., Any]
# Wide enough for products that gain from it
WIDE: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 64, "precision": "bfloat16"}
pytestmark = pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")


def test_only_products_are_bfloat16(make_model: MakeModel, algorithm: type[SAC]) -> None:
    model = make_model(algorithm, **WIDE).learn(40)
    tensors = [*model.policy.state_dict().values(), *(param.grad for param in model.policy.actor.parameters())]
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        tensors += [value for state in optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in tensors} == {th.float32}
    assert all(th.isfinite(tensor).all() for tensor in tensors)


def gradients(model: Any, precision: str) -> dict[str, th.Tensor]:
    """Of one update that changes nothing."""
    model.learning_rate, model.precision = 0.0, precision
    model._setup_lr_schedule()
    model.set_random_seed(1)
    model.train(gradient_steps=1, batch_size=64)
    networks = {"actor": model.actor, "critic": model.critic}
    return {f"{key}.{name}": p.grad.clone() for key, network in networks.items() for name, p in network.named_parameters()}


def assert_rounded(rounded: dict[str, th.Tensor], exact: dict[str, th.Tensor]) -> None:
    for name, gradient in exact.items():
        # Up to a tenth, from ReLUs whose input is almost 0. From a wrong gradient it would differ by its own norm
        assert (rounded[name] - gradient).norm() < 0.3 * gradient.norm(), name
    assert any(not th.equal(rounded[name], gradient) for name, gradient in exact.items())


def test_gradients_are_close_to_those_in_float32(make_model: MakeModel, algorithm: type[SAC]) -> None:
    model = make_model(algorithm, **WIDE | {"precision": "float32"}).learn(200)
    assert_rounded(gradients(model, "bfloat16"), gradients(model, "float32"))
    assert model.logger.name_to_value["train/critic_loss"] > 0


@pytest.mark.parametrize("critic", ["twin", "batch_renorm"])
def test_products_follow_the_weights(make_model: MakeModel, critic: str) -> None:
    """Whatever copies of the weights there are in bfloat16."""
    model = make_model(PathwiseAC, **WIDE | {"policy_kwargs": {"net_arch": [64, 64], "critic": critic}}).learn(200)
    before = gradients(model, "bfloat16")
    networks = [model.actor.latent_pi, model.critic.qf0]
    if model.critic_rule.has_target:
        networks.append(model.critic_target.qf1)
    with th.no_grad():
        for network in networks:
            first, second, *_ = (layer for layer in network if isinstance(layer, nn.Linear))
            second.weight.mul_(-1)
            # Behind torch's back
            first.weight.data.mul_(0.5)
    after = gradients(model, "bfloat16")
    assert any((after[name] - gradient).norm() > gradient.norm() for name, gradient in before.items())
    assert_rounded(after, gradients(model, "float32"))


def test_travels_with_the_checkpoint(make_model: MakeModel, tmp_path: Any) -> None:
    make_model(PathwiseAC, **WIDE).save(tmp_path / "model")
    assert PathwiseAC.load(tmp_path / "model", env=gym.make("PointVector-v0")).precision == "bfloat16"
    assert PathwiseAC.load(tmp_path / "model", precision="float32").precision == "float32"


@pytest.mark.parametrize("capabilities, n_warnings", [({"avx512_bf16": False}, 1), ({"amx_bf16": True}, 0)])
def test_warning(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], n_warnings: int
) -> None:
    monkeypatch.setattr(th.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        make_model(PathwiseAC, **WIDE)
        make_model(PathwiseAC, **WIDE | {"precision": "float32"})
    assert sum("no instructions for bfloat16" in str(warning.message) for warning in record) == n_warnings


def test_goes_on_in_float32_where_it_cannot_be_followed(make_model: MakeModel) -> None:
    """Training does not stop because a hook was added, but the user hears of it."""
    models = []
    for precision in ("bfloat16", "float32"):
        model = make_model(PathwiseAC, **WIDE | {"precision": precision})
        model.actor.mu.register_forward_hook(lambda module, args, output: 0.5 * output)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            models.append(model.learn(40))
        texts = [str(warning.message) for warning in record]
        assert any("'bfloat16': no engine can run this model in it any more" in text for text in texts) == (
            precision == "bfloat16"
        )
    for one, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(one, other)


def test_learns_as_well_as_float32(make_model: MakeModel) -> None:
    returns = []
    for precision in ("float32", "bfloat16"):
        model = make_model(PathwiseAC, **WIDE | {"precision": precision, "learning_rate": 3e-3}).learn(500)
        returns.append(sum(episode["r"] for episode in list(model.ep_info_buffer)[-10:]) / 10)
    # Random actions: about -20; learned: about -3 (one seed, 500 steps)
    assert min(returns) > -8, returns
