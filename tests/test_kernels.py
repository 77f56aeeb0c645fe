"""
Kernels of the fused engine, each alone, against what autograd and torch's own Adam make of the same. What engines make of them
is in ``test_engines.py``, where normalised networks and quantiles are compared, too.
"""

import itertools

import pytest
import torch as th
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn
from torch.optim import Adam

from sb3_pathwise.engines.kernels import linear
from sb3_pathwise.engines.kernels.adam import AdamKernel
from sb3_pathwise.engines.kernels.linear import Workspace
from sb3_pathwise.engines.kernels.mlp import MLP, parameters
from sb3_pathwise.engines.kernels.squash import SquashedGaussianDraw
from sb3_pathwise.engines.kernels.twin import smallest_q


def make_mlp(*sizes: int) -> nn.Sequential:
    layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(
    "dtype, onednn, tolerance", [(th.float64, False, 1e-12), (th.float32, False, 1e-4), (th.float32, True, 1e-4)]
)
@pytest.mark.parametrize("sizes", [(5, 1), (5, 16, 1), (5, 70, 66, 3)])
def test_mlp(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], dtype: th.dtype, onednn: bool, tolerance: float) -> None:
    if onednn and linear._onednn is None:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "uses_onednn", lambda dtype: onednn)
    th.manual_seed(0)
    module = make_mlp(*sizes).to(dtype)
    layers = parameters(module)
    grads = [(th.zeros_like(weight), th.zeros_like(bias)) for weight, bias in layers]
    network = MLP(layers, Workspace(), grads)
    # More, fewer and as many rows again, in the same memory
    for n_rows in (32, 7, 32):
        x = th.randn(n_rows, sizes[0], dtype=dtype, requires_grad=True)
        output, grad = module(x), th.randn(n_rows, sizes[-1], dtype=dtype)
        expected = th.autograd.grad(output, [*module.parameters(), x], grad, retain_graph=True)
        trace = network.forward(x.detach())
        network.backward(grad, trace)
        actual = [part for layer in grads for part in layer]
        th.testing.assert_close([trace.output, *actual], [output, *expected[:-1]], rtol=tolerance, atol=tolerance)
        weight = layers[-1][0][0]
        (by_input,) = th.autograd.grad(output[:, 0].sum(), x)
        gradient = network.input_gradient(weight.detach(), trace.hidden, slice(2, None)).expand(n_rows, -1)
        th.testing.assert_close(gradient, by_input[:, 2:], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("used", [used for n in range(1, 5) for used in itertools.combinations(range(4), n)])
def test_squashed_gaussian_draw(used: tuple[int, ...]) -> None:
    th.manual_seed(0)
    mean, log_std, noise = (th.randn(6, 3, dtype=th.float64) for _ in range(3))
    # Within the bounds, at them and beyond
    log_std[:4, 0] = th.tensor([LOG_STD_MAX, LOG_STD_MIN, LOG_STD_MAX + 1.0, LOG_STD_MIN - 1.0])
    leaves = [mean.requires_grad_(), log_std.requires_grad_()]
    std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()
    x = mean + std * noise
    actions = x.tanh()
    log_prob = (th.distributions.Normal(0.0, 1.0).log_prob(noise) - std.log() - th.log(1 - actions**2 + 1e-6)).sum(dim=1)
    expected = (x, actions, log_prob, std)
    actual = SquashedGaussianDraw.apply(*leaves, noise, 1e-6)
    th.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weights = [th.randn_like(output) for output in expected]
    grads = [
        th.autograd.grad(sum((weights[i] * outputs[i]).sum() for i in used), leaves, materialize_grads=True)
        for outputs in (actual, expected)
    ]
    th.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 1e6])
def test_adam(max_grad_norm: float | None) -> None:
    th.manual_seed(0)
    shapes: tuple[tuple[int, ...], ...] = ((16, 5), (17,), (3, 4, 2))
    ours, theirs = ([nn.Parameter(th.ones(shape, dtype=th.float64)) for shape in shapes] for _ in range(2))
    adams = [Adam(params, lr=3e-2, betas=(0.8, 0.95), eps=1e-4) for params in (ours, theirs)]
    # The second parameter is older than the others
    for params, adam in zip((ours, theirs), adams, strict=True):
        params[1].grad = th.full_like(params[1], 2.0)
        adam.step()
    kernel = AdamKernel(adams[0])
    for step in range(8):
        for grad, param in zip(kernel.grads, theirs, strict=True):
            param.grad = grad.copy_(th.randn_like(grad)).clone()
        for adam in adams:
            adam.param_groups[0]["lr"] = 3e-2 / (step + 1)
        grad_norm = kernel.grad_norm()
        kernel.step(grad_norm, max_grad_norm)
        expected = th.nn.utils.clip_grad_norm_(theirs, max_grad_norm or 1e9)
        adams[1].step()
        th.testing.assert_close([grad_norm, *ours], [expected, *theirs], rtol=1e-12, atol=1e-12)
        th.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs], rtol=1e-12, atol=1e-12)
    states = [adam.state_dict()["state"] for adam in adams]
    th.testing.assert_close(*states, rtol=1e-12, atol=1e-12)
    assert [states[0][i]["step"].item() for i in range(3)] == [8.0, 9.0, 8.0]


@pytest.mark.parametrize("n_networks", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(4, 1), (4, 16, 16, 1)])
def test_smallest_q(sizes: tuple[int, ...], n_networks: int) -> None:
    th.manual_seed(0)
    modules = [make_mlp(*sizes).double() for _ in range(n_networks)]
    if n_networks == 3:
        # Of equal ones the first counts
        modules[2].load_state_dict(modules[0].state_dict())
    features = th.randn(32, 2, dtype=th.float64)
    actions = th.randn(3, 32, 2, dtype=th.float64, requires_grad=True)
    inputs = th.cat([features.expand(3, -1, -1), actions], dim=2)
    outputs = th.cat([module(inputs) for module in modules], dim=2)
    expected, smallest = outputs.min(dim=2)
    assert set(smallest.flatten().tolist()) == set(range(min(n_networks, 2)))
    workspace, weight = Workspace(), th.randn(3, 32, dtype=th.float64)
    value = smallest_q([MLP(parameters(module), workspace) for module in modules], features)
    th.testing.assert_close([value(actions), value(actions.detach())], [expected, expected], rtol=1e-12, atol=1e-12)
    grads = [th.autograd.grad((weight * values).sum(), actions) for values in (value(actions), expected)]
    th.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
