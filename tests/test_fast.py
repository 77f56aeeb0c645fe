"""
Networks and Adam rewritten for speed: same numbers as torch's, to the last bit, and no trap in what they share and reuse.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC
from torch import nn

from sb3_pathwise import LikelihoodRatioAC, PathwiseAC
from sb3_pathwise.fast import FusedMLP, GaussianNetwork, LeanAdam
from sb3_pathwise.policies import MinQValue, min_q_function


def make_mlp(*sizes: int, last_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


@pytest.mark.parametrize("last_relu", [False, True])
@pytest.mark.parametrize("sizes", [(5, 1), (5, 16, 1), (5, 24, 16, 3)])
def test_backward_is_autograd(sizes: tuple[int, ...], last_relu: bool) -> None:
    th.manual_seed(0)
    reference = make_mlp(*sizes, last_relu=last_relu)
    network = FusedMLP(*copy.deepcopy(reference))
    # Twice, since memory and gradients are used again, and with fewer rows in between
    for n_rows in (32, 7, 32):
        x, grad = th.randn(n_rows, sizes[0], requires_grad=True), th.randn(n_rows, sizes[-1])
        reference.zero_grad()
        outputs = reference(x)
        outputs.backward(grad)
        activations = network.evaluate(x.detach())
        assert th.equal(activations[-1], outputs)
        grad_inputs = network.backward(grad.clone(), activations, weights=True, inputs=True)
        assert th.equal(grad_inputs, x.grad)
        for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
            assert th.equal(ours.grad, theirs.grad)
        assert th.equal(network(x), outputs)


def test_backward_leaves_frozen_weights_alone() -> None:
    network = FusedMLP(*make_mlp(3, 8, 1, last_relu=False))
    for param in network.parameters():
        param.grad = th.ones_like(param)
    network[0].weight.requires_grad_(False)
    network.backward(th.ones(4, 1), network.evaluate(th.randn(4, 3)), weights=True, inputs=False)
    assert network[0].weight.grad is None
    assert network[0].bias.grad is not None and not (network[0].bias.grad == 1).all()


@pytest.mark.parametrize("net_arch", [[], [8], [8, 6]])
def test_gaussian_network_is_autograd(make_model: Callable[..., Any], net_arch: list[int]) -> None:
    actor = make_model(PathwiseAC, policy_kwargs={"net_arch": net_arch}).actor
    assert GaussianNetwork.supports(actor)
    network, grads = GaussianNetwork(actor), [th.randn(16, 2), th.randn(16, 2)]
    for _ in range(2):
        obs = th.randn(16, 2)
        actor.zero_grad()
        latent = actor.latent_pi(obs)
        outputs = [actor.mu(latent), actor.log_std(latent)]
        th.autograd.backward(outputs, grads)
        expected = [param.grad.clone() for param in actor.parameters()]
        # Old gradients must not be added to
        activations, ours = network.evaluate(obs, use=0)
        network.backward(grads, activations)
        assert all(th.equal(one, other) for one, other in zip(ours, outputs, strict=True))
        assert all(th.equal(param.grad, grad) for param, grad in zip(actor.parameters(), expected, strict=True))


def test_gaussian_network_takes_no_other(make_model: Callable[..., Any]) -> None:
    assert not GaussianNetwork.supports(make_model(PathwiseAC, use_sde=True).actor)
    assert not GaussianNetwork.supports(make_model(PathwiseAC, policy_kwargs={"activation_fn": nn.Tanh}).actor)
    assert not GaussianNetwork.supports(make_model(PathwiseAC, policy_kwargs={"distribution": "beta"}).actor)
    assert not GaussianNetwork.supports(make_model(PathwiseAC, env="PointImage-v0", policy="CnnPolicy").actor)


def test_first_layer_once(make_model: Callable[..., Any]) -> None:
    q_net = make_model(PathwiseAC, policy_kwargs={"net_arch": [16, 16]}).critic.q_networks[0]
    features, actions = th.randn(8, 2), th.randn(8, 2)
    first = q_net.first_layer(features)
    for last_inputs in (actions, -actions):
        outputs = q_net.evaluate(last_inputs, use=0, first=first)[-1]
        th.testing.assert_close(outputs, q_net(th.cat([features, last_inputs], dim=1)))


def test_critics_do_not_share_memory_that_both_need(make_model: Callable[..., Any]) -> None:
    critic = make_model(PathwiseAC, policy_kwargs={"net_arch": [16, 16]}).critic
    obs, actions = th.randn(32, 2), th.randn(1, 32, 2).tanh().requires_grad_()
    # Shifted so that either is the smallest for half of the states: otherwise one would not matter
    one, other = critic(obs, actions[0])
    with th.no_grad():
        critic.q_networks[0][-1].bias += (other - one).median()
    smallest = th.cat(critic(obs, actions[0]), dim=1).argmin(dim=1)
    assert set(smallest.tolist()) == {0, 1}
    expected = th.cat([q_net(th.cat([obs, actions[0]], dim=1)) for q_net in critic.q_networks], dim=1).min(dim=1).values
    (expected_grad,) = th.autograd.grad(expected.sum(), actions)
    values = min_q_function(critic, obs)(actions)
    (grad,) = th.autograd.grad(values.sum(), actions)
    assert th.equal(values[0], expected) and th.equal(grad, expected_grad)


def test_overwritten_activations_are_noticed(make_model: Callable[..., Any]) -> None:
    critic = make_model(PathwiseAC).critic
    inputs = th.randn(16, 4, requires_grad=True)
    values = MinQValue.apply(inputs, critic.q_networks)
    MinQValue.apply(inputs, critic.q_networks)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


def run_adam(cls: type[th.optim.Adam], n_steps: int, frozen_at: int = -1) -> tuple[list[th.Tensor], th.optim.Adam]:
    th.manual_seed(1)
    params = [nn.Parameter(th.randn(shape)) for shape in ((16, 5), (16,), (), (3, 4, 2))]
    optimizer = cls(params, lr=3e-2, betas=(0.8, 0.95), eps=1e-4)
    for step in range(n_steps):
        optimizer.zero_grad()
        for i, param in enumerate(params):
            grad = th.randn_like(param)
            param.grad = None if i == 1 and step in (frozen_at, frozen_at + 1) else grad
        optimizer.param_groups[0]["lr"] = 3e-2 / (step + 1)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("frozen_at", [-10, 0, 3])
def test_lean_adam_is_adam(frozen_at: int) -> None:
    (expected, adam), (actual, lean) = (run_adam(cls, 8, frozen_at) for cls in (th.optim.Adam, LeanAdam))
    for one, other in zip(actual, expected, strict=True):
        assert th.equal(one, other)
    assert lean.state_dict()["param_groups"] == adam.state_dict()["param_groups"]
    for i, state in adam.state_dict()["state"].items():
        for name, value in state.items():
            assert th.equal(lean.state_dict()["state"][i][name], value)


@pytest.mark.parametrize("classes", [(LeanAdam, th.optim.Adam), (th.optim.Adam, LeanAdam), (LeanAdam, LeanAdam)])
def test_lean_adam_exchanges_states(classes: tuple[type[th.optim.Adam], type[th.optim.Adam]]) -> None:
    expected, adam = run_adam(th.optim.Adam, 3)
    first, second = classes
    params, optimizer = run_adam(first, 3)
    # Loaded after steps of its own, which must leave no trace
    other_params, other = run_adam(second, 2)
    with th.no_grad():
        for param, source in zip(other_params, params, strict=True):
            param.copy_(source)
    other.load_state_dict(optimizer.state_dict())
    for optimized, stepper in ((expected, adam), (other_params, other)):
        for param in optimized:
            param.grad = th.full_like(param, 0.1)
        stepper.step()
    for one, two in zip(other_params, expected, strict=True):
        assert th.equal(one, two)


@pytest.mark.parametrize("kwargs", [{"weight_decay": 0.1}, {"amsgrad": True}])
def test_other_optimizers_stay(kwargs: dict[str, Any]) -> None:
    param = nn.Parameter(th.zeros(2))
    for optimizer in (th.optim.Adam([param], **kwargs), th.optim.AdamW([param], weight_decay=0.0)):
        assert LeanAdam.of(optimizer) is optimizer


@pytest.mark.parametrize("cls", [PathwiseAC, LikelihoodRatioAC])
def test_frozen_parameters_do_not_move(make_model: Callable[..., Any], cls: type[SAC]) -> None:
    model = make_model(cls, policy_kwargs={"net_arch": [16, 16]}).learn(40)
    frozen = [model.actor.latent_pi[0].weight, model.actor.mu.bias, model.critic.q_networks[1][2].weight]
    before = [param.detach().clone() for param in frozen]
    for param in frozen:
        param.requires_grad_(False)
    other = model.actor.latent_pi[2].weight.detach().clone()
    model.train(gradient_steps=5, batch_size=16)
    assert all(th.equal(param, old) for param, old in zip(frozen, before, strict=True))
    assert not th.equal(model.actor.latent_pi[2].weight, other)


def test_training_mode_reaches_every_module(make_model: Callable[..., Any], batch_norm: dict[str, Any]) -> None:
    policy = make_model(PathwiseAC, policy_kwargs=batch_norm).policy
    for mode in (True, False, True):
        policy.set_training_mode(mode)
        networks = (policy.actor, policy.critic)
        assert policy.training == mode
        assert all(module.training == mode for network in networks for module in network.modules())
        assert not any(module.training for module in policy.critic_target.modules())
