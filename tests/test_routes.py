"""
Tests of the four gradient routes against closed forms, against each other and against numerical integration.

Only ``sb3_pathwise.routes`` is tested here, with distributions and objectives made for the purpose: no policy, no critic of an
algorithm, no environment. The rows of a batch are used as independent replications of the same estimate, so that one backward
pass gives the sampling distribution of the gradient. All seeds are fixed; ``z`` values of statistical tests must stay below 5.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch as th
from torch import nn
from torch.distributions import Beta, Categorical, Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal

from sb3_pathwise.routes import BASELINES, Objective, _cross_fitted_mean, likelihood_ratio, measure_valued, mixed, pathwise

DIMS = (1, 3, 17)
N_REPLICATIONS = {1: 150_000, 3: 50_000, 17: 8_000}
CHUNK = 2_000  # rows at a time in 17 dimensions: measure_valued evaluates 4 * 17 * n_samples actions a row
SIGMA = 0.5
MAX_Z = 5.0

ROUTES = {"pathwise": pathwise, "likelihood_ratio": likelihood_ratio, "measure_valued": measure_valued, "mixed": mixed}


@dataclass
class ParamMoments:
    """
    What theory says about one parameter vector (``loc`` or ``log_std``), coordinate by coordinate, for one sample.

    :param grad: the true gradient g
    :param pathwise: variance of the pathwise estimate
    :param ratio: variance of the likelihood-ratio estimate with the baseline E f
    :param cross: ``E[(f - E f) S^2]``, S being the score
    :param score: ``E[S^2]``
    :param measure_valued: variance of the coupled measure-valued estimate
    """

    grad: th.Tensor
    pathwise: th.Tensor
    ratio: th.Tensor
    cross: th.Tensor
    score: float
    measure_valued: th.Tensor


@dataclass
class Case:
    """
    An objective, and its closed forms at ``Normal(mu, SIGMA)``.
    """

    objective: Objective
    mean: float
    variance: float
    loc: ParamMoments
    log_std: ParamMoments


def get_mu(dim: int) -> th.Tensor:
    return th.linspace(0.9, -0.4, dim, dtype=th.float64)


def constant_case(dim: int) -> Case:
    def moments(score: float) -> ParamMoments:
        zero = th.zeros(dim, dtype=th.float64)
        return ParamMoments(zero, zero, zero, zero, score, zero)

    return Case(lambda x: 3.0 + 0.0 * x.sum(-1), 3.0, 0.0, moments(1 / SIGMA**2), moments(2.0))


def linear_case(dim: int) -> Case:
    """
    ``f = a.x``. Measure-valued: from E W = sqrt(pi / 2), E W^2 = 2 and E[M^2 (1 - U)^2] = 1.
    """
    a = th.linspace(1.0, 2.0, dim, dtype=th.float64)
    zero, s2 = th.zeros_like(a), SIGMA**2
    loc = ParamMoments(a, zero, a.dot(a) + a**2, zero, 1 / s2, a**2 * (4 / math.pi - 1))
    log_std = ParamMoments(zero, s2 * a**2, 2 * s2 * a.dot(a) + 8 * s2 * a**2, zero, 2.0, s2 * a**2)
    return Case(lambda x: x @ a, a.dot(get_mu(dim)).item(), (s2 * a.dot(a)).item(), loc, log_std)


def quadratic_case(dim: int) -> Case:
    """
    ``f = (x - k)' A (x - k)`` with a full symmetric A, m = mu - k and v = A m.

    Likelihood ratio of the mean: ``f - E f = 2 sigma v.eps + sigma^2 q`` with q = eps'A eps - tr A, E q^2 = 2 |A|_F^2 and, by
    Stein's identity, ``E[q^2 (eps_j^2 - 1)] = 8 (A^2)_jj``. Measure-valued: the coupled difference of coordinate j is
    ``4 s W (v_j + s r_j)`` for the mean and ``2 s M (1 - U) (v_j + s r_j) + A_jj s^2 M^2 (1 - U^2)`` for the scale, with
    s = sigma and r_j normal with variance R_j.
    """
    generator = th.Generator().manual_seed(dim)
    root = th.randn(dim, dim, generator=generator, dtype=th.float64)
    A = root @ root.T / dim + 0.5 * th.eye(dim, dtype=th.float64)
    k = th.linspace(-0.5, 0.5, dim, dtype=th.float64)
    m, s2 = get_mu(dim) - k, SIGMA**2
    v, frobenius, rows, diag = A @ m, (A**2).sum(), (A**2).sum(1), A.diagonal()
    rest = rows - diag**2  # R_j
    block = frobenius - 2 * rows + diag**2  # F_j
    loc = ParamMoments(
        grad=2 * v,
        pathwise=4 * s2 * rows,
        ratio=4 * v.dot(v) + 4 * v**2 + s2 * (2 * frobenius + 8 * rows),
        cross=2 * diag,
        score=1 / s2,
        measure_valued=16 / math.pi * (v**2 + s2 * rest) - 4 * v**2,
    )
    log_std = ParamMoments(
        grad=2 * s2 * diag,
        pathwise=4 * s2 * v**2 + 4 * s2**2 * (rest + 2 * diag**2),
        ratio=4 * s2 * (2 * v.dot(v) + 8 * v**2) + s2**2 * (4 * block + 40 * rest + 60 * diag**2) - 4 * s2**2 * diag**2,
        cross=8 * s2 * diag,
        score=2.0,
        measure_valued=4 * s2 * (v**2 + s2 * rest) + 4 * s2**2 * diag**2,
    )

    def objective(x: th.Tensor) -> th.Tensor:
        y = x - k
        return ((y @ A) * y).sum(-1)

    mean, variance = m @ v + s2 * diag.sum(), 4 * s2 * v.dot(v) + 2 * s2**2 * frobenius
    return Case(objective, mean.item(), variance.item(), loc, log_std)


def cosine_case(dim: int) -> Case:
    """
    ``f = sum_i amp cos(omega x_i + phi_i)``, with c = omega mu + phi and t = omega sigma.

    All of it follows from ``E[cos(c + t eps) p(eps)] = exp(-t^2 / 2) Re(exp(i c) E[p(eps + i t)])``; for the measure-valued
    variances, from ``E cos(t M) = (1 - t^2) exp(-t^2 / 2)`` and ``E cos(t W) = 1 - sqrt(2) t D(t / sqrt 2)``, D = Dawson's
    function. The coordinates add up: those other than j cancel in a coupled difference, and act as noise in f otherwise.
    """
    amp, omega, s2 = 1.5, 2.4, SIGMA**2
    phi = th.linspace(0.2, 1.4, dim, dtype=th.float64)
    c, t = omega * get_mu(dim) + phi, omega * SIGMA
    damp, damp2 = math.exp(-(t**2) / 2), math.exp(-2 * t**2)
    cos, sin, cos2 = c.cos(), c.sin(), (2 * c).cos()
    means = amp * damp * cos
    variances = amp**2 / 2 * (1 + cos2 * damp2) - means**2
    others = variances.sum() - variances

    def polynomial(u: float) -> float:  # E[((eps + i u)^2 - 1)^2]
        return 2 - 4 * u**2 + u**4

    def ratio(squares: th.Tensor, cross: th.Tensor, score: float, grad: th.Tensor) -> th.Tensor:
        """E[(f - E f)^2 S^2] - g^2 from squares = E[f_j^2 S^2] and cross = E[(f_j - E f_j) S^2]."""
        own = squares - 2 * means * cross - means**2 * score
        return own + others * score - grad**2

    grad = -amp * omega * damp * sin
    squares = amp**2 / (2 * s2) * (1 + cos2 * damp2 * (1 - 4 * t**2))
    cross = means * (1 - t**2) / s2 - means / s2
    loc = ParamMoments(
        grad=grad,
        pathwise=amp**2 * omega**2 / 2 * (1 - cos2 * damp2) - grad**2,
        ratio=ratio(squares, cross, 1 / s2, grad),
        cross=cross,
        score=1 / s2,
        measure_valued=(2 * amp * sin) ** 2 / (2 * math.pi * s2) * math.sqrt(2) * t * dawson(math.sqrt(2) * t) - grad**2,
    )
    grad = -(t**2) * means
    squares = amp**2 / 2 * (2 + cos2 * damp2 * polynomial(2 * t))
    cross = means * polynomial(t) - 2 * means
    log_std = ParamMoments(
        grad=grad,
        pathwise=amp**2 * t**2 / 2 * (1 - cos2 * damp2 * (1 - 4 * t**2)) - grad**2,
        ratio=ratio(squares, cross, 2.0, grad),
        cross=cross,
        score=2.0,
        measure_valued=amp**2 * (1 - damp + cos2 * (damp - (1 + 2 * t**2) * damp2)) - grad**2,
    )
    return Case(lambda x: amp * (omega * x + phi).cos().sum(-1), means.sum().item(), variances.sum().item(), loc, log_std)


def dawson(x: float) -> float:
    """Dawson's function ``exp(-x^2) int_0^x exp(u^2) du``, by the midpoint rule."""
    u = (th.arange(100_000, dtype=th.float64) + 0.5) * (x / 100_000)
    return (x / 100_000) * (u**2 - x**2).exp().sum().item()


CASES: dict[str, Callable[[int], Case]] = {
    "constant": constant_case,
    "linear": linear_case,
    "quadratic": quadratic_case,
    "cosine": cosine_case,
}


@dataclass
class Sampled:
    """
    Replications ``(n, d)`` of one estimate, and of the surrogate's value ``(n,)``.
    """

    values: th.Tensor
    loc: th.Tensor
    log_std: th.Tensor


def replicate(route: str, objective: Objective, mu: th.Tensor, n_replications: int, seed: int = 0, **kwargs) -> Sampled:
    """
    Per-row gradients of a route at ``Normal(mu, SIGMA)``, all rows being replications.
    """
    th.manual_seed(seed)
    parts = []
    rows = CHUNK if len(mu) > 3 else n_replications
    for _ in range(n_replications // rows):
        loc = mu.expand(rows, -1).clone().requires_grad_()
        log_std = th.full_like(loc, math.log(SIGMA)).requires_grad_()
        surrogate = ROUTES[route](Independent(Normal(loc, log_std.exp()), 1), objective, **kwargs)
        assert surrogate.shape == (rows,)
        surrogate.sum().backward()
        parts.append((surrogate.detach(), loc.grad, log_std.grad))
    return Sampled(*(th.cat(part) for part in zip(*parts, strict=True)))


@functools.cache
def sampled_case(route: str, case: str, dim: int, n_samples: int, baseline: str | None = None) -> Sampled:
    kwargs = {"n_samples": n_samples} if baseline is None else {"n_samples": n_samples, "baseline": baseline}
    return replicate(route, CASES[case](dim).objective, get_mu(dim), N_REPLICATIONS[dim], **kwargs)


def mean_z(samples: th.Tensor, expected: th.Tensor | float) -> float:
    """
    Largest |z| of the samples' mean; where there is no noise at all, the mean must be exact up to rounding.
    """
    error, standard_error = (samples.mean(0) - expected).abs(), samples.std(0) / math.sqrt(len(samples))
    return (error / (standard_error + 1e-12)).max().item()


def variance_z(samples: th.Tensor, expected: th.Tensor) -> float:
    """
    Largest |z| of the samples' variances and of their sum, the standard error coming from the empirical fourth moments.
    """
    squares, expected = (th.cat((x, x.sum(-1, keepdim=True)), -1) for x in ((samples - samples.mean(0)) ** 2, expected))
    error, standard_error = (squares.mean(0) - expected).abs(), squares.std(0) / math.sqrt(len(samples))
    return (error / (standard_error + 1e-12)).max().item()


def difference_z(first: th.Tensor, second: th.Tensor) -> float:
    """
    Largest |z| of the difference of two means.
    """
    standard_error = (first.var(0) / len(first) + second.var(0) / len(second)) ** 0.5
    return ((first.mean(0) - second.mean(0)).abs() / standard_error).max().item()


def ratio_variance(case: Case, moments: ParamMoments, baseline: str, n_samples: int, value_at_mean: float) -> th.Tensor:
    """
    ``n_samples`` times the variance of the likelihood-ratio estimate, for any objective: leave-one-out is the sample
    covariance of f and S, and a baseline that is off by delta adds ``delta^2 E[S^2] + 2 delta E[(f - E f) S^2]``.
    """
    if baseline == "leave_one_out":
        return moments.ratio + (case.variance * moments.score + moments.grad**2) / (n_samples - 1)
    delta = case.mean - (value_at_mean if baseline == "mean_action" else 0.0)
    return moments.ratio + delta**2 * moments.score + 2 * delta * moments.cross


# Number of samples per estimate, with the baseline where there is one
ESTIMATES = [
    ("pathwise", 2, None),
    ("likelihood_ratio", 4, "leave_one_out"),
    ("likelihood_ratio", 2, "mean_action"),
    ("likelihood_ratio", 2, "none"),
    ("measure_valued", 2, None),
    ("mixed", 4, "leave_one_out"),
    ("mixed", 5, "mean_action"),
    ("mixed", 4, "none"),
]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("route, n_samples, baseline", ESTIMATES)
def test_unbiased(route, n_samples, baseline, name, dim):
    """Value and gradient, for loc and log-std, z-test with 150,000 (d=1), 50,000 (d=3) and 8,000 (d=17) replications."""
    case, sampled = CASES[name](dim), sampled_case(route, name, dim, n_samples, baseline)
    assert mean_z(sampled.values, case.mean) < MAX_Z
    assert mean_z(sampled.loc, case.loc.grad) < MAX_Z
    assert mean_z(sampled.log_std, case.log_std.grad) < MAX_Z


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("route, n_samples, baseline", [e for e in ESTIMATES if e[0] != "mixed"])
def test_variance_is_the_closed_form(route, n_samples, baseline, name, dim):
    """Coordinate by coordinate, for loc and log-std, on the replications of ``test_unbiased``."""
    case, sampled = CASES[name](dim), sampled_case(route, name, dim, n_samples, baseline)
    value_at_mean = case.objective(get_mu(dim)).item()
    for samples, moments in ((sampled.loc, case.loc), (sampled.log_std, case.log_std)):
        if route == "likelihood_ratio":
            expected = ratio_variance(case, moments, baseline, n_samples, value_at_mean)
        else:
            expected = getattr(moments, route)
        assert variance_z(samples, expected / n_samples) < MAX_Z


def test_closed_forms_agree_with_the_table_in_one_dimension():
    """The d-dimensional forms of the quadratic against the one-dimensional ones, derived on their own, for any baseline."""
    case, s2 = quadratic_case(1), SIGMA**2
    A, m, b = (case.log_std.grad / (2 * s2)).item(), get_mu(1).item() + 0.5, 0.3
    delta, c = m**2 + s2 - b, m**2 - b
    for moments, *expected in (
        (case.loc, 4 * s2, m**2 * (16 / math.pi - 4), 8 * m**2 + 10 * s2, c**2 / s2 + 6 * c + 15 * s2 + 8 * m**2),
        (
            case.log_std,
            4 * m**2 * s2 + 8 * s2**2,
            4 * m**2 * s2 + 4 * s2**2,
            40 * m**2 * s2 + 56 * s2**2,
            2 * c**2 + 20 * c * s2 + 40 * m**2 * s2 + 74 * s2**2,
        ),
    ):
        any_baseline = moments.ratio / A**2 + delta**2 * moments.score + 2 * delta * moments.cross / A
        actual = [moments.pathwise / A**2, moments.measure_valued / A**2, moments.ratio / A**2, any_baseline]
        assert th.cat(actual).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(
    "route, kwargs",
    [
        ("pathwise", {}),
        ("likelihood_ratio", {"baseline": "leave_one_out"}),
        ("likelihood_ratio", {"baseline": "mean_action", "n_samples": 1}),
        ("measure_valued", {}),
        ("mixed", {"baseline": "leave_one_out"}),
        ("mixed", {"baseline": "mean_action"}),
    ],
)
def test_constant_objective_has_exactly_zero_gradient(route, kwargs, dim):
    """Not just in the mean; without a baseline it is zero in the mean only, which ``test_unbiased`` covers."""
    sampled = replicate(route, CASES["constant"](dim).objective, get_mu(dim), 2_000, **kwargs)
    assert (sampled.values == 3.0).all()
    assert (sampled.loc == 0.0).all()
    assert (sampled.log_std == 0.0).all()


def test_constant_objective_without_baseline_is_noise():
    sampled = sampled_case("likelihood_ratio", "constant", 1, 2, "none")
    assert (sampled.loc != 0.0).all()


@pytest.mark.parametrize("n_samples", [2, 3, 8])
def test_leave_one_out_law(n_samples):
    """``K Var(LOO) = Var(LR, b = E f) + (Var f Var S + g^2) / (K - 1)``, quadratic, d = 3, 100,000 replications."""
    case = quadratic_case(3)
    sampled = replicate("likelihood_ratio", case.objective, get_mu(3), 100_000, seed=1, n_samples=n_samples)
    for samples, moments in ((sampled.loc, case.loc), (sampled.log_std, case.log_std)):
        expected = ratio_variance(case, moments, "leave_one_out", n_samples, math.nan) / n_samples
        assert variance_z(samples, expected) < MAX_Z


def test_leave_one_out_against_no_baseline():
    """
    Quadratic critic far from its optimum: d = 6, m / sigma = 5, 8 samples, 50,000 replications; 1/31.25 in theory.
    """
    dim, n_samples, s2 = 6, 8, SIGMA**2
    mu = th.full((dim,), 5 * SIGMA, dtype=th.float64)
    traces = {}
    for baseline in ("leave_one_out", "none"):
        sampled = replicate(
            "likelihood_ratio", lambda x: (x**2).sum(-1), mu, 50_000, seed=2, n_samples=n_samples, baseline=baseline
        )
        traces[baseline] = n_samples * sampled.loc.var(0).sum().item()
    m2, mean, variance = 150 * s2, 156 * s2, 612 * s2**2
    ratio = 4 * (dim + 1) * m2 + 2 * (dim + 4) * s2 * dim
    theory = {
        "leave_one_out": ratio + (dim * variance / s2 + 4 * m2) / (n_samples - 1),
        "none": ratio + dim * mean**2 / s2 + 4 * mean * dim,
    }
    measured, expected = (trace["leave_one_out"] / trace["none"] for trace in (traces, theory))
    print(f"variance of leave-one-out over none: {measured:.5f}, {expected:.5f} in theory")
    assert traces == pytest.approx(theory, rel=0.03)
    assert measured <= 1.1 * expected


def relu_critic(dim: int) -> nn.Module:
    th.manual_seed(7)
    return nn.Sequential(nn.Linear(dim, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)).double()


@functools.cache
def sampled_on_critic(route: str, baseline: str | None) -> Sampled:
    critic = relu_critic(3)
    kwargs = {} if baseline is None else {"baseline": baseline}
    return replicate(
        route, lambda x: 10 * critic(x).squeeze(-1), get_mu(3), 20_000, seed=3 + len(route), n_samples=4, **kwargs
    )


@pytest.mark.parametrize(
    "route, baseline",
    [("likelihood_ratio", b) for b in BASELINES] + [("measure_valued", None)] + [("mixed", b) for b in BASELINES],
)
def test_routes_agree_on_a_relu_critic(route, baseline):
    """z-test of each route against the pathwise one, d = 3, 20,000 replications of 4 samples each."""
    first, second = sampled_on_critic("pathwise", None), sampled_on_critic(route, baseline)
    for param in ("values", "loc", "log_std"):
        a, b = getattr(first, param), getattr(second, param)
        assert difference_z(a, b) < MAX_Z, param
    # ... and it is no agreement of two zeros
    assert (first.loc.mean(0).abs() > 20 * first.loc.std(0) / math.sqrt(len(first.loc))).all()


class Recorder:
    """
    An objective that remembers what it was asked and what it said.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.actions: list[th.Tensor] = []
        self.values: list[th.Tensor] = []

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        values = self.objective(actions)
        self.actions.append(actions.detach())
        self.values.append(values.detach())
        return values


def normal(dim: int = 3, n_rows: int = 5, dtype: th.dtype = th.float64) -> Independent:
    """A batch of different diagonal Gaussians, parameters that require gradients."""
    generator = th.Generator().manual_seed(dim)
    loc = th.randn(n_rows, dim, generator=generator).to(dtype).requires_grad_()
    scale = (0.5 + th.rand(n_rows, dim, generator=generator)).to(dtype).requires_grad_()
    return Independent(Normal(loc, scale), 1)


@pytest.mark.parametrize("route, n_samples, baseline", [*ESTIMATES, ("measure_valued", 1, None), ("pathwise", 1, None)])
def test_value_is_the_monte_carlo_mean(route, n_samples, baseline):
    """Of the evaluations at draws of the distribution, all made in one call."""
    dist, objective = normal(), Recorder(quadratic_case(3).objective)
    kwargs = {} if baseline is None else {"baseline": baseline}
    th.manual_seed(0)
    surrogate = ROUTES[route](dist, objective, n_samples, **kwargs)
    assert len(objective.values) == 1
    actions, values = objective.actions[0], objective.values[0]
    if route == "measure_valued":
        assert actions.shape == (4 * 3 * n_samples, 5, 3)
        values = values[-3 * n_samples :]
    elif baseline == "mean_action":
        assert actions.shape == (n_samples + 1, 5, 3)
        assert th.equal(actions[-1], dist.mean)
        values = values[:-1]
    else:
        assert actions.shape == (n_samples, 5, 3)
    assert surrogate.shape == (5,)
    assert th.allclose(surrogate, values.mean(0), rtol=1e-12)


def test_measure_valued_points_are_coupled():
    """Within a pair only coordinate j differs; mean points are mirror images; of the scale's pair the Gaussian is inside."""
    n_samples, dist = 2, normal()
    objective = Recorder(quadratic_case(3).objective)
    measure_valued(dist, objective, n_samples)
    points = (objective.actions[0] - dist.mean) / dist.base_dist.scale
    right, left, wide, plain = points.detach().unflatten(0, (4, 3, n_samples))
    for j in range(3):
        others = [i for i in range(3) if i != j]
        for part in (left, wide, plain):
            assert th.allclose(part[j][..., others], right[j][..., others], rtol=1e-9)
        assert th.allclose(right[j, ..., j], -left[j, ..., j], rtol=1e-9)
        assert (right[j, ..., j] > 0).all()
        shrink = plain[j, ..., j] / wide[j, ..., j]
        assert ((shrink > 0) & (shrink < 1)).all()
    # Other coordinates are fresh for each coordinate j
    assert not th.isclose(right[0, ..., 2], right[1, ..., 2]).any()


def test_measure_valued_draws_have_the_right_laws():
    """First four moments of the standardised coordinates, one dimension, 400,000 draws: z-tests."""
    loc, scale = th.full((400_000, 1), 0.7, dtype=th.float64), th.full((400_000, 1), 2.0, dtype=th.float64)
    objective = Recorder(lambda x: x.sum(-1))
    th.manual_seed(5)
    measure_valued(Independent(Normal(loc, scale), 1), objective)
    weibull, _, maxwell, gaussian = (objective.actions[0] - loc)[..., 0] / 2.0
    root = math.sqrt(math.pi / 2)
    for draws, moments in (
        (weibull, (root, 2.0, 3 * root, 8.0)),
        (maxwell, (0.0, 3.0, 0.0, 15.0)),
        (gaussian, (0.0, 1.0, 0.0, 3.0)),
    ):
        for power, moment in enumerate(moments, start=1):
            assert mean_z(draws**power, moment) < MAX_Z


@pytest.mark.parametrize(
    "route, baseline", [("likelihood_ratio", baseline) for baseline in BASELINES] + [("measure_valued", None)]
)
def test_objective_is_never_differentiated(route, baseline):
    """Neither gradients of the objective nor a graph through it: its own parameters stay without gradients."""
    critic = relu_critic(3)

    def objective(actions: th.Tensor) -> th.Tensor:
        assert not th.is_grad_enabled()
        assert not actions.requires_grad
        return critic(actions).squeeze(-1)

    dist = normal()
    kwargs = {} if baseline is None else {"baseline": baseline}
    surrogate = ROUTES[route](dist, objective, n_samples=2, **kwargs)
    surrogate.sum().backward()
    assert all(param.grad is None for param in critic.parameters())
    assert dist.base_dist.loc.grad.abs().min() > 0
    assert dist.base_dist.scale.grad.abs().min() > 0


def test_mixed_leaves_the_parameters_of_the_objective_alone():
    """It differentiates the objective, but only with respect to the actions."""
    critic = relu_critic(3)
    dist = normal()
    mixed(dist, lambda x: critic(x).squeeze(-1)).sum().backward()
    assert all(param.grad is None for param in critic.parameters())
    assert dist.base_dist.loc.grad.abs().min() > 0


def test_the_trap_of_the_non_detached_action():
    """
    The score at a reparameterised action has no gradient for the mean, and -1 for the log standard deviation, whatever the
    action: the path through the action cancels the score. ``likelihood_ratio`` detaches, and gets both right.
    """
    loc = th.full((1_000, 3), 0.7, dtype=th.float64, requires_grad=True)
    log_std = th.full((1_000, 3), math.log(SIGMA), dtype=th.float64, requires_grad=True)
    th.manual_seed(0)

    dist = Independent(Normal(loc, log_std.exp()), 1)
    dist.log_prob(dist.rsample()).sum().backward()
    assert loc.grad is not None and log_std.grad is not None
    assert th.allclose(loc.grad, th.zeros_like(loc), atol=1e-12)
    assert th.allclose(log_std.grad, -th.ones_like(loc), rtol=1e-12)

    loc.grad = log_std.grad = None
    likelihood_ratio(Independent(Normal(loc, log_std.exp()), 1), lambda x: (x**2).sum(-1)).sum().backward()
    assert mean_z(loc.grad, 2 * 0.7) < MAX_Z
    assert mean_z(log_std.grad, 2 * SIGMA**2) < MAX_Z


def test_likelihood_ratio_is_the_formula():
    """
    ``1/K sum_i (f_i - b_i) grad log p(a_i)``, recomputed by hand from the recorded actions, sample by sample.
    """
    for baseline in BASELINES:
        dist, objective = normal(), Recorder(quadratic_case(3).objective)
        likelihood_ratio(dist, objective, n_samples=3, baseline=baseline).sum().backward()
        loc, scale = dist.base_dist.loc, dist.base_dist.scale
        actions, values = objective.actions[0][:3], objective.values[0]
        by_hand = th.zeros(2, 5, 3, dtype=th.float64)
        for i in range(3):
            others = [values[j] for j in range(3) if j != i]
            b = {"leave_one_out": sum(others) / 2, "mean_action": values[-1], "none": th.zeros(5)}[baseline]
            eps = (actions[i] - loc) / scale
            by_hand += (values[i] - b)[:, None] * th.stack((eps / scale, (eps**2 - 1) / scale)).detach() / 3
        assert th.allclose(loc.grad, by_hand[0], rtol=1e-10)
        assert th.allclose(scale.grad, by_hand[1], rtol=1e-10)


def test_mixed_weights_sum_to_one():
    """
    A constant added to both estimates is added to their average, and equal estimates are averaged to what they are.
    """
    generator = th.Generator().manual_seed(0)
    first, second = th.randn(2, 5, 100, 3, generator=generator, dtype=th.float64)
    average = _cross_fitted_mean(first, 2 * second)
    assert th.allclose(_cross_fitted_mean(first + 10, 2 * second + 10), average + 10, rtol=1e-9)
    assert th.allclose(_cross_fitted_mean(first, first), first.mean(0), rtol=1e-9)


def test_mixed_is_exact_where_the_pathwise_estimate_is():
    """
    On a linear objective every pathwise estimate of the mean's gradient is the gradient itself, with variance zero: it gets
    all the weight, to the last digit, whatever the baseline.
    """
    for dim in DIMS:
        case = linear_case(dim)
        for baseline in BASELINES:
            sampled = replicate("mixed", case.objective, get_mu(dim), 2_000, n_samples=6, baseline=baseline)
            assert th.allclose(sampled.loc, case.loc.grad.expand_as(sampled.loc), rtol=1e-12)


@pytest.mark.parametrize("baseline", BASELINES)
def test_mixed_cross_fits_its_halves(baseline):
    """
    The whole estimate recomputed by hand from the recorded actions: each half's weights are the other half's, and its
    leave-one-out baselines its own; 5 draws make halves of 3 and 2.
    """
    dist, objective = normal(), Recorder(lambda x: (x**2).sum(-1) + x[..., 0] * x[..., 1])
    mixed(dist, objective, n_samples=5, baseline=baseline).sum().backward()
    loc, scale = dist.base_dist.loc.detach(), dist.base_dist.scale.detach()
    actions, values = objective.actions[0][:5], objective.values[0]
    slope = 2 * actions + th.stack((actions[..., 1], actions[..., 0], th.zeros_like(actions[..., 0])), -1)
    eps = (actions - loc) / scale
    for grad, dactions, score in (
        (dist.base_dist.loc.grad, th.ones_like(eps), eps / scale),
        (dist.base_dist.scale.grad, eps, (eps**2 - 1) / scale),
    ):
        halves = []
        for own in ([0, 1, 2], [3, 4]):
            if baseline == "leave_one_out":
                b = [sum(values[j] for j in own if j != i) / (len(own) - 1) for i in own]
            else:
                b = [values[-1] if baseline == "mean_action" else th.zeros(5)] * len(own)
            ratio = th.stack([(values[i] - b_i)[:, None] * score[i] for i, b_i in zip(own, b, strict=True)])
            halves.append(((slope * dactions)[own], ratio))
        precisions = [(1 / path.var(0), 1 / ratio.var(0)) for path, ratio in halves]
        by_hand = th.zeros_like(loc)
        for (path, ratio), (path_precision, ratio_precision) in zip(halves, reversed(precisions), strict=True):
            total = path_precision + ratio_precision
            by_hand += (path.sum(0) * path_precision + ratio.sum(0) * ratio_precision) / total / 5
        assert th.allclose(grad, by_hand, rtol=1e-9)


def test_mixed_gains_where_the_two_are_uncorrelated():
    """
    For ``f = x^2 - 3 sigma^2`` at mu = 0, without a baseline, the covariance ``2 (mu^2 - b) + 6 sigma^2`` of the two is zero:
    their variances of 4 sigma^2 (pathwise) and 6 sigma^2 (likelihood ratio) become 2.4 sigma^2, below either of them. The
    weights are estimated from 512 draws; 5,000 replications.
    """
    n_samples, s2 = 1_024, SIGMA**2
    mu = th.zeros(1, dtype=th.float64)
    sampled = replicate("mixed", lambda x: (x**2).sum(-1) - 3 * s2, mu, 5_000, n_samples=n_samples, baseline="none")
    variance = n_samples * sampled.loc.var().item()
    print(f"mixed: {variance / s2:.3f} sigma^2, 2.4 sigma^2 with known weights")
    assert variance == pytest.approx(2.4 * s2, rel=0.1)


def test_mixed_cannot_gain_on_a_quadratic_with_a_value_baseline():
    """
    With b = E f the covariance equals the pathwise variance, and inverse-variance weights pay for it: the variance becomes
    ``V_l V_p (V_l + 3 V_p) / (V_l + V_p)^2`` instead of ``V_p``; m = sigma, 1,024 draws, 5,000 replications.
    """
    n_samples, s2 = 1_024, SIGMA**2
    mu = th.full((1,), SIGMA, dtype=th.float64)
    sampled = replicate("mixed", lambda x: (x**2).sum(-1), mu, 5_000, n_samples=n_samples)
    variance = n_samples * sampled.loc.var().item()
    path, ratio = 4 * s2, 18 * s2
    expected = ratio * path * (ratio + 3 * path) / (ratio + path) ** 2
    print(f"mixed: {variance / path:.3f} of the pathwise variance, {expected / path:.3f} with known weights")
    assert variance > path
    assert variance == pytest.approx(expected, rel=0.1)


def test_mixed_follows_the_better_route():
    """
    Cosine of high frequency (omega sigma = 4, the likelihood ratio is the better one) and of low frequency (0.1, the pathwise
    one), 16 samples, 20,000 replications: the mixture comes within a factor 1.5 of the better, and far below the worse one.
    """
    mu = th.full((1,), 0.1, dtype=th.float64)
    for omega in (0.1 / SIGMA, 4 / SIGMA):
        variances = {
            route: replicate(route, lambda x, w=omega: (w * x).sin().sum(-1), mu, 20_000, n_samples=16).loc.var().item()
            for route in ("pathwise", "likelihood_ratio", "mixed")
        }
        print(f"omega sigma = {omega * SIGMA}: {variances}")
        better, worse = sorted((variances["pathwise"], variances["likelihood_ratio"]))
        assert variances["mixed"] < 1.5 * better
        assert variances["mixed"] < 0.5 * worse


BETA = ([1.5, 3.0], [4.0, 1.2])
BETA_ESTIMATES = [("pathwise", None)] + [(r, b) for r in ("likelihood_ratio", "mixed") for b in BASELINES]


def replicate_beta(route: str, baseline: str | None, objective: Objective) -> list[th.Tensor]:
    """
    Surrogate's value and the gradients for both concentrations, 10,000 replications of 8 samples, two dimensions.
    """
    a, b = (th.tensor(c, dtype=th.float64).expand(10_000, 2).clone().requires_grad_() for c in BETA)
    kwargs = {} if baseline is None else {"baseline": baseline}
    th.manual_seed(len(route))
    surrogate = ROUTES[route](Independent(Beta(a, b), 1), objective, n_samples=8, **kwargs)
    return [surrogate.detach(), *th.autograd.grad(surrogate.sum(), (a, b))]


@pytest.mark.parametrize("route, baseline", BETA_ESTIMATES)
def test_beta_against_closed_form(route, baseline):
    """``f = sum_i x_i^2``: E f = sum a (a + 1) / ((a + b) (a + b + 1)), differentiated by autograd."""
    a, b = (th.tensor(c, dtype=th.float64, requires_grad=True) for c in BETA)
    mean = (a * (a + 1) / ((a + b) * (a + b + 1))).sum()
    values, *grads = replicate_beta(route, baseline, lambda x: (x**2).sum(-1))
    assert mean_z(values, mean.item()) < MAX_Z
    for grad, exact in zip(grads, th.autograd.grad(mean, (a, b)), strict=True):
        assert mean_z(grad, exact) < MAX_Z


def test_routes_agree_on_a_relu_critic_with_beta():
    """z-test of each route and baseline against the pathwise one."""
    critic = relu_critic(2)
    first, *others = (replicate_beta(*estimate, lambda x: 10 * critic(x).squeeze(-1)) for estimate in BETA_ESTIMATES)
    for second in others:
        for a, b in zip(first, second, strict=True):
            assert difference_z(a, b) < MAX_Z


def mixture(n_rows: int, logits: th.Tensor, locs: th.Tensor, scales: th.Tensor) -> MixtureSameFamily:
    """One-dimensional mixture of Gaussians, parameters ``(n_components,)`` for every row or ``(n_rows, n_components)``."""
    shape = (n_rows, logits.shape[-1])
    components = Independent(Normal(locs.expand(shape).unsqueeze(-1), scales.expand(shape).unsqueeze(-1)), 1)
    return MixtureSameFamily(Categorical(logits=logits.expand(shape)), components)


@pytest.mark.parametrize("baseline", BASELINES)
def test_likelihood_ratio_of_a_mixture_against_quadrature(baseline):
    """Gradients for logits, locs and scales of a two-component mixture, 100,000 replications of 4 samples."""
    params = [th.tensor(p, dtype=th.float64) for p in ([0.3, -0.4], [-1.0, 0.8], [0.4, 0.7])]

    def f(x: th.Tensor) -> th.Tensor:
        return (2 * x.squeeze(-1)).cos() + x.squeeze(-1) ** 2

    leaves = [p.clone().requires_grad_() for p in params]
    grid = th.linspace(-8, 8, 20_001, dtype=th.float64).unsqueeze(-1)
    exact = th.trapezoid(mixture(1, *leaves).log_prob(grid.unsqueeze(1)).squeeze(1).exp() * f(grid), grid.squeeze(-1))
    exact_grads = th.autograd.grad(exact, leaves)

    replicas = [p.expand(100_000, -1).clone().requires_grad_() for p in params]
    th.manual_seed(6)
    surrogate = likelihood_ratio(mixture(100_000, *replicas), f, n_samples=4, baseline=baseline)
    assert mean_z(surrogate.detach(), exact.item()) < MAX_Z
    for grad, exact_grad in zip(th.autograd.grad(surrogate.sum(), replicas), exact_grads, strict=True):
        assert mean_z(grad, exact_grad) < MAX_Z


class ScaledNoise(Independent):
    """
    A subclass with its own ``rsample``: the same law, but half of the pathwise derivative is taken away.
    """

    def rsample(self, sample_shape=()):
        sample = super().rsample(sample_shape)
        return 0.5 * sample + 0.5 * sample.detach()


def test_subclasses_of_independent():
    """Accepted by every route; the pathwise one goes through the ``rsample`` of the subclass."""
    for name, route in ROUTES.items():
        base = normal(n_rows=100).base_dist
        route(ScaledNoise(base, 1), lambda x: x.sum(-1), n_samples=4).sum().backward()
        if name == "pathwise":
            assert th.allclose(base.loc.grad, th.full_like(base.loc, 0.5))
        elif name == "mixed":
            assert th.allclose(base.loc.grad, th.ones_like(base.loc))


@pytest.mark.parametrize("route", ROUTES.values())
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_dtype_is_kept(route, dtype):
    dist = normal(dtype=dtype)
    surrogate = route(dist, lambda x: (x**2).sum(-1), n_samples=4)
    assert surrogate.dtype == dtype
    surrogate.sum().backward()
    assert th.isfinite(dist.base_dist.loc.grad).all()


@pytest.mark.parametrize("route", ROUTES.values())
def test_rows_do_not_mix(route):
    """The gradient of one row's surrogate is zero in the parameters of every other row."""
    dist = normal()
    loc = dist.base_dist.loc
    (grad,) = th.autograd.grad(route(dist, lambda x: (x**2).sum(-1), n_samples=4)[2], loc)
    assert (grad[2] != 0).all()
    assert (grad[[0, 1, 3, 4]] == 0).all()


def quadratic(x: th.Tensor) -> th.Tensor:
    return (x**2).sum(-1)


@pytest.mark.parametrize("route", ROUTES.values())
@pytest.mark.parametrize("n_samples", [0, -1])
def test_too_few_samples_are_refused(route, n_samples):
    with pytest.raises(ValueError, match="n_samples must be at least"):
        route(normal(), quadratic, n_samples=n_samples)


def test_leave_one_out_with_one_sample_is_refused():
    with pytest.raises(ValueError, match=r"n_samples >= 2.*baseline='mean_action'"):
        likelihood_ratio(normal(), quadratic, n_samples=1)
    likelihood_ratio(normal(), quadratic, n_samples=1, baseline="mean_action")
    likelihood_ratio(normal(), quadratic, n_samples=1, baseline="none")


@pytest.mark.parametrize("baseline", BASELINES)
def test_mixed_with_three_samples_is_refused(baseline):
    with pytest.raises(ValueError, match=r"n_samples must be at least 4, got 3.*pathwise or likelihood_ratio"):
        mixed(normal(), quadratic, n_samples=3, baseline=baseline)
    mixed(normal(), quadratic, n_samples=4, baseline=baseline)


@pytest.mark.parametrize("route", [likelihood_ratio, mixed])
def test_unknown_baseline_is_refused(route):
    with pytest.raises(ValueError, match=r"unknown baseline 'value'.*'leave_one_out', 'mean_action', 'none'"):
        route(normal(), quadratic, baseline="value")


@pytest.mark.parametrize("route", [pathwise, mixed, measure_valued])
def test_mixture_is_refused_where_rsample_is_needed(route):
    zeros = th.zeros(2)
    with pytest.raises(ValueError, match="likelihood_ratio"):
        route(mixture(3, zeros, zeros, zeros.exp()), quadratic, n_samples=4)


@pytest.mark.parametrize(
    "dist, family",
    [
        (Independent(Beta(th.ones(5, 3), th.ones(5, 3)), 1), r"Independent\(Beta\)"),
        (MultivariateNormal(th.zeros(5, 3), th.eye(3)), "MultivariateNormal"),
        (Normal(th.zeros(5), th.ones(5)), "Normal"),
    ],
)
def test_measure_valued_names_what_it_supports(dist: Distribution, family: str):
    with pytest.raises(ValueError, match=rf"Independent\(Normal\(loc, scale\), 1\), got {family}: use likelihood_ratio"):
        measure_valued(dist, quadratic)


def test_mixed_refuses_dependent_coordinates():
    with pytest.raises(ValueError, match=r"independent coordinates.*got MultivariateNormal: use pathwise or likelihood_ratio"):
        mixed(MultivariateNormal(th.zeros(5, 3), th.eye(3)), quadratic)


@pytest.mark.parametrize("route", ROUTES.values())
def test_objective_of_the_wrong_shape_is_refused(route):
    """``(n, B, 1)``, the shape of a critic's output, would broadcast against ``(n, B)`` without an error."""
    with pytest.raises(ValueError, match=r"objective must map actions \(.*, 5, 3\) to values \(.*, 5\)"):
        route(normal(), lambda x: x.sum(-1, keepdim=True), n_samples=4)
