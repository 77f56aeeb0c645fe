"""
The algorithm on one screen: soft actor-critic (https://arxiv.org/abs/1812.05905) with an exchangeable gradient route and an
exchangeable critic, in plain PyTorch.

It uses whatever modules, hooks, optimizers and overridden methods the model has, and defines what every engine computes. With
the pathwise route and the twin critic it is SB3's SAC, bit for bit. No word on speed here, see ``engines/``.
"""

from typing import TYPE_CHECKING

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update

from sb3_pathwise.distributions import draw_actions
from sb3_pathwise.objective import current_ent_coef, surrogate_of_objective

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

# Scalars without graph, on whichever device
Metrics = dict[str, th.Tensor | float]


def update(agent: "ActorCritic", replay_data: ReplayBufferSamples, update_actor: bool, update_targets: bool) -> Metrics:
    """
    One gradient step.

    :param agent: The algorithm
    :param replay_data: Batch of transitions
    :param update_actor: Whether the actor and the temperature take a step too
    :param update_targets: Whether the target networks follow
    :return: what to log, scalars by name
    """
    critic_rule, obs = agent.critic_rule, replay_data.observations
    # Sampled anew, because log_std may have changed between two gradient steps
    if agent.use_sde:
        agent.actor.reset_noise()
    ent_coef = current_ent_coef(agent)
    metrics: Metrics = {"ent_coef": ent_coef.squeeze()}

    # Draw
    draw = draw_actions(agent.actor, obs) if update_actor and critic_rule.actor_draws_first else None
    with th.no_grad(), critic_rule.while_acting(agent.actor):
        next_actions, next_log_prob = agent.actor.action_log_prob(replay_data.next_observations)

    # The critics descend their loss
    critic_loss, target_q_values = critic_rule.loss(agent, replay_data, next_actions, next_log_prob, ent_coef)
    metrics["critic_loss"] = critic_loss.detach()
    metrics["critic_grad_norm"] = descend(
        agent, agent.critic.optimizer, "critic_loss", critic_loss, agent.max_grad_norm, target=target_q_values
    )
    critic_rule.after_step(agent.critic)

    if update_actor:
        # The actor climbs the surrogate, and nothing else of an algorithm differs from the others
        draw = draw or draw_actions(agent.actor, obs)
        value = critic_rule.value(agent.critic, obs)
        surrogate = surrogate_of_objective(agent.actor_surrogate, draw, value, ent_coef, agent.samples_gaussian_entropy)
        actor_loss = -surrogate.mean()
        log_prob = draw.log_prob.detach()
        metrics |= {"actor_loss": actor_loss.detach(), "entropy": -log_prob.mean()}
        metrics["actor_grad_norm"] = descend(agent, agent.actor.optimizer, "actor_loss", actor_loss, agent.max_grad_norm)

        # The temperature follows the entropy, see https://github.com/rail-berkeley/softlearning/issues/37
        if agent.ent_coef_optimizer is not None and agent.log_ent_coef is not None:
            assert isinstance(agent.target_entropy, float)
            ent_coef_loss = -(agent.log_ent_coef * (log_prob + agent.target_entropy)).mean()
            metrics["ent_coef_loss"] = ent_coef_loss.detach()
            descend(agent, agent.ent_coef_optimizer, "ent_coef_loss", ent_coef_loss)

    # The targets follow
    if update_targets and critic_rule.has_target:
        polyak_update(agent.critic.parameters(), agent.critic_target.parameters(), agent.tau)
        # Running statistics of batch norm are copied, see https://github.com/DLR-RM/stable-baselines3/issues/996
        polyak_update(agent.batch_norm_stats, agent.batch_norm_stats_target, 1.0)
    return metrics


def descend(
    agent: "ActorCritic",
    optimizer: th.optim.Optimizer,
    name: str,
    loss: th.Tensor,
    max_grad_norm: float | None = None,
    **causes: th.Tensor,
) -> th.Tensor:
    """
    One step of an optimizer. Only its own parameters receive gradients.

    :param agent: The algorithm
    :param optimizer: The optimizer
    :param name: Name of the loss
    :param loss: Loss, a scalar
    :param max_grad_norm: What to clip the norm of the gradient to, if at all
    :param causes: Tensors of any shape that the loss came from, by name, earliest first: if it is not finite one of
        them may be to blame
    :return: norm of the gradient, a scalar, before clipping
    :raises NonFiniteError: if the loss or its gradient is not finite; nothing has changed then
    """
    params = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
    optimizer.zero_grad()
    if params:
        loss.backward(inputs=params)
    grads = [param.grad for param in params if param.grad is not None]
    grad_norm = th.nn.utils.get_total_norm(grads) if grads else th.zeros_like(loss.detach())
    agent.check_descent(optimizer, name, loss.detach(), grad_norm, **causes)
    if max_grad_norm is not None:
        th.nn.utils.clip_grads_with_norm_(params, max_grad_norm, grad_norm)
    optimizer.step()
    return grad_norm
