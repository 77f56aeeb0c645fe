"""
Whatever a user does to a model between two updates has the effect that it has on SB3's SAC, whichever engine runs the model.

Each intervention is made to two models of the same state, of which the second is run by an engine that has run it before, and
knows its networks and optimizers. In the eager engine both are the same afterwards, to the last bit. Under ``engine="auto"``
they are, too, if the intervention leaves the engines that are faster something that they cannot follow; if not, what the next
updates change is the same but for rounding. How close the engines are is the subject of ``test_engines.py``.
"""

import copy
import io
import threading
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune
from torch.optim import Adam
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sb3_pathwise import LikelihoodRatioAC, MixedAC, PathwiseAC
from sb3_pathwise.engines import choose_engine

Intervention = Callable[[Any], Any]
INTERVENTIONS: dict[str, Intervention] = {}
# Those that leave faster engines something that they cannot follow
STEP_ASIDE: set[str] = set()
# Arguments of the models, if not the usual ones
KWARGS: dict[str, dict[str, Any]] = {}
NET_ARCH = [16, 12]
# Gradients that are nothing but rounding shall move nothing, like those of a bias before a normalisation
ADAM = {"eps": 1e-5}


def intervention(step_aside: bool, **kwargs: Any) -> Callable[[Intervention], Intervention]:
    """
    :param step_aside: Whether only the plain update can follow
    :param kwargs: Arguments of the models
    """

    def register(function: Intervention) -> Intervention:
        name = function.__name__
        INTERVENTIONS[name] = function
        KWARGS[name] = kwargs
        if step_aside:
            STEP_ASIDE.add(name)
        return function

    return register


def train(model: Any, gradient_steps: int = 5) -> None:
    model.train(gradient_steps=gradient_steps, batch_size=16)


def critics(model: Any) -> list[Any]:
    """And their targets, if there are any."""
    return [critic for critic in (model.critic, model.critic_target) if hasattr(critic, "q_networks")]


def renew(network: Any, optimizer_class: type[th.optim.Optimizer] = Adam, **kwargs: Any) -> None:
    """A new optimizer."""
    kwargs = {"lr": 3e-4} | (ADAM if issubclass(optimizer_class, Adam) else {}) | kwargs
    network.optimizer = optimizer_class(network.parameters(), **kwargs)


def linear(network: nn.Module, i: int) -> nn.Linear:
    """The i-th linear layer, whatever is between."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][i]


def make_q_network(model: Any) -> nn.Module:
    """Another one like those of the model."""
    q_network = copy.deepcopy(model.critic.q_networks[1])
    for module in q_network.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return q_network


def set_q_network(critic: Any, i: int, q_network: nn.Module) -> None:
    critic.q_networks[i] = q_network
    setattr(critic, f"qf{i}", q_network)


# --- Networks


@intervention(step_aside=False)
def replaced_mean(model: Any) -> None:
    model.actor.mu = nn.Linear(12, 2)
    renew(model.actor)


@intervention(step_aside=True)
def replaced_mean_without_optimizer(model: Any) -> None:
    """Which then does not learn."""
    model.actor.mu = nn.Linear(12, 2)


@intervention(step_aside=True)
def replaced_mean_by_another_type(model: Any) -> None:
    class Scaled(nn.Linear):
        def forward(self, features: th.Tensor) -> th.Tensor:
            return 0.5 * super().forward(features)

    model.actor.mu = Scaled(12, 2)
    renew(model.actor)


@intervention(step_aside=True)
def changed_type_of_a_layer(model: Any) -> None:
    class Scaled(nn.Linear):
        def forward(self, features: th.Tensor) -> th.Tensor:
            return 0.5 * super().forward(features)

    linear(model.critic.q_networks[1], 1).__class__ = Scaled


@intervention(step_aside=False)
def replaced_last_layers_of_critics(model: Any) -> None:
    for q_network in model.critic.q_networks:
        q_network[-1] = nn.Linear(12, q_network[-1].out_features)
    renew(model.critic)


@intervention(step_aside=False)
def replaced_q_network(model: Any) -> None:
    q_network = make_q_network(model)
    for critic in critics(model):
        set_q_network(critic, 1, copy.deepcopy(q_network))
    renew(model.critic)


@intervention(step_aside=False)
def replaced_q_network_by_a_wider_one(model: Any) -> None:
    layers = [nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, model.critic.q_networks[0][-1].out_features)]
    for critic in critics(model):
        set_q_network(critic, 0, nn.Sequential(*copy.deepcopy(layers)))
    renew(model.critic)


@intervention(step_aside=True)
def replaced_q_network_in_the_list_alone(model: Any) -> None:
    """It is evaluated, but trained only by whoever puts it into the optimizer; the target follows the old one."""
    model.critic.q_networks[1] = make_q_network(model)


@intervention(step_aside=True)
def replaced_q_network_in_the_list_and_optimizer(model: Any) -> None:
    model.critic.q_networks[1] = make_q_network(model)
    params = [*model.critic.parameters(), *model.critic.q_networks[1].parameters()]
    model.critic.optimizer = Adam(params, lr=3e-4)


@intervention(step_aside=True)
def one_target_less(model: Any) -> None:
    del model.critic_target.q_networks[1]


@intervention(step_aside=True)
def one_critic_less(model: Any) -> None:
    """It does not learn any more, nor is it evaluated, but its target follows it."""
    for critic in critics(model):
        del critic.q_networks[1]


@intervention(step_aside=True)
def one_network_for_both_critics(model: Any) -> None:
    for critic in critics(model):
        set_q_network(critic, 1, critic.q_networks[0])
    renew(model.critic)


@intervention(step_aside=True)
def layers_that_share_their_weights(model: Any) -> None:
    model.actor.log_std.weight = model.actor.mu.weight
    renew(model.actor)


@intervention(step_aside=False)
def replaced_policy(model: Any) -> None:
    model.policy = SACPolicy(model.observation_space, model.action_space, model.lr_schedule, net_arch=NET_ARCH)
    model._create_aliases()


@intervention(step_aside=False)
def replaced_actor(model: Any) -> None:
    model.policy.actor = model.actor = model.policy.make_actor()
    renew(model.actor)


@intervention(step_aside=False)
def replaced_critics(model: Any) -> None:
    model.policy.critic = model.critic = model.policy.make_critic()
    renew(model.critic)
    model.policy.critic_target = model.critic_target = model.policy.make_critic()
    model.critic_target.load_state_dict(model.critic.state_dict())
    model.critic_target.set_training_mode(False)


@intervention(step_aside=False)
def reset_layers(model: Any) -> None:
    for network in (model.actor, model.critic):
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


@intervention(step_aside=True)
def other_activation(model: Any) -> None:
    i = next(i for i, module in enumerate(model.actor.latent_pi) if isinstance(module, nn.ReLU))
    model.actor.latent_pi[i] = nn.Tanh()


@intervention(step_aside=True)
def another_layer(model: Any) -> None:
    for critic in critics(model):
        critic.q_networks[0].append(nn.LayerNorm(critic.q_networks[0][-1].out_features))
    renew(model.critic)


@intervention(step_aside=False)
def deeper_actor(model: Any) -> None:
    model.actor.latent_pi.extend([nn.Linear(12, 12), nn.ReLU()])
    renew(model.actor)


# --- Parameters


@intervention(step_aside=False)
def load_state_dict(model: Any) -> None:
    model.policy.load_state_dict({name: 0.9 * tensor for name, tensor in model.policy.state_dict().items()})


@intervention(step_aside=False)
def edited_data(model: Any) -> None:
    for param in model.policy.parameters():
        param.data.mul_(0.9)


@intervention(step_aside=False)
def replaced_data(model: Any) -> None:
    for network in (model.actor, *critics(model)):
        for param in network.parameters():
            param.data = 0.9 * param.data


@intervention(step_aside=False)
def transposed_data(model: Any) -> None:
    """The same numbers in another order in memory."""
    weight = linear(model.critic.q_networks[0], 1).weight
    weight.data = weight.data.t().contiguous().t()


@intervention(step_aside=False)
def replaced_parameter(model: Any) -> None:
    model.actor.mu.weight = nn.Parameter(th.zeros(2, 12))
    renew(model.actor)


@intervention(step_aside=True)
def replaced_parameter_without_optimizer(model: Any) -> None:
    model.actor.mu.weight = nn.Parameter(th.zeros(2, 12))


@intervention(step_aside=False)
def set_parameters(model: Any) -> None:
    parameters = copy.deepcopy(model.get_parameters())
    train(model)
    model.set_parameters(parameters)


@intervention(step_aside=False)
def set_parameters_from_a_file(model: Any) -> None:
    file = io.BytesIO()
    model.save(file)
    train(model)
    model.set_parameters(file)


@intervention(step_aside=False)
def hard_target_update(model: Any) -> None:
    model.critic_target.load_state_dict(model.critic.state_dict())


@intervention(step_aside=False)
def deep_copy(model: Any) -> Any:
    copied = copy.deepcopy(model)
    # The copy is on its own
    model.set_random_seed(5)
    train(model)
    return copied


@intervention(step_aside=True)
def frozen_layers(model: Any) -> None:
    for network in (model.actor.latent_pi, model.critic.q_networks[0]):
        linear(network, 0).requires_grad_(False)


@intervention(step_aside=False)
def frozen_for_a_while(model: Any) -> None:
    frozen_layers(model)
    train(model)
    model.policy.actor.requires_grad_(True)
    model.policy.critic.requires_grad_(True)


@intervention(step_aside=True)
def frozen_actor(model: Any) -> None:
    model.actor.requires_grad_(False)


@intervention(step_aside=True, env="PointImage-v0", policy="CnnPolicy")
def frozen_actor_with_a_learnable_extractor(model: Any) -> None:
    for module in (model.actor.latent_pi, model.actor.mu, model.actor.log_std):
        module.requires_grad_(False)


# --- Optimizers


@intervention(step_aside=False)
def cleared_state(model: Any) -> None:
    for network in (model.actor, model.critic):
        network.optimizer.state.clear()


@intervention(step_aside=False)
def new_state(model: Any) -> None:
    model.critic.optimizer.state = type(model.critic.optimizer.state)(dict)


@intervention(step_aside=False)
def state_of_one_parameter_removed(model: Any) -> None:
    del model.actor.optimizer.state[model.actor.mu.weight]


@intervention(step_aside=False)
def edited_moments(model: Any) -> None:
    for network in (model.actor, model.critic):
        for state in network.optimizer.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].mul_(4)


@intervention(step_aside=False)
def replaced_moments(model: Any) -> None:
    for network in (model.actor, model.critic):
        for state in network.optimizer.state.values():
            state["exp_avg"] = th.zeros_like(state["exp_avg"])
            state["exp_avg_sq"] = 4 * state["exp_avg_sq"]


@intervention(step_aside=False)
def edited_step_counts(model: Any) -> None:
    for network in (model.actor, model.critic):
        for state in network.optimizer.state.values():
            state["step"].zero_()


@intervention(step_aside=True)
def weight_decay(model: Any) -> None:
    model.critic.optimizer.param_groups[0]["weight_decay"] = 0.1


@intervention(step_aside=True)
def loaded_weight_decay(model: Any) -> None:
    state_dict = model.actor.optimizer.state_dict()
    state_dict["param_groups"][0]["weight_decay"] = 0.1
    model.actor.optimizer.load_state_dict(state_dict)


@intervention(step_aside=False)
def other_betas(model: Any) -> None:
    for network in (model.actor, model.critic):
        network.optimizer.param_groups[0]["betas"] = (0.5, 0.9)
        network.optimizer.param_groups[0]["eps"] = 1e-3


@intervention(step_aside=False)
def own_state_loaded_before_another_learning_rate(model: Any) -> None:
    """The groups are new dictionaries then, the tensors of the state are not."""
    for network in (model.actor, model.critic):
        network.optimizer.load_state_dict(network.optimizer.state_dict())
    model.learning_rate = 1e-2
    model._setup_lr_schedule()


@intervention(step_aside=True)
def add_param_group(model: Any) -> None:
    critic = model.critic
    critic.optimizer = Adam(critic.q_networks[0].parameters(), lr=3e-4)
    critic.optimizer.add_param_group({"params": list(critic.q_networks[1].parameters()), "weight_decay": 0.1})


@intervention(step_aside=True)
def a_parameter_more(model: Any) -> None:
    model.actor.temperature = nn.Parameter(th.ones(1))
    model.actor.mu.register_forward_hook(lambda module, args, output: output * model.actor.temperature)
    model.actor.optimizer.add_param_group({"params": [model.actor.temperature]})


@intervention(step_aside=True)
def a_parameter_without_use(model: Any) -> None:
    model.actor.temperature = nn.Parameter(th.ones(1))
    renew(model.actor)


@intervention(step_aside=True)
def parameters_left_out(model: Any) -> None:
    model.actor.optimizer = Adam(model.actor.mu.parameters(), lr=3e-4)


@intervention(step_aside=True)
def sgd(model: Any) -> None:
    renew(model.actor, th.optim.SGD, lr=1e-2)
    renew(model.critic, th.optim.SGD, lr=1e-2, momentum=0.9)


@intervention(step_aside=True)
def adamw(model: Any) -> None:
    renew(model.actor, th.optim.AdamW)
    renew(model.critic, th.optim.AdamW)


@intervention(step_aside=True)
def amsgrad(model: Any) -> None:
    renew(model.critic, amsgrad=True)


@intervention(step_aside=True)
def subclass_of_adam(model: Any) -> None:
    class Normalized(Adam):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for param in group["params"]:
                    param.grad = param.grad / (1 + param.grad.norm())
            return super().step(closure)

    renew(model.critic, Normalized)


@intervention(step_aside=True)
def patched_step(model: Any) -> None:
    optimizer, step = model.actor.optimizer, model.actor.optimizer.step

    def step_twice() -> None:
        step()
        step()

    optimizer.step = step_twice


def halve_gradients(optimizer: th.optim.Optimizer) -> None:
    for param in optimizer.param_groups[0]["params"]:
        param.grad.mul_(0.5)


@intervention(step_aside=True)
def hook_before_a_step(model: Any) -> None:
    model.critic.optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: halve_gradients(optimizer))


@intervention(step_aside=True)
def hook_after_a_step(model: Any) -> None:
    def clip(optimizer: Any, args: Any, kwargs: Any) -> None:
        for param in optimizer.param_groups[0]["params"]:
            param.data.clamp_(-0.2, 0.2)

    model.critic.optimizer.register_step_post_hook(clip)


# --- Hooks and parametrizations


def halve(module: nn.Module, args: Any, output: Any) -> Any:
    return tuple(0.5 * part for part in output) if isinstance(output, tuple) else 0.5 * output


@intervention(step_aside=True)
def forward_hook_of_the_actor(model: Any) -> None:
    model.actor.latent_pi.register_forward_hook(halve)


@intervention(step_aside=True)
def forward_hook_of_a_layer(model: Any) -> None:
    linear(model.critic.q_networks[0], 0).register_forward_hook(halve)


@intervention(step_aside=True)
def forward_hook_of_the_critics(model: Any) -> None:
    model.critic.register_forward_hook(halve)


@intervention(step_aside=True)
def forward_hook_of_the_targets(model: Any) -> None:
    model.critic_target.register_forward_hook(halve)


@intervention(step_aside=True)
def forward_hook_of_the_features(model: Any) -> None:
    model.critic.features_extractor.register_forward_hook(halve)


@intervention(step_aside=True)
def forward_hook_that_watches(model: Any) -> None:
    """What is seen becomes part of the state."""
    seen: list[th.Tensor] = []
    for module in (model.actor.mu, model.critic.q_networks[1]):
        module.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().sum()))
    train(model)
    model.policy.register_buffer("seen", th.stack(seen))


@intervention(step_aside=True)
def forward_pre_hook(model: Any) -> None:
    model.critic.q_networks[1].register_forward_pre_hook(lambda module, args: (0.5 * args[0],))


@intervention(step_aside=True)
def backward_hook(model: Any) -> None:
    linear(model.critic.q_networks[0], 1).register_full_backward_hook(lambda module, inputs, outputs: (0.5 * inputs[0],))


@intervention(step_aside=True)
def backward_pre_hook(model: Any) -> None:
    model.actor.mu.register_full_backward_pre_hook(lambda module, outputs: (0.5 * outputs[0],))


@intervention(step_aside=False)
def hook_for_a_while(model: Any) -> None:
    handle = model.actor.mu.register_forward_hook(halve)
    train(model)
    handle.remove()


def mask(grad: th.Tensor) -> th.Tensor:
    return grad * (th.arange(grad.numel()).reshape(grad.shape) % 2)


@intervention(step_aside=True)
def gradient_mask_of_the_actor(model: Any) -> None:
    linear(model.actor.latent_pi, 0).weight.register_hook(mask)


@intervention(step_aside=True)
def gradient_mask_of_the_critics(model: Any) -> None:
    linear(model.critic.q_networks[1], 1).weight.register_hook(mask)


@intervention(step_aside=True)
def gradient_hook_of_the_temperature(model: Any) -> None:
    model.log_ent_coef.register_hook(lambda grad: -grad)


@intervention(step_aside=True)
def hook_after_accumulation(model: Any) -> None:
    def clip(param: th.Tensor) -> None:
        param.grad.clamp_(-1e-3, 1e-3)

    model.actor.mu.weight.register_post_accumulate_grad_hook(clip)


@intervention(step_aside=True)
def spectral_norm(model: Any) -> None:
    for critic in critics(model):
        for q_network in critic.q_networks:
            parametrizations.spectral_norm(linear(q_network, 1))
        critic.load_state_dict(model.critic.state_dict())
    model.policy.set_training_mode(False)
    renew(model.critic)


@intervention(step_aside=True)
def spectral_norm_of_the_actor(model: Any) -> None:
    parametrizations.spectral_norm(linear(model.actor.latent_pi, 1))
    renew(model.actor)


@intervention(step_aside=True)
def weight_norm(model: Any) -> None:
    for critic in critics(model):
        parametrizations.weight_norm(linear(critic.q_networks[0], 0))
    renew(model.critic)


@intervention(step_aside=True)
def pruned(model: Any) -> None:
    prune.l1_unstructured(linear(model.actor.latent_pi, 0), "weight", amount=0.5)
    renew(model.actor)


# --- Overridden methods


@intervention(step_aside=True)
def actor_with_other_parameters(model: Any) -> None:
    class Bounded(Actor):
        def get_action_dist_params(self, obs: Any) -> Any:
            mean_actions, log_std, kwargs = super().get_action_dist_params(obs)
            return 2 * mean_actions.tanh(), log_std - 1, kwargs

    model.actor.__class__ = Bounded


@intervention(step_aside=True)
def actor_with_other_features(model: Any) -> None:
    class Scaled(Actor):
        def extract_features(self, obs: Any, features_extractor: Any) -> th.Tensor:
            return 2 * super().extract_features(obs, features_extractor)

    model.actor.__class__ = Scaled


@intervention(step_aside=True)
def critics_with_another_forward(model: Any) -> None:
    class Halved(type(model.critic)):
        def forward(self, obs: Any, actions: th.Tensor) -> Any:
            return halve(self, (), super().forward(obs, actions))

    model.critic.__class__ = Halved


@intervention(step_aside=True)
def critics_with_other_features(model: Any) -> None:
    class Scaled(type(model.critic)):
        def extract_features(self, obs: Any, features_extractor: Any) -> th.Tensor:
            return 2 * super().extract_features(obs, features_extractor)

    for critic in critics(model):
        critic.__class__ = Scaled


def patch(module: Any, name: str, function: Callable[..., Any]) -> None:
    """Put a method into the instance: function of the old one, and its arguments."""
    setattr(module, name, partial(function, getattr(module, name)))


@intervention(step_aside=True)
def patched_critic(model: Any) -> None:
    patch(model.critic, "forward", lambda forward, *args: halve(model.critic, (), forward(*args)))


@intervention(step_aside=True)
def patched_target(model: Any) -> None:
    patch(model.critic_target, "forward", lambda forward, *args: halve(model.critic, (), forward(*args)))


@intervention(step_aside=True)
def patched_layer(model: Any) -> None:
    patch(model.actor.mu, "forward", lambda forward, features: 0.5 * forward(features))


@intervention(step_aside=True)
def patched_features(model: Any) -> None:
    patch(model.actor, "extract_features", lambda extract, *args: 0.5 * extract(*args))


@intervention(step_aside=True)
def patched_parameters(model: Any) -> None:
    def get_action_dist_params(self: Any, obs: Any) -> Any:
        mean_actions, log_std, kwargs = type(self).get_action_dist_params(self, obs)
        return 0.5 * mean_actions, log_std, kwargs

    model.actor.get_action_dist_params = MethodType(get_action_dist_params, model.actor)


@intervention(step_aside=True)
def unsquashed(model: Any) -> None:
    model.actor.action_dist = DiagGaussianDistribution(2)


@intervention(step_aside=False)
def other_epsilon(model: Any) -> None:
    model.actor.action_dist.epsilon = 0.1


@intervention(step_aside=True)
def patched_distribution(model: Any) -> None:
    # Of both: what is drawn, and what a route makes of it
    patch(model.actor.action_dist, "proba_distribution", lambda make, mean, log_std: make(0.5 * mean, log_std))


# --- The algorithm


@intervention(step_aside=False)
def edited_log_ent_coef(model: Any) -> None:
    with th.no_grad():
        model.log_ent_coef.fill_(-2.0)


@intervention(step_aside=False)
def replaced_log_ent_coef(model: Any) -> None:
    model.log_ent_coef = th.full((1,), -2.0, requires_grad=True)
    model.ent_coef_optimizer = Adam([model.log_ent_coef], lr=3e-4)


@intervention(step_aside=True)
def replaced_log_ent_coef_without_optimizer(model: Any) -> None:
    model.log_ent_coef = th.full((1,), -2.0, requires_grad=True)


@intervention(step_aside=True)
def sgd_of_the_temperature(model: Any) -> None:
    model.ent_coef_optimizer = th.optim.SGD([model.log_ent_coef], lr=0.1)


@intervention(step_aside=False)
def fixed_temperature(model: Any) -> None:
    model.ent_coef_optimizer = None
    model.ent_coef_tensor = th.tensor(0.3)


@intervention(step_aside=False, ent_coef=0.1)
def other_fixed_temperature(model: Any) -> None:
    model.ent_coef_tensor.fill_(0.5)


@intervention(step_aside=False, ent_coef=0.1)
def temperature_that_is_learned_from_now_on(model: Any) -> None:
    replaced_log_ent_coef(model)


@intervention(step_aside=False)
def other_numbers(model: Any) -> None:
    model.target_entropy, model.gamma, model.tau, model.target_update_interval = -5.0, 0.5, 0.3, 2


@intervention(step_aside=False)
def other_learning_rate(model: Any) -> None:
    model.learning_rate = 1e-2
    model._setup_lr_schedule()


@intervention(step_aside=False)
def other_batch_sizes(model: Any) -> None:
    for batch_size in (16, 40, 8, 40):
        model.train(gradient_steps=2, batch_size=batch_size)


@intervention(step_aside=False)
def other_replay(model: Any) -> None:
    model.replay_buffer = copy.deepcopy(model.replay_buffer)
    model.replay_buffer.rewards[:] *= 2


@intervention(step_aside=False)
def patched_replay(model: Any) -> None:
    def sample(sample: Any, *args: Any, **kwargs: Any) -> Any:
        batch = sample(*args, **kwargs)
        return batch._replace(rewards=2 * batch.rewards)

    patch(model.replay_buffer, "sample", sample)


# Those that are about SAC's policy, or about targets
ONLY_SACS = {"replaced_policy", "replaced_critics", "replaced_q_network_by_a_wider_one"}
OF_TARGETS = {"hard_target_update", "one_target_less", "forward_hook_of_the_targets", "patched_target"}

# --- Comparison

PAIRS: dict[str, tuple[Any, Any]] = {
    "eager": (SAC, partial(PathwiseAC, engine="eager")),
    "auto": (SAC, partial(PathwiseAC, engine="auto")),
    "auto, likelihood ratio": (partial(LikelihoodRatioAC, engine="eager"), partial(LikelihoodRatioAC, engine="auto")),
}
# Of critics of other kinds, which interventions make no sense
OTHER_CRITICS = {"quantile": ONLY_SACS, "batch_renorm": ONLY_SACS | OF_TARGETS}


def optimizers(model: Any) -> list[th.optim.Optimizer]:
    found = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
    return [optimizer for optimizer in found if optimizer is not None]


def state(model: Any) -> dict[str, th.Tensor]:
    """All that training changes, by name; in place, so that copies are to be made."""
    tensors = dict(model.policy.state_dict())
    for i, q_network in enumerate(model.critic.q_networks):
        tensors |= {f"q{i}.{name}": tensor for name, tensor in q_network.state_dict().items()}
    if model.log_ent_coef is not None:
        tensors["log_ent_coef"] = model.log_ent_coef.detach()
    for i, optimizer in enumerate(optimizers(model)):
        for j, states in optimizer.state_dict()["state"].items():
            tensors |= {f"{i}.{j}.{name}": value for name, value in states.items() if isinstance(value, th.Tensor)}
    return tensors


def make_pair(make_model: Callable[..., Any], pair: str, critic: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
    """Two models of the same state, the second of which has an engine at work."""
    policy_kwargs = {"net_arch": NET_ARCH, "optimizer_kwargs": ADAM} | ({} if critic is None else {"critic": critic})
    kwargs = {"policy_kwargs": policy_kwargs} | kwargs
    reference, model = (make_model(cls, **kwargs).learn(30, log_interval=1000) for cls in PAIRS[pair])
    engine = choose_engine(model)
    with th.no_grad():
        expected, actual = state(reference), state(model)
        assert expected.keys() == actual.keys()
        for name, tensor in expected.items():
            actual[name].copy_(tensor)
    model.replay_buffer = copy.deepcopy(reference.replay_buffer)
    assert choose_engine(model) is engine
    return reference, model


def assert_same(reference: Any, model: Any) -> None:
    assert reference._n_updates == model._n_updates
    expected, actual = state(reference), state(model)
    assert expected.keys() == actual.keys()
    assert not [name for name, tensor in expected.items() if not th.equal(tensor, actual[name])]
    for key, value in reference.logger.name_to_value.items():
        if key.startswith("train/"):
            np.testing.assert_allclose(model.logger.name_to_value[key], value, rtol=1e-5, err_msg=key)


def assert_alike(reference: Any, model: Any, before: dict[str, th.Tensor]) -> None:
    """The same change, but for rounding, of whatever changed."""
    assert reference._n_updates == model._n_updates
    expected, actual = state(reference), state(model)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        old = before.get(name, th.zeros_like(tensor))
        change, error = (tensor - old).double().norm(), (tensor - actual[name]).double().norm()
        assert error <= 0.02 * change, f"{name}: changes by {change}, {error} beside it"


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_has_the_effect_that_it_has_on_sac(make_model: Callable[..., Any], name: str, pair: str) -> None:
    compare(make_pair(make_model, pair, **KWARGS[name]), name, pair == "eager" or name in STEP_ASIDE)


def compare(pair: tuple[Any, Any], name: str, to_the_last_bit: bool) -> None:
    models = []
    for model in pair:
        model.set_random_seed(3)
        changed = INTERVENTIONS[name](model) or model
        before = {key: tensor.clone() for key, tensor in state(changed).items()}
        changed.set_random_seed(4)
        train(changed)
        models.append(changed)
    assert models[0]._n_updates >= 15
    if to_the_last_bit:
        assert_same(*models)
    else:
        assert_alike(*models, before)


@pytest.mark.parametrize(
    "critic, name",
    [(critic, name) for critic, others in OTHER_CRITICS.items() for name in INTERVENTIONS if name not in others],
)
def test_has_the_effect_that_it_has_on_the_plain_update(make_model: Callable[..., Any], name: str, critic: str) -> None:
    """With other critics, of which not all have SAC as their reference."""
    pair = make_pair(make_model, "auto, likelihood ratio", critic=critic, **KWARGS[name])
    compare(pair, name, name in STEP_ASIDE)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    "register, hook",
    [
        (torch_module.register_module_forward_hook, halve),
        (register_optimizer_step_pre_hook, lambda optimizer, args, kwargs: halve_gradients(optimizer)),
    ],
    ids=["modules", "optimizers"],
)
def test_global_hook(make_model: Callable[..., Any], pair: str, register: Any, hook: Any) -> None:
    models = make_pair(make_model, pair)
    for model in models:
        model.set_random_seed(4)
        handle = register(hook)
        try:
            train(model)
        finally:
            handle.remove()
    assert_same(*models)


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_no_gradient_step(make_model: Callable[..., Any], algorithm: Any, engine: str) -> None:
    model = make_model(algorithm, engine=engine).learn(30)
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    n_updates = model._n_updates
    train(model, gradient_steps=0)
    assert model._n_updates == n_updates
    assert all(th.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_the_choice_is_made_again_and_again(make_model: Callable[..., Any]) -> None:
    """An engine that is faster comes back when what it could not follow has gone."""
    model = make_model(PathwiseAC).learn(30)
    fast, plain = (type(choose_engine(made)) for made in (model, make_model(PathwiseAC, engine="eager").learn(30)))
    assert fast is not plain
    handle = model.actor.mu.register_forward_hook(halve)
    assert type(choose_engine(model)) is plain
    handle.remove()
    assert type(choose_engine(model)) is fast
    model.actor.optimizer.param_groups[0]["weight_decay"] = 0.1
    assert type(choose_engine(model)) is plain
    model.engine = "fused"
    with pytest.raises(ValueError, match=r"engine='fused' cannot run this model: fused: .*weight_decay.*engine='auto'"):
        train(model)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("distribution", ["gaussian_mixture", "beta"])
def test_predictions_from_several_threads(make_model: Callable[..., Any], distribution: str, deterministic: bool) -> None:
    """Distributions of our own keep nothing between two calls: a thread gets the actions at its own states."""
    policy_kwargs = {"net_arch": [32, 32], "distribution": distribution, "n_components": 3}
    model = make_model(LikelihoodRatioAC, policy_kwargs=policy_kwargs)
    with th.no_grad():
        # Actions that tell states apart
        for param in model.actor.parameters():
            param.mul_(3)
        if distribution == "gaussian_mixture":
            # Of the first component alone, next to no noise: parameters are mean, log_std and logit of each
            weight, bias = model.actor.head.weight.view(3, 5, -1), model.actor.head.bias.view(3, 5)
            weight[:, 2:] = 0
            bias[:, 2:4], bias[:, 4] = -20, th.tensor([50.0, 0.0, 0.0])
    n_threads, n_calls = 4, 300
    # What a beta distribution draws is anywhere
    tolerance = 2.0 if distribution == "beta" and not deterministic else 1e-4
    # Of different sizes, which a mixed-up batch shows
    obs = [np.full((i + 1, 2), i / 2 - 0.75, np.float32) for i in range(n_threads)]
    expected = [model.predict(states, deterministic=deterministic)[0] for states in obs]
    wrong: list[str] = []
    start = threading.Barrier(n_threads)

    def predict(i: int) -> None:
        start.wait()
        for _ in range(n_calls):
            try:
                actions, _ = model.predict(obs[i], deterministic=deterministic)
                if actions.shape != expected[i].shape or np.abs(actions - expected[i]).max() > tolerance:
                    wrong.append(f"{actions} for {expected[i]}")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} of {n_threads * n_calls}: {wrong[0]}"


@pytest.mark.parametrize("cls", [PathwiseAC, LikelihoodRatioAC, MixedAC])
def test_unsquashed_actor_is_trained_as_it_acts(make_model: Callable[..., Any], cls: Any) -> None:
    """Every route sees the density of the actions that are taken: that of a Gaussian, without a Jacobian."""
    model = make_model(cls, learning_rate=0.0, ent_coef=1.0)
    model.actor.action_dist = DiagGaussianDistribution(2)
    model.learn(30, log_interval=1000)
    batch = model.replay_buffer.sample(2_000)
    model.replay_buffer.sample = lambda *args, **kwargs: batch
    with th.no_grad():
        _, log_std, _ = model.actor.get_action_dist_params(batch.observations)
        entropy = th.distributions.Normal(0.0, log_std.exp()).entropy().sum(dim=1).mean().item()
    train(model, gradient_steps=1)
    # 2,000 draws of -log pi, whose standard deviation is 1
    assert model.logger.name_to_value["train/entropy"] == pytest.approx(entropy, abs=5 / np.sqrt(2_000))
