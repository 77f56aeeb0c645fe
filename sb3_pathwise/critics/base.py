"""
What a critic has to know: its networks, its loss, its value as a function of the action, and whether it has a target.

The update, the routes and the probe see no more of a critic than this. One file for each kind of critic, see
``critics/__init__.py`` for the list.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.sac.policies import SACPolicy

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

# Maps actions (n, B, d) to values (n, B)
ActionValue = Callable[[th.Tensor], th.Tensor]


class Critic(ABC):
    """
    A kind of critic, chosen by ``policy_kwargs=dict(critic=...)``. Its constructor's arguments are ``policy_kwargs`` too.

    It holds no network: those are ``policy.critic`` and, perhaps, ``policy.critic_target``, so that they are saved, loaded,
    replaced and hooked like SAC's.
    """

    #: Whether there are target networks
    has_target: ClassVar[bool] = True
    #: Whether the actor's actions are drawn before the target's, as in SAC
    actor_draws_first: ClassVar[bool] = True

    @abstractmethod
    def make(self, policy: SACPolicy, features_extractor: BaseFeaturesExtractor | None) -> Any:
        """
        :param policy: The policy that is being built, with ``critic_kwargs``
        :param features_extractor: The actor's features extractor if it is shared
        :return: critic networks, a ``BaseModel`` with an ``extract_features`` of its own
        """

    @abstractmethod
    def loss(
        self,
        agent: "ActorCritic",
        replay_data: ReplayBufferSamples,
        next_actions: th.Tensor,
        next_log_prob: th.Tensor,
        ent_coef: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param agent: The algorithm, for its critics and ``gamma``
        :param replay_data: Transitions, batch size B
        :param next_actions: The policy's actions at the next states, shape (B, d)
        :param next_log_prob: Their log-probability, shape (B,)
        :param ent_coef: Entropy coefficient, a scalar
        :return: loss, a scalar; and the target that it aims at, without graph, which alarms look at
        """

    @abstractmethod
    def value(self, critic: Any, obs: PyTorchObs) -> ActionValue:
        """
        What the actor climbs, as a function of the action alone.

        :param critic: Critic networks
        :param obs: Observations, batch size B
        :return: maps actions (n, B, d) to values (n, B), each depending on its own action and state only, differentiable
        """

    def after_step(self, critic: Any) -> None:  # noqa: B027
        """
        To be called when the critic's optimizer has taken a step.

        :param critic: Critic networks
        """


def discounts(agent: "ActorCritic", replay_data: ReplayBufferSamples) -> th.Tensor | float:
    """
    :param agent: The algorithm
    :param replay_data: Transitions
    :return: what the value of the next state counts: for n-step replay ``gamma**n_steps``, when no early termination
    """
    return agent.gamma if replay_data.discounts is None else replay_data.discounts
