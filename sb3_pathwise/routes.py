"""
Four routes to the gradient of an expectation, with one signature.

Here live four unbiased estimators of ``grad E_{a ~ dist}[objective(a)]``, the gradient being the one with respect to the
parameters of ``dist``. Pure PyTorch: no environment, no replay buffer, no critic and no Stable-Baselines3; what the objective
is, and who climbs it, is decided elsewhere (``learner.py``).

Every route takes a distribution with batch shape ``(B,)`` and event shape ``(d,)``, and an objective that maps actions
``(n, B, d)`` to values ``(n, B)``, each value depending on its own action only. Every route returns a surrogate ``(B,)`` whose
*value* is the Monte Carlo estimate of ``E[objective]`` and whose *gradient*, taken by autograd, is the route's estimate of
``grad E[objective]``. It is meant to be maximised.

The survey to read first is Mohamed, Rosca, Figurnov and Mnih, "Monte Carlo Gradient Estimation in Machine Learning",
JMLR 21 (132), 2020.
"""

import math
from collections.abc import Callable

import torch as th
from torch.distributions import Distribution, Independent, Normal

__all__ = ["BASELINES", "Objective", "likelihood_ratio", "measure_valued", "mixed", "pathwise"]

Objective = Callable[[th.Tensor], th.Tensor]

BASELINES = ("leave_one_out", "mean_action", "none")


def pathwise(dist: Distribution, objective: Objective, n_samples: int = 1) -> th.Tensor:
    """
    Pathwise (reparameterised) gradient: write ``a = T(eps; theta)`` and differentiate *through the objective*,
    ``E[grad_a objective(a) dT/dtheta]`` (Kingma and Welling, 2014; Mohamed et al., 2020, section 5).

    Unbiased if the objective is Lipschitz and differentiable almost everywhere, as a ReLU network is and a step is not.

    :param dist: distribution with ``rsample``, batch shape ``(B,)``, event shape ``(d,)``
    :param objective: maps ``(n_samples, B, d)`` to ``(n_samples, B)``, differentiable
    :param n_samples: draws per batch row, at least 1
    :return: surrogate of shape ``(B,)``
    :raises ValueError: if ``dist`` has no ``rsample``, ``n_samples < 1`` or the objective returns another shape
    """
    _check_n_samples(n_samples, at_least=1)
    _check_rsample(dist, "pathwise")
    return _evaluate(objective, dist.rsample(th.Size((n_samples,)))).mean(0)


def likelihood_ratio(
    dist: Distribution, objective: Objective, n_samples: int = 8, baseline: str = "leave_one_out"
) -> th.Tensor:
    """
    Likelihood-ratio (score-function, REINFORCE) gradient: the objective is only *evaluated*, and it is the log-probability of
    the sampled actions that is differentiated, ``E[(objective(a) - b) grad log p(a)]`` (Williams, 1992; Mohamed et al., 2020,
    section 4).

    The action is held fixed in ``log p(a)``. At a reparameterised action, not detached, the parameters would enter twice,
    through ``p`` and through ``a``: the parts cancel for the mean of a Gaussian and leave -1 for its log standard deviation.

    Any baseline ``b`` that does not depend on the action it is compared with leaves the expectation as it is:
    ``"leave_one_out"``, the mean of the *other* draws (Kool, van Hoof and Welling, 2019), costs nothing and needs two draws;
    ``"mean_action"``, the objective at ``dist.mean``, costs one evaluation more; ``"none"`` is 0, and only worth a comparison.

    :param dist: distribution with ``log_prob``, batch shape ``(B,)``, event shape ``(d,)``; ``rsample`` is not needed
    :param objective: maps ``(n, B, d)`` to ``(n, B)``; never differentiated, called once
    :param n_samples: draws per batch row, at least 2 for ``"leave_one_out"``, otherwise at least 1
    :param baseline: ``"leave_one_out"``, ``"mean_action"`` or ``"none"``
    :return: surrogate of shape ``(B,)``
    :raises ValueError: if ``n_samples`` is too small, the baseline unknown, or the objective returns another shape
    """
    _check_baseline(baseline)
    _check_n_samples(n_samples, at_least=1)
    if baseline == "leave_one_out" and n_samples < 2:
        raise ValueError(
            "baseline='leave_one_out' compares each sample with the others and needs n_samples >= 2, got n_samples=1: "
            "draw more samples or use baseline='mean_action'"
        )
    with th.no_grad():
        actions = _sample(dist, n_samples)
        values, value_at_mean = _evaluate_with_baseline(dist, objective, actions, baseline)
        advantages = _advantages(values, value_at_mean, baseline)
    log_prob = dist.log_prob(actions)
    return values.mean(0) + (advantages * (log_prob - log_prob.detach())).mean(0)


def measure_valued(dist: Distribution, objective: Objective, n_samples: int = 1) -> th.Tensor:
    r"""
    Measure-valued (weak) derivative of a diagonal Gaussian: the derivative of the *density* is a difference of two densities,
    and the objective is evaluated at a draw from each (Pflug, 1996; Heidergott, Vazquez-Abad and Volk-Makarewicz, 2008;
    Mohamed et al., 2020, section 6). For one coordinate at a time, all the others being drawn from the Gaussian,

    - mean: ``(E f(mu + sigma W) - E f(mu - sigma W)) / (sigma sqrt(2 pi))``, with W from Weibull(2, sqrt 2) (= Rayleigh(1));
    - scale: ``(E f(mu + sigma M) - E f(mu + sigma N)) / sigma``, with M from the double-sided Maxwell and N from the standard
      normal distribution.

    Both pairs are coupled: the same W on both sides, and N = M U with U uniform on (0, 1), which is standard normal. The other
    coordinates are the same within a pair and fresh for every coordinate.

    :param dist: ``Independent(Normal(loc, scale), 1)`` or a subclass of it, batch shape ``(B,)``, event shape ``(d,)``
    :param objective: maps ``(4 * d * n_samples, B, d)`` to ``(4 * d * n_samples, B)``; never differentiated, called once
    :param n_samples: draws per batch row and coordinate, at least 1
    :return: surrogate of shape ``(B,)``; its value is the mean over the ``d * n_samples`` evaluations at plain Gaussian points
    :raises ValueError: if ``dist`` is of another family, ``n_samples < 1`` or the objective returns another shape
    """
    _check_n_samples(n_samples, at_least=1)
    if not (isinstance(dist, Independent) and isinstance(dist.base_dist, Normal) and len(dist.event_shape) == 1):
        raise ValueError(
            f"measure_valued supports diagonal Gaussians only, Independent(Normal(loc, scale), 1), got {_family(dist)}: "
            "use likelihood_ratio, or pathwise if the distribution has rsample"
        )
    loc, scale = dist.base_dist.loc, dist.base_dist.scale
    with th.no_grad():
        dim = loc.shape[-1]
        normals = th.randn(6, n_samples, *loc.shape, dtype=loc.dtype, device=loc.device)
        weibull = normals[:2].norm(dim=0)
        maxwell = normals[2:5].norm(dim=0).copysign(normals[5])
        gaussian = maxwell * th.rand_like(maxwell)
        # (part, coordinate j, sample, row, d): Gaussian points, of which coordinate j is replaced by that of the four parts
        points = _sample(dist, dim, n_samples).repeat(4, 1, 1, 1, 1)
        points.diagonal(dim1=1, dim2=-1).copy_(loc + scale * th.stack((weibull, -weibull, maxwell, gaussian)))
        values = _evaluate(objective, points.flatten(0, 2)).unflatten(0, (4, dim, n_samples))
        right, left, wide, plain = values.mean(2).mT
        grad_loc = (right - left) / (scale * math.sqrt(2 * math.pi))
        grad_scale = (wide - plain) / scale
    return plain.mean(-1) + _linear(loc, grad_loc) + _linear(scale, grad_scale)


def mixed(dist: Distribution, objective: Objective, n_samples: int = 8, baseline: str = "leave_one_out") -> th.Tensor:
    """
    Pathwise and likelihood-ratio estimates of the same draws, averaged with inverse-variance weights that sum to one, for each
    parameter of the distribution and each batch row (after Parmas, Rasmussen, Peters and Doya, "PIPPS", 2018).

    The weights are cross-fitted: the draws are split in two halves, and each half is weighed by the sample variances of the
    other. As the weights are independent of what they weigh, the result is unbiased for any weights; leave-one-out baselines
    stay within their half for the same reason. Wherever the pathwise route is biased (steps) this one is, too.

    When mixing cannot gain: the two estimates share their draws and are correlated, which inverse-variance weights ignore. On
    a quadratic objective with the baseline ``E[objective]`` (leave-one-out is that, up to noise) their covariance for the mean
    of a Gaussian *equals* the pathwise variance: the best weight for the likelihood ratio is 0, and whatever it gets here adds
    variance. With few draws it gets too much, because sample variances of a skewed quantity are mostly too small. Mixing pays
    where nobody knows beforehand which route is better, as with an objective that is rough at the scale of the distribution in
    some rows and smooth in others.

    :param dist: ``Independent(base, 1)`` with a reparameterised base of independent coordinates, e.g. ``Normal`` or ``Beta``;
        batch shape ``(B,)``, event shape ``(d,)``
    :param objective: maps ``(n, B, d)`` to ``(n, B)``, differentiable, called once
    :param n_samples: draws per batch row, at least 4: a variance, and a leave-one-out mean, in each half takes two
    :param baseline: as in :func:`likelihood_ratio`
    :return: surrogate of shape ``(B,)``
    :raises ValueError: if ``dist`` cannot be reparameterised coordinate by coordinate, ``n_samples < 4``, the baseline is
        unknown, or the objective returns another shape
    """
    _check_baseline(baseline)
    _check_n_samples(n_samples, at_least=4, remedy=" (two for each half), or use pathwise or likelihood_ratio")
    _check_rsample(dist, "mixed")
    if not (isinstance(dist, Independent) and len(dist.event_shape) == 1 and dist.base_dist.arg_constraints):
        raise ValueError(
            f"mixed needs independent coordinates, such as Independent(Normal(loc, scale), 1), got {_family(dist)}: "
            "use pathwise or likelihood_ratio"
        )
    base = dist.base_dist
    params = [getattr(base, name) for name in base.arg_constraints]
    with th.enable_grad():
        # One copy of the parameters for each draw gives one gradient for each draw
        copies = [param.detach().expand(n_samples, *param.shape).clone().requires_grad_() for param in params]
        copied = type(base)(**dict(zip(base.arg_constraints, copies, strict=True)), validate_args=False)
        actions = copied.rsample()
        values, value_at_mean = _evaluate_with_baseline(dist, objective, actions, baseline)
        pathwise_grads = th.autograd.grad(values.sum(), copies)
        values = values.detach()
        advantages = th.cat([_advantages(half, value_at_mean, baseline) for half in values.tensor_split(2)])
        score = copied.log_prob(actions.detach())
        ratio_grads = th.autograd.grad((advantages.unsqueeze(-1) * score).sum(), copies)
    surrogate = values.mean(0)
    for param, pathwise_grad, ratio_grad in zip(params, pathwise_grads, ratio_grads, strict=True):
        surrogate = surrogate + _linear(param, _cross_fitted_mean(pathwise_grad, ratio_grad))
    return surrogate


def _cross_fitted_mean(first: th.Tensor, second: th.Tensor) -> th.Tensor:
    """
    Inverse-variance average of two estimates of the same thing, each half of the draws weighed by the other half.

    :param first: one estimate per draw, ``(n, ...)``; it alone counts where both variances are zero
    :param second: another one per draw, ``(n, ...)``
    :return: their average over the draws, ``(...)``
    """
    halves = list(zip(first.tensor_split(2), second.tensor_split(2), strict=True))
    weights = []  # of the second estimate: (1 / var2) / (1 / var1 + 1 / var2); the first one has the rest to 1
    for half in halves:
        # Tensor.var is slow over the first dimension, and the number of draws cancels
        var1, var2 = ((draws - draws.mean(0)).square().sum(0) for draws in half)
        weights.append(var1 / (var1 + var2).clamp_min(th.finfo(first.dtype).tiny))
    return th.cat([one + weight * (two - one) for (one, two), weight in zip(halves, reversed(weights), strict=True)]).mean(0)


def _advantages(values: th.Tensor, value_at_mean: th.Tensor | None, baseline: str) -> th.Tensor:
    """
    Values ``(n, B)`` minus their baseline, which for no value depends on its own draw.
    """
    if baseline == "leave_one_out":
        n_samples = len(values)
        # f_i minus the mean of the others is n / (n - 1) times f_i minus the mean of all
        return (values - values.mean(0)) * (n_samples / (n_samples - 1))
    return values if value_at_mean is None else values - value_at_mean


def _evaluate_with_baseline(
    dist: Distribution, objective: Objective, actions: th.Tensor, baseline: str
) -> tuple[th.Tensor, th.Tensor | None]:
    """
    Values ``(n, B)`` of the actions ``(n, B, d)`` and, for ``"mean_action"``, from the same call, that of the mean ``(B,)``.
    """
    if baseline != "mean_action":
        return _evaluate(objective, actions), None
    values = _evaluate(objective, th.cat((actions, dist.mean.detach().unsqueeze(0))))
    return values[:-1], values[-1].detach()


def _evaluate(objective: Objective, actions: th.Tensor) -> th.Tensor:
    values = objective(actions)
    # A trailing dimension of 1 would broadcast to (n, B, B) without a word
    if values.shape != actions.shape[:-1]:
        raise ValueError(
            f"objective must map actions {tuple(actions.shape)} to values {tuple(actions.shape[:-1])}, "
            f"one for each action, got {tuple(values.shape)}"
        )
    return values


def _sample(dist: Distribution, *sample_shape: int) -> th.Tensor:
    """
    ``dist.sample``, to the last bit. Torch's ``Normal.sample`` asks a GPU whether its scale is positive, and waits for it.
    """
    if type(dist) is Independent and type(dist.base_dist) is Normal:
        return dist.base_dist.rsample(sample_shape)
    return dist.sample(th.Size(sample_shape))


def _linear(param: th.Tensor, grad: th.Tensor) -> th.Tensor:
    """
    Zero in value, ``grad`` in gradient: ``(B, d), (B, d) -> (B,)``.
    """
    return ((param - param.detach()) * grad).sum(-1)


def _family(dist: Distribution) -> str:
    return f"Independent({type(dist.base_dist).__name__})" if isinstance(dist, Independent) else type(dist).__name__


def _check_rsample(dist: Distribution, route: str) -> None:
    if not dist.has_rsample:
        raise ValueError(f"{route} needs a distribution with rsample, {_family(dist)} has none: use likelihood_ratio")


def _check_n_samples(n_samples: int, at_least: int, remedy: str = "") -> None:
    if n_samples < at_least:
        raise ValueError(f"n_samples must be at least {at_least}, got {n_samples}: draw more samples{remedy}")


def _check_baseline(baseline: str) -> None:
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}: use one of {', '.join(map(repr, BASELINES))}")
