"""
The policies' action distributions: densities, entropies and derivatives, against numerical integration.

Everything is asked of an actor with some weights, at some states, as the learner asks it.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution, SquashedDiagGaussianDistribution
from stable_baselines3.sac.policies import Actor
from torch.nn import functional as F

from sb3_pathwise import LikelihoodRatioAC
from sb3_pathwise.distributions import PolicyDistribution, draw_actions, policy_distribution
from sb3_pathwise.routes import likelihood_ratio, measure_valued, mixed, pathwise

MakeModel = Callable[..., Any]
MAX_Z = 5.0
OBS = th.tensor([[0.9, -0.3], [-0.7, 0.1], [0.2, 0.8]])

DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "squashed_gaussian": {},
    "gsde": {"use_sde": True, "policy_kwargs": {"log_std_init": -1.0}},
    "beta": {"policy_kwargs": {"distribution": "beta"}},
    "gaussian_mixture": {"policy_kwargs": {"distribution": "gaussian_mixture", "n_components": 3}},
}


@pytest.fixture(params=DISTRIBUTIONS)
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Any:
    """A model whose policy differs from state to state, for each distribution in turn."""
    kwargs = dict(DISTRIBUTIONS[request.param])
    kwargs["policy_kwargs"] = {"net_arch": [8]} | kwargs.get("policy_kwargs", {})
    made = make_model(LikelihoodRatioAC, **kwargs)
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        for name, param in made.actor.named_parameters():
            param.add_((0.1 if "log_std" in name else 0.4) * th.randn(param.shape, generator=generator))
    return made


def action_grid(n_points: int = 400) -> tuple[th.Tensor, th.Tensor]:
    """Actions all over (-1, 1)^2, dense at its borders, shape (n_points**2, 1, 2), and their weights in an integral."""
    v = ((th.arange(n_points) + 0.5) / n_points * 2 - 1) * 7.5
    weight = (1 - v.tanh() ** 2) * 15 / n_points
    return th.cartesian_prod(v.tanh(), v.tanh()).unsqueeze(1), th.cartesian_prod(weight, weight).prod(-1, keepdim=True)


def log_density(policy_dist: PolicyDistribution, actions: th.Tensor) -> th.Tensor:
    """log pi at given actions, shape (n, B)."""
    actions = actions.expand(-1, policy_dist.base.batch_shape[0], -1)
    return policy_dist.log_prob(policy_dist.squash.inv(actions), actions)


def test_density_integrates_to_one(model: Any) -> None:
    actions, weights = action_grid()
    with th.no_grad():
        density = log_density(policy_distribution(model.actor, OBS), actions).exp()
    th.testing.assert_close((density * weights).sum(0), th.ones(len(OBS)), rtol=0, atol=3e-3)


def test_density_is_that_of_the_samples(model: Any) -> None:
    """Moments of 200,000 sampled actions against integrals of the density."""
    actions, weights = action_grid()
    n_samples = 200_000
    th.manual_seed(0)
    with th.no_grad():
        policy_dist = policy_distribution(model.actor, OBS)
        mass = log_density(policy_dist, actions).exp() * weights
        samples = policy_dist.squash(policy_dist.base.sample(th.Size((n_samples,))))
        for moment in (
            lambda a: a[..., 0],
            lambda a: a[..., 1] ** 2,
            lambda a: th.cos(3 * a[..., 0]) * a[..., 1],
        ):
            values = moment(samples)
            truth = (mass * moment(actions)).sum(0) / mass.sum(0)
            z = (values.mean(0) - truth) / (values.std(0) / math.sqrt(n_samples))
            assert (z.abs() < MAX_Z).all()


def test_log_prob_of_sb3(model: Any) -> None:
    """What SB3 asks an actor for is the same density."""
    th.manual_seed(0)
    with th.no_grad():
        actions, log_prob = model.actor.action_log_prob(OBS)
        again = model.actor.action_dist.log_prob(actions)
        ours = log_density(policy_distribution(model.actor, OBS), actions.unsqueeze(0)).squeeze(0)
    assert actions.shape == (len(OBS), 2) and log_prob.shape == (len(OBS),)
    th.testing.assert_close(log_prob, ours, rtol=1e-3, atol=1e-3)
    th.testing.assert_close(again, ours, rtol=1e-3, atol=1e-3)


def test_entropy(model: Any) -> None:
    """The closed form, where there is one, and the mean of -log pi of 200,000 samples, against the integral."""
    actions, weights = action_grid()
    n_samples = 200_000
    th.manual_seed(0)
    with th.no_grad():
        policy_dist = policy_distribution(model.actor, OBS)
        log_prob = log_density(policy_dist, actions)
        truth = -(log_prob.exp() * log_prob * weights).sum(0)
        x = policy_dist.base.sample(th.Size((n_samples,)))
        values = -policy_dist.log_prob(x, policy_dist.squash(x))
    z = (values.mean(0) - truth) / (values.std(0) / math.sqrt(n_samples))
    assert (z.abs() < MAX_Z).all()
    with th.no_grad():
        model.actor.action_log_prob(OBS)
        closed_form = model.actor.action_dist.entropy()
    if model.policy_kwargs.get("distribution") == "beta":
        th.testing.assert_close(closed_form, truth, rtol=0, atol=2e-3)
    else:
        assert closed_form is None


def expectation(policy_dist: PolicyDistribution, objective: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
    actions, weights = action_grid()
    return (log_density(policy_dist, actions).exp() * objective(actions) * weights).sum(0).mean()


def bumpy(actions: th.Tensor) -> th.Tensor:
    return th.sin(3 * actions[..., 0]) + actions[..., 1] ** 2 * (1 + actions[..., 0])


@pytest.mark.parametrize(
    "distribution, route",
    [
        ("beta", pathwise),
        ("beta", likelihood_ratio),
        ("beta", mixed),
        ("gaussian_mixture", likelihood_ratio),
        ("squashed_gaussian", measure_valued),
        ("gsde", likelihood_ratio),
    ],
)
def test_routes_against_finite_differences(make_model: MakeModel, distribution: str, route: Callable[..., th.Tensor]) -> None:
    """
    The derivative of E[f], along a direction in the space of the actor's weights: by a route, the mean of 100 repetitions
    with 100 copies of 3 states, and by central differences of the integral.
    """
    kwargs = dict(DISTRIBUTIONS[distribution])
    kwargs["policy_kwargs"] = {"net_arch": [8]} | kwargs.get("policy_kwargs", {})
    actor = make_model(LikelihoodRatioAC, **kwargs).actor
    params = [param for param in actor.parameters() if param.requires_grad]
    generator = th.Generator().manual_seed(1)
    direction = [th.randn(param.shape, generator=generator) for param in params]

    def move(step: float) -> None:
        with th.no_grad():
            for param, part in zip(params, direction, strict=True):
                param.add_(part, alpha=step)

    step = 2e-2
    values = []
    for sign in (1, -2):
        move(sign * step)
        with th.no_grad():
            values.append(expectation(policy_distribution(actor, OBS), bumpy).item())
    move(step)
    truth = (values[0] - values[1]) / (2 * step)

    th.manual_seed(0)
    estimates = []
    for _ in range(100):
        policy_dist = policy_distribution(actor, OBS.repeat(100, 1))
        surrogate = route(policy_dist.base, lambda x, dist=policy_dist: bumpy(dist.squash(x)))
        gradient = th.autograd.grad(surrogate.mean(), params, allow_unused=True)
        parts = zip(gradient, direction, strict=True)
        estimates.append(sum((part * along).sum().item() for part, along in parts if part is not None))
    samples = th.tensor(estimates, dtype=th.float64)
    error = samples.std().item() / math.sqrt(len(samples))
    assert abs(samples.mean().item() - truth) < MAX_Z * error
    assert error < 0.1 * abs(truth)


def test_beta_stays_inside(make_model: MakeModel) -> None:
    """Concentrations near 1 and huge ones: no action on the border, nothing infinite, no gradient that is not a number."""
    actor = make_model(LikelihoodRatioAC, policy_kwargs={"distribution": "beta"}).actor
    last = list(actor.parameters())[-1]
    for values in ([-30.0, 30.0], [1e4, -1e4], [-30.0, -30.0], [1e3, 1e3]):
        with th.no_grad():
            last.copy_(th.tensor(values).repeat_interleave(len(last) // 2))
        policy_dist = policy_distribution(actor, OBS)
        x = policy_dist.base.rsample(th.Size((2_000,)))
        actions = policy_dist.squash(x)
        assert (actions.abs() < 1).all()
        log_prob = policy_dist.log_prob(x, actions)
        assert log_prob.isfinite().all()
        gradient = th.autograd.grad(log_prob.mean() + bumpy(actions).mean(), list(actor.parameters()))
        assert all(part.isfinite().all() for part in gradient)


@pytest.mark.parametrize("distribution, tolerance", [("gaussian_mixture", 1e-4), ("squashed_gaussian", 0.3)])
def test_saturated_actions(make_model: MakeModel, distribution: str, tolerance: float) -> None:
    """
    Far outside, where tanh is 1 in float32. The squashed Gaussian keeps SAC's ``log(1 - tanh(x)^2 + 1e-6)``, which is known
    to be 0.27 off at 7; what SAC does not have is exact.
    """
    far = 7.0 if distribution == "squashed_gaussian" else 15.0
    actor = make_model(LikelihoodRatioAC, policy_kwargs={"distribution": distribution, "n_components": 2}).actor
    policy_dist = policy_distribution(actor, OBS)
    x = th.tensor([[[far, -far], [0.5, -far], [far - 0.5, 0.0]]])
    actions = policy_dist.squash(x)
    actual = policy_dist.base.log_prob(x) - policy_dist.log_prob(x, actions)
    exact = (2 * (math.log(2) - x.double() - F.softplus(-2 * x.double()))).sum(-1)
    largest = 2 * tolerance if distribution == "squashed_gaussian" else tolerance
    assert (actual - exact).abs().max() < largest


# --- The draw that SAC has made already


def test_draw_is_that_of_the_actor(model: Any) -> None:
    th.manual_seed(1)
    draw = draw_actions(model.actor, OBS)
    th.manual_seed(1)
    actions, log_prob = model.actor.action_log_prob(OBS)
    assert th.equal(draw.actions, actions) and th.equal(draw.log_prob, log_prob)
    th.testing.assert_close(draw.policy_dist.squash(draw.x), actions)
    again, again_log_prob = draw.actions_with_log_prob(draw.x.unsqueeze(0).clone())
    th.testing.assert_close(again[0], actions)
    th.testing.assert_close(again_log_prob[0], log_prob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sample_shape", [(), (1,), (4,), (2, 3)])
def test_first_sample_is_the_draw(model: Any, sample_shape: tuple[int, ...]) -> None:
    """And all the others, of that call and of later ones, are not."""
    draw = draw_actions(model.actor, OBS)
    if not draw.base.has_rsample:
        with pytest.raises(NotImplementedError):
            draw.base.rsample(sample_shape)
        return
    samples = [draw.base.rsample(sample_shape) for _ in range(2)]
    assert all(sample.shape == (*sample_shape, *draw.x.shape) for sample in samples)
    rows = th.cat([sample.reshape(-1, *draw.x.shape) for sample in samples])
    assert th.equal(rows[0], draw.x)
    assert all((one != other).any() for one, other in itertools.combinations(rows, 2))
    assert all(sample.requires_grad for sample in samples)


def test_draws_know_when_gradients_are_off(model: Any) -> None:
    """A score at a sample that still depends on the parameters would be biased without a word."""
    draw = draw_actions(model.actor, OBS)
    if draw.base.has_rsample:
        with th.no_grad():
            first, second = draw.base.rsample((1,)), draw.base.rsample((1,))
        assert th.equal(first[0], draw.x) and not first.requires_grad and not second.requires_grad
    assert not draw.base.sample(th.Size((2,))).requires_grad


def test_samples_are_independent_of_the_draw(model: Any) -> None:
    """20,000 states: correlations between the draw, a later reparameterised sample and a sample are those of chance."""
    n_states = 20_000
    draw = draw_actions(model.actor, OBS[:1].expand(n_states, -1))
    samples = [draw.base.rsample((2,)), draw.base.rsample(()).unsqueeze(0)] if draw.base.has_rsample else [draw.x.unsqueeze(0)]
    if model.use_sde:
        # One matrix for all states: there is only one draw
        samples = []
    values = th.cat([*samples, draw.base.sample(th.Size((2,)))])[..., 0].detach()
    correlations = th.corrcoef(values) * math.sqrt(n_states)
    assert (correlations.triu(1).abs() < MAX_Z).all()
    errors = (values.mean(1) - draw.base.mean[0, 0]) / (values.std(1) / math.sqrt(n_states))
    assert (errors.abs() < MAX_Z).all()


def test_unsquashed_gaussian(make_model: MakeModel) -> None:
    """SB3's own, if somebody gives it to an actor: a density without a Jacobian."""
    actor = make_model(LikelihoodRatioAC).actor
    actor.action_dist = DiagGaussianDistribution(2)
    draw = draw_actions(actor, OBS)
    mean_actions, log_std, _ = actor.get_action_dist_params(OBS)
    expected = th.distributions.Normal(mean_actions, log_std.exp()).log_prob(draw.actions).sum(1)
    th.testing.assert_close(draw.log_prob, expected)
    x = 3 * th.randn(5, *draw.x.shape)
    actions, log_prob = draw.actions_with_log_prob(x)
    assert th.equal(actions, x)
    th.testing.assert_close(log_prob, th.distributions.Normal(mean_actions, log_std.exp()).log_prob(x).sum(2))


class Shifted(SquashedDiagGaussianDistribution):
    """Something of which SB3's attributes do not tell what it is."""

    def sample(self) -> th.Tensor:
        return super().sample() * 0.5


class Copied(Actor):
    """SAC's own method, written once more."""

    def action_log_prob(self, obs: Any) -> tuple[th.Tensor, th.Tensor]:
        return super().action_log_prob(obs)


class Priced(Actor):
    def action_log_prob(self, obs: Any) -> tuple[th.Tensor, th.Tensor]:
        actions, log_prob = super().action_log_prob(obs)
        return actions, log_prob + 1


def test_density_is_known_if_it_is_that_of_sac(make_model: MakeModel) -> None:
    actor = make_model(LikelihoodRatioAC).actor
    actor.__class__ = Copied
    draw = draw_actions(actor, OBS)
    assert likelihood_ratio(draw.base, lambda x: x.sum(-1)).requires_grad


@pytest.mark.parametrize("unknown", ["actor", "distribution"])
def test_of_other_draws_no_more_is_known(make_model: MakeModel, unknown: str) -> None:
    """One of them is enough for the pathwise route; what needs more says so, rather than to take SAC's density for it."""
    actor = make_model(LikelihoodRatioAC).actor
    if unknown == "actor":
        actor.__class__ = Priced
    else:
        actor.action_dist = Shifted(2)
    draw = draw_actions(actor, OBS)
    value = pathwise(draw.base, lambda x: draw.actions_with_log_prob(x)[1])
    assert th.equal(value, draw.log_prob)
    for route in (likelihood_ratio, partial(pathwise, n_samples=2), measure_valued, mixed):
        with pytest.raises(ValueError, match=r"action_log_prob|supports|independent"):
            route(draw_actions(actor, OBS).base, lambda x: x.sum(-1))
