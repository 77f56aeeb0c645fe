"""
What a critic has to know: its networks, its loss, its value as a function of the action, and whether it has a target.

The update, the routes and the probe see no more of a critic than this. One file for each kind of critic, see
``critics/__init__.py`` for the list.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch.nn.modules.module import _has_any_global_hook

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
    #: Smallest batch that it can learn from
    min_batch_size: ClassVar[int] = 1
    #: Whether the actor's actions are drawn before the target's, as in SAC
    actor_draws_first: ClassVar[bool] = True

    @abstractmethod
    def make(self, policy: SACPolicy, features_extractor: BaseFeaturesExtractor | None) -> Any:
        """
        :param policy: The policy that is being built, with ``critic_kwargs``
        :param features_extractor: The actor's features extractor if it is shared
        :return: critic networks, a ``BaseModel`` with an ``extract_features`` of its own
        """

    def prepare_actor(self, actor: Actor) -> None:  # noqa: B027
        """
        To be called when an actor is made, before its optimizer is.

        :param actor: Actor network, to be changed in place
        """

    def while_acting(self, actor: Actor) -> AbstractContextManager[None]:
        """
        :param actor: Actor network
        :return: a context in which it draws the actions of the next states
        """
        return nullcontext()

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


def action_value(
    critic: Any,
    obs: PyTorchObs,
    stock: type,
    reduce: Callable[[Sequence[th.Tensor]], th.Tensor],
    network: Callable[[Any], Callable[[th.Tensor], th.Tensor] | None] = lambda q_network: q_network,
) -> ActionValue:
    """
    Critics as a function of the actions alone. For several actions per state, features are extracted once per state, unless
    the critics' ``forward`` is not SB3's or is hooked.

    :param critic: Critic networks, with ``q_networks``
    :param obs: Observations, batch size B
    :param stock: Class whose ``forward`` is known: features and actions side by side, each of the networks
    :param reduce: What the value is: maps the networks' outputs, each of shape (N, k), to values (N,)
    :param network: For several actions, what to evaluate in place of a network, or ``None`` if nothing else will do
    :return: maps actions (n, B, d) to values (n, B), differentiable in the actions
    """
    is_stock = getattr(critic.forward, "__func__", None) is stock.forward  # type: ignore[attr-defined]
    hooks = (critic._forward_hooks, critic._forward_pre_hooks, critic._backward_hooks, critic._backward_pre_hooks)
    whole = not is_stock or any(hooks) or _has_any_global_hook()
    features: list[th.Tensor] = []
    networks: list[Any] = []

    def value(actions: th.Tensor) -> th.Tensor:
        if len(actions) > 1 and not whole and not networks:
            networks.extend(map(network, critic.q_networks))
        if len(actions) == 1 or whole or None in networks:
            return th.stack([reduce(_outputs(critic(obs, a))) for a in actions])
        if not features:
            with th.no_grad():
                features.append(critic.extract_features(obs, critic.features_extractor))
        qvalue_input = th.cat([features[0].repeat(len(actions), 1), actions.flatten(end_dim=1)], dim=1)
        return reduce([q_net(qvalue_input) for q_net in networks]).view(actions.shape[:-1])

    return value


def _outputs(outputs: Sequence[th.Tensor] | th.Tensor) -> Sequence[th.Tensor]:
    return outputs.unbind(1) if isinstance(outputs, th.Tensor) else outputs


def smallest(q_values: Sequence[th.Tensor]) -> th.Tensor:
    """
    :param q_values: of each critic, shape (N, 1)
    :return: the smallest, shape (N,)
    """
    return th.min(th.cat(tuple(q_values), dim=1), dim=1).values


def discounts(agent: "ActorCritic", replay_data: ReplayBufferSamples) -> th.Tensor | float:
    """
    :param agent: The algorithm
    :param replay_data: Transitions
    :return: what the value of the next state counts, shape (B, 1) or one number: for n-step replay ``gamma**n_steps``,
        when no early termination
    """
    return agent.gamma if replay_data.discounts is None else replay_data.discounts
