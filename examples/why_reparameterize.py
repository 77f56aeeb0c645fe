"""
Why reparameterise? A question about policy gradients that comes back every year, answered with numbers and one figure.

    Q1  The policy gradient is E[Q(a) grad log pi(a)]. If a was sampled from pi, may I just plug it in?
    Q2  Write the sample as x = mu + sigma * eps. Then log pi(x) = -log sigma - eps^2 / 2 + const has no mu in it.
        How can it have a gradient with respect to mu?

(https://stats.stackexchange.com/q/581562, and as issues of several libraries, Stable-Baselines3's #2096 among them.)
The short answer: Q1 yes. Q2 it has none, which is right for the entropy, and wrong for a score, which holds the action fixed.
Reparameterisation is not a necessity but a choice of variance, and mostly, but not always, the better one.

    python examples/why_reparameterize.py    # seconds; needs `pip install -e '.[extra]'`, writes examples/figures
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch as th
from torch.distributions import Independent, Normal

from sb3_pathwise.routes import likelihood_ratio, pathwise

N_SAMPLES = 8
N_ROWS = 20_000
ROUTES = {
    "pathwise": partial(pathwise, n_samples=N_SAMPLES),
    "likelihood ratio, leave-one-out": partial(likelihood_ratio, n_samples=N_SAMPLES),
    "likelihood ratio, no baseline": partial(likelihood_ratio, n_samples=N_SAMPLES, baseline="none"),
}
# Okabe and Ito's colours
LOOKS = dict(zip(ROUTES, (("#0072B2", "o"), ("#D55E00", "s"), ("#E69F00", "^")), strict=True))

Objective = Callable[[th.Tensor], th.Tensor]
# Of every route the variance, as a function of what is varied
Theory = Callable[[float], dict[str, float]]
# Values of what is varied, with the measured variances
Measurements = dict[float, dict[str, float]]


def gradients(route: Callable, objective: Objective, mu: th.Tensor, sigma: float) -> tuple[th.Tensor, th.Tensor]:
    """
    :return: ``N_ROWS`` independent estimates of the gradient with respect to mu and to log sigma, each (N_ROWS, d)
    """
    loc = mu.expand(N_ROWS, -1).clone().requires_grad_()
    log_std = th.full_like(loc, math.log(sigma)).requires_grad_()
    surrogate = route(Independent(Normal(loc, log_std.exp()), 1), objective)
    grad_mu, grad_log_std = th.autograd.grad(surrogate.sum(), (loc, log_std))
    return grad_mu, grad_log_std


def measured_variances(objective: Objective, mu: th.Tensor, sigma: float) -> dict[str, float]:
    """
    :return: of every route the variance of its gradient with respect to mu, summed over dimensions
    """
    return {name: gradients(route, objective, mu, sigma)[0].var(0).sum().item() for name, route in ROUTES.items()}


def averaged(pathwise: float, value: float, score: float, squared_gradient: float, unaided: float) -> dict[str, float]:
    """
    Variances of the averages of K samples. Leave-one-out costs (Var f Var S + g^2) / (K - 1) over the baseline E[f].

    :param pathwise: variance of one pathwise sample
    :param value: Var f times the score's variance Var S
    :param score: variance of one likelihood-ratio sample with the baseline E[f]
    :param squared_gradient: of the true gradient
    :param unaided: variance of one likelihood-ratio sample without baseline
    """
    leave_one_out = score + (value + squared_gradient) / (N_SAMPLES - 1)
    return {name: variance / N_SAMPLES for name, variance in zip(ROUTES, (pathwise, leave_one_out, unaided), strict=True)}


def quadratic(x: th.Tensor) -> th.Tensor:
    return x.square().sum(-1)


def quadratic_variances(d: int, m: float, sigma: float) -> dict[str, float]:
    """
    f(x) = |x|^2 at mu = (m, ..., m): the gradient with respect to mu is 2 mu.
    """
    s2, m2 = sigma**2, d * m**2
    mean_f, var_f = m2 + d * s2, 4 * m2 * s2 + 2 * d * s2**2
    score = 4 * (d + 1) * m2 + 2 * (d + 4) * s2 * d
    unaided = score + d * mean_f**2 / s2 + 4 * mean_f * d
    return averaged(4 * s2 * d, var_f * d / s2, score, 4 * m2, unaided)


def wave(x: th.Tensor, omega: float, phase: float) -> th.Tensor:
    return th.sin(omega * x + phase).sum(-1)


def wave_variances(omega: float, theta: float, sigma: float) -> dict[str, float]:
    """
    f(x) = sin(omega x + phase) at omega mu + phase = theta: the gradient is omega cos(theta) exp(-(omega sigma)^2 / 2).
    """
    w2s2 = (omega * sigma) ** 2
    decay, decay2 = math.exp(-w2s2 / 2), math.cos(2 * theta) * math.exp(-2 * w2s2)
    g2 = (omega * math.cos(theta) * decay) ** 2
    mean_f = math.sin(theta) * decay
    var_f = (1 - decay2) / 2 - mean_f**2
    f2_eps2 = (1 - (1 - 4 * w2s2) * decay2) / 2
    score = (f2_eps2 - 2 * mean_f**2 * (1 - w2s2) + mean_f**2) / sigma**2 - g2
    return averaged(omega**2 / 2 * (1 + decay2) - g2, var_f / sigma**2, score, g2, f2_eps2 / sigma**2 - g2)


def plug_in_the_sample() -> None:
    print("(a) A sampled action may be plugged into the score. It is (a - mu) / sigma^2, the action being held fixed.\n")
    mu, sigma = th.tensor([1.0]), 0.5
    a = mu + sigma * th.randn(1_000_000, 1)
    score = (a - mu) / sigma**2
    estimate = (quadratic(a).unsqueeze(1) * score).squeeze(1)
    standard_error = estimate.std() / len(a) ** 0.5
    print("    f(a) = a^2, a ~ N(1, 0.5^2): grad_mu E[f] = 2 mu = 2")
    print(f"    mean of f(a) (a - mu) / sigma^2 over {len(a):,} samples: {estimate.mean():.3f} +- {standard_error:.3f}\n")


def differentiate_a_reparameterised_log_pi() -> None:
    print("(b) log pi at a reparameterised sample: mu and sigma enter twice, through the density and through the sample.\n")
    mu, log_sigma = th.tensor(1.0, requires_grad=True), th.tensor(math.log(0.5), requires_grad=True)
    print("       eps | d/dmu: density +    path =  total | d/dlog sigma: density +    path =  total")
    for eps in (-1.3, 0.4, 2.1):
        x = mu + log_sigma.exp() * eps
        total = th.autograd.grad(Normal(mu, log_sigma.exp()).log_prob(x), (mu, log_sigma))
        x = x.detach()
        density = th.autograd.grad(Normal(mu, log_sigma.exp()).log_prob(x), (mu, log_sigma))
        path = [t - d for t, d in zip(total, density, strict=True)]
        row = [f"{d:+7.3f} + {p:+7.3f} = {t:+6.3f}" for d, p, t in zip(density, path, total, strict=True)]
        print(f"    {eps:+6.2f} |       {row[0]} |              {row[1]}")
    print("""
    eps / sigma and -eps / sigma cancel in mu; (eps^2 - 1) - eps^2 leaves -1 in log sigma. This is the gradient of minus
    the entropy H = log sigma + const, and free of noise: right for SAC's entropy term. It is no score: an actor that
    weighs it with Q learns nothing about mu. A score needs the action detached; a pathwise gradient needs no log pi at
    all, it differentiates Q.
""")
    a = (mu + log_sigma.exp() * th.randn(100_000)).unsqueeze(1)
    weighted = (quadratic(a).detach() * Normal(mu, log_sigma.exp()).log_prob(a.squeeze(1))).mean()
    grad_mu, grad_log_sigma = th.autograd.grad(weighted, (mu, log_sigma))
    print(f"    Q = a^2, action not detached: grad_mu = {abs(grad_mu):.3f}, grad_log_sigma = {grad_log_sigma:.3f} = -E[Q]")
    print("    (the truth is 2 and 0.5)\n")


def compare_the_means() -> None:
    print(f"(c) Detached, both routes estimate the same gradient. f(x) = |x|^2, {N_SAMPLES} samples per estimate:\n")
    d, m, sigma = 6, 1.0, 0.5
    for name, route in ROUTES.items():
        grads = gradients(route, quadratic, th.full((d,), m), sigma)
        # Coordinates share their samples: only rows are independent
        errors = [grad.mean(1).std() / N_ROWS**0.5 for grad in grads]
        texts = [f"{grad.mean():.4f} +- {error:.4f}" for grad, error in zip(grads, errors, strict=True)]
        print(f"    {name:33s} mu: {texts[0]:18s} (truth {2 * m:.4f})   log sigma: {texts[1]:18s} (truth {2 * sigma**2:.4f})")


def print_table(varied: str, theory: Theory, measurements: Measurements) -> None:
    headers = ["pathwise", "LR, leave-one-out", "LR, no baseline", "ratio of the first two"]
    print(f"    {varied:>11s} | " + " | ".join(f"{header:>22s}" for header in headers))
    for x, measured in measurements.items():
        expected = theory(x)
        pairs = [(expected[name], measured[name]) for name in ROUTES]
        first, second, _ = ROUTES
        pairs.append((expected[second] / expected[first], measured[second] / measured[first]))
        print(f"    {x:11.4g} | " + " | ".join(f"{t:10.4g} ({m:9.4g})" for t, m in pairs))
    print()


def compare_the_variances() -> list[tuple[Theory, Measurements]]:
    print("\n    They differ in variance: that of the gradient for mu, summed over coordinates, in theory (and measured).\n")
    print("    As sigma shrinks (d = 6, distance to the optimum 1 in every coordinate):")
    small_sigma = {sigma: measured_variances(quadratic, th.ones(6), sigma) for sigma in (1.0, 0.5, 0.25, 0.125, 0.0625)}
    sigma_theory = partial(quadratic_variances, 6, 1.0)
    print_table("sigma", sigma_theory, small_sigma)

    print("    As the dimension d grows (sigma = 0.5):")
    many_dims: Measurements = {d: measured_variances(quadratic, th.ones(d), 0.5) for d in (1, 2, 4, 8, 17)}
    dims_theory = partial(quadratic_variances, m=1.0, sigma=0.5)
    print_table("d", dims_theory, many_dims)
    print("    The noise of the likelihood ratio does not vanish with sigma, and the noise of all coordinates enters each.\n")

    print(
        "(d) The critic on which the likelihood ratio wins: f(x) = sin(omega x + phase), rough at the scale of the policy.\n"
    )
    phase, sigma = 0.7, 0.3
    rough = {}
    for omega_sigma in (0.1, 0.3, 0.6, 1.0, 1.8, 3.6, 9.0):
        objective = partial(wave, omega=omega_sigma / sigma, phase=phase)
        rough[omega_sigma] = measured_variances(objective, th.zeros(1), sigma)

    def rough_theory(omega_sigma: float) -> dict[str, float]:
        return wave_variances(omega_sigma / sigma, phase, sigma)

    print_table("omega*sigma", rough_theory, rough)
    print("    The slope of f grows with omega, f itself does not: beyond omega * sigma of 1, values tell more than slopes.")
    return [(sigma_theory, small_sigma), (dims_theory, many_dims), (rough_theory, rough)]


def draw(curves: list[tuple[Theory, Measurements]], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 4.4), layout="constrained")
        panels = figure.subplots(1, 3)
    titles = (
        (r"$|x|^2$, d = 6: as $\sigma$ shrinks", r"$\sigma$"),
        (r"$|x|^2$, $\sigma$ = 0.5: as d grows", "dimensions d"),
        (r"$\sin(\omega x + \varphi)$: as Q gets rough", r"$\omega\sigma$"),
    )
    for axes, (theory, measurements), (title, label) in zip(panels, curves, titles, strict=True):
        varied = list(measurements)
        fine = th.logspace(math.log10(varied[0]), math.log10(varied[-1]), 100).tolist()
        expected = [theory(x) for x in fine]
        for name, (colour, marker) in LOOKS.items():
            axes.plot(fine, [variances[name] for variances in expected], color=colour, linewidth=1.8)
            measured = [variances[name] for variances in measurements.values()]
            axes.plot(varied, measured, color=colour, linestyle="none", marker=marker, markersize=6, label=name)
        axes.set(title=title, xlabel=label, xscale="log", yscale="log")
        axes.grid(color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.minorticks_off()
        axes.set_xticks(varied, [f"{x:.3g}" for x in varied])
    panels[0].invert_xaxis()
    panels[0].set_ylabel(rf"variance of the gradient for $\mu$, {N_SAMPLES} samples")
    panels[2].axvline(1, color="0.6", linewidth=1, linestyle="--", zorder=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Same expectation, different noise (lines: theory, markers: measured)")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures", help="folder to write to")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    th.manual_seed(0)

    plug_in_the_sample()
    differentiate_a_reparameterised_log_pi()
    compare_the_means()
    curves = compare_the_variances()
    path = args.output / "why_reparameterize.png"
    draw(curves, path)
    print(f"\nWritten: {path}")


if __name__ == "__main__":
    main()
