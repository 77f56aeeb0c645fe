"""
XQC's critic: a categorical distribution of the return on a fixed support, learned by cross-entropy, with batch normalisation
and rows of unit norm (https://arxiv.org/abs/2509.25174; the projection on the support: https://arxiv.org/abs/1707.06887).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_pathwise.critics.base import ActionValue, Critic, action_value, discounts
from sb3_pathwise.normalization import folded, joint, statistics_of

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class CategoricalNetworks(ContinuousCritic):
    """
    Networks of logits: normalisation, then for each hidden layer a linear one without bias, normalisation and activation, and
    a linear layer at the end.

    :param n_atoms: Logits per network
    :param kwargs: Keyword arguments of SAC's critic
    """

    def __init__(self, *, n_atoms: int, **kwargs: Any) -> None:
        # Without layers: they are others than SAC's
        super().__init__(**kwargs | {"net_arch": []})
        batch_norm = partial(nn.BatchNorm1d, momentum=0.01, eps=0.001)
        activation_fn = kwargs.get("activation_fn", nn.ReLU)
        for i in range(self.n_critics):
            n_inputs = self.q_networks[i][0].in_features  # type: ignore[index]
            hidden = create_mlp(n_inputs, -1, kwargs["net_arch"], activation_fn, False, False, None, [batch_norm])  # type: ignore[list-item]
            output = nn.Linear([n_inputs, *kwargs["net_arch"]][-1], n_atoms)
            for layer in (*hidden, output):
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight, math.sqrt(2))
            nn.init.zeros_(output.bias)
            self.q_networks[i] = nn.Sequential(batch_norm(n_inputs), *hidden, output)
            self.add_module(f"qf{i}", self.q_networks[i])

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:  # type: ignore[override]
        """
        :param obs: Observations, batch size B
        :param actions: Actions, shape (B, d)
        :return: logits, shape (B, n_critics, n_atoms)
        """
        return th.stack(super().forward(obs, actions), dim=1)


class CategoricalCritic(Critic):
    """
    ``n_critics`` distributions of the return over equidistant atoms. Each descends the cross-entropy to the same target: the
    distribution of whichever target network has the smaller mean, moved by Bellman's equation and projected on the atoms. The
    value is the smallest of the means.

    Returns must lie on the support: scale the rewards by ``VecNormalize(norm_reward=True, gamma=...)`` with the algorithm's
    gamma, or give the support. For long trainings; XQC has four layers of 512, ``policy_delay=3``, two gradient steps per
    environment step, a learning rate that falls from 3e-4 to 3e-5, ``ent_coef="auto_0.01"`` and a target entropy of -d / 2.
    Unlike XQC's, the actor is not normalised.

    :param n_atoms: Atoms of the distribution
    :param v_min: Value of the first atom
    :param v_max: Value of the last atom
    :raises ValueError: if there are not at least two atoms, from left to right
    """

    min_batch_size = 2

    def __init__(self, n_atoms: int = 101, v_min: float = -5.0, v_max: float = 5.0) -> None:
        if not isinstance(n_atoms, int) or n_atoms < 2:
            raise ValueError(f"n_atoms must be an integer of at least 2, got {n_atoms!r}.")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in (v_min, v_max)) or v_min >= v_max:
            raise ValueError(f"v_min and v_max must be numbers with v_min < v_max, got {v_min!r} and {v_max!r}.")
        self.n_atoms = n_atoms
        self.v_min = v_min
        self.v_max = v_max

    def make(self, policy: SACPolicy, features_extractor: BaseFeaturesExtractor | None) -> CategoricalNetworks:
        kwargs = policy._update_features_extractor(policy.critic_kwargs, features_extractor)
        critic = CategoricalNetworks(**kwargs, n_atoms=self.n_atoms).to(policy.device)
        self.after_step(critic)
        return critic

    def loss(
        self,
        agent: "ActorCritic",
        replay_data: ReplayBufferSamples,
        next_actions: th.Tensor,
        next_log_prob: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        n_rows = len(next_actions)
        all_obs = joint(replay_data.observations, replay_data.next_observations)
        all_actions = joint(replay_data.actions, next_actions)
        critics: Any = (agent.critic, agent.critic_target)
        with statistics_of(True, *agent.critic.q_networks, *agent.critic_target.q_networks, layer=nn.BatchNorm1d):
            log_probs = critics[0](all_obs, all_actions)[:n_rows].log_softmax(dim=2)
            with th.no_grad():
                next_probs = critics[1](all_obs, all_actions)[n_rows:].softmax(dim=2)
        with th.no_grad():
            atoms = self.atoms(next_probs)
            smaller = (next_probs @ atoms).argmin(dim=1)
            next_probs = next_probs[th.arange(n_rows), smaller]
            returns = atoms - ent_coef * next_log_prob.reshape(-1, 1)
            returns = replay_data.rewards + (1 - replay_data.dones) * discounts(agent, replay_data) * returns
            target_probs = self.project(returns, next_probs)
        return -(target_probs.unsqueeze(1) * log_probs).sum(dim=2).mean(dim=0).sum(), target_probs

    def atoms(self, like: th.Tensor) -> th.Tensor:
        """
        :param like: A tensor of any shape, of the device and type to have
        :return: values of the atoms, shape (n_atoms,)
        """
        return th.linspace(self.v_min, self.v_max, self.n_atoms, device=like.device, dtype=like.dtype)

    def project(self, returns: th.Tensor, probs: th.Tensor) -> th.Tensor:
        """
        Split the probability of each return between the two atoms next to it, so that the mean stays, but for what lies beyond
        the support.

        :param returns: Returns, shape (B, n_atoms)
        :param probs: Their probabilities, shape (B, n_atoms)
        :return: probabilities of the atoms, shape (B, n_atoms)
        """
        position = (returns.clamp(self.v_min, self.v_max) - self.v_min) * ((self.n_atoms - 1) / (self.v_max - self.v_min))
        # Rounding must not lead beyond the last atom, nor is there one after it
        lower = position.floor().clamp(max=self.n_atoms - 2)
        to_upper = position - lower
        index = lower.long()
        projected = th.zeros_like(probs).scatter_add(1, index, probs * (1 - to_upper))
        return projected.scatter_add(1, index + 1, probs * to_upper)

    def value(self, critic: CategoricalNetworks, obs: PyTorchObs) -> ActionValue:
        def smallest_mean(logits: Sequence[th.Tensor]) -> th.Tensor:
            means = [logit.softmax(dim=1) @ self.atoms(logit) for logit in logits]
            return th.stack(means, dim=1).min(dim=1).values

        # With statistics of the batch, an action's value would depend on the other actions
        value = action_value(critic, obs, CategoricalNetworks, smallest_mean, folded)

        def value_by_running_statistics(actions: th.Tensor) -> th.Tensor:
            with statistics_of(False, *critic.q_networks, layer=nn.BatchNorm1d):
                return value(actions)

        return value_by_running_statistics

    @th.no_grad()
    def after_step(self, critic: CategoricalNetworks) -> None:
        for layer in [layer for q_network in critic.q_networks for layer in q_network.modules()]:
            if isinstance(layer, nn.Linear):
                layer.weight.div_(layer.weight.norm(dim=1, keepdim=True))
