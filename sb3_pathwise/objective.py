"""
The integrand of J as a function of the action, and the surrogate that a route makes of it.

The update, the engines and the probe all climb what is written here. What a critic's value is stands in ``critics/``, what a
route is in ``routes.py``.
"""

from collections.abc import Callable
from typing import cast

import torch as th
from stable_baselines3 import SAC
from torch.distributions import Distribution, Independent, Normal

from sb3_pathwise.critics import ActionValue
from sb3_pathwise.distributions import PolicyDraw
from sb3_pathwise.routes import Objective

# A route with all its arguments but the first two
Route = Callable[[Distribution, Objective], th.Tensor]


def current_ent_coef(model: SAC) -> th.Tensor:
    """
    :param model: SAC, or an algorithm of ours
    :return: its entropy coefficient, learned or fixed, one number without graph
    """
    is_learned = model.ent_coef_optimizer is not None and model.log_ent_coef is not None
    if is_learned or not hasattr(model, "ent_coef_tensor"):
        return th.exp(cast(th.Tensor, model.log_ent_coef).detach())
    return model.ent_coef_tensor


def surrogate_of_objective(
    route: Route, draw: PolicyDraw, value: ActionValue, ent_coef: th.Tensor | float, samples_gaussian_entropy: bool = False
) -> th.Tensor:
    """
    ``J = E_{a ~ pi(.|s)} [Q(s, a) - ent_coef * log pi(a|s)]`` in value, the route's estimate of its gradient in gradient.

    ``H[pi] = H[base] + E[log |d actions / d x|]``, with x the pre-squash action: where the first term is known in closed form
    it leaves the route less to estimate, without bias (Rao-Blackwell).

    :param route: The route, a function of distribution and objective
    :param draw: The policy at B states, and SAC's draw from it
    :param value: Q as a function of the actions at these states
    :param ent_coef: Entropy coefficient, a scalar
    :param samples_gaussian_entropy: Whether a Gaussian's entropy is left to the route: the pathwise derivative of its sampled
        log-probability is that of the closed form already, and SAC's to the last bit
    :return: surrogate, shape (B,), to be maximised
    :raises ValueError: if the route cannot use the policy, or gives the objective what are no actions at these states
    """
    policy_dist = draw.policy_dist
    entropy_base = _closed_form_entropy(policy_dist.base, samples_gaussian_entropy)

    def objective(x: th.Tensor) -> th.Tensor:
        # Broadcasting would make something of almost any shape
        if x.shape[1:] != draw.x.shape:
            raise ValueError(f"The objective takes actions of shape {('n', *draw.x.shape)}, got {tuple(x.shape)}.")
        if entropy_base is None:
            actions_pi, log_prob = draw.actions_with_log_prob(x)
            return value(actions_pi) - ent_coef * log_prob
        actions_pi = policy_dist.squash(x)
        return value(actions_pi) + ent_coef * policy_dist.log_abs_det_jacobian(x, actions_pi)

    surrogate = route(draw.base, objective)
    return surrogate if entropy_base is None else surrogate + ent_coef * entropy_base


def _closed_form_entropy(base: Distribution, samples_gaussian_entropy: bool) -> th.Tensor | None:
    if samples_gaussian_entropy and isinstance(base, Independent) and isinstance(base.base_dist, Normal):
        return None
    try:
        return base.entropy()
    except NotImplementedError:
        return None
