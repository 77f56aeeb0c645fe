"""
Scores of runs, and how sure one may be of them: interquartile means, bootstrap intervals, probabilities of improvement, tests.

The estimators are rliable's (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"), the
tests SciPy's and the correction statsmodels'. How numbers are put into words and pictures is not decided here.
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from rliable import library as rly
from statsmodels.stats.multitest import multipletests

from sb3_pathwise.experiments.grid import MIN_SEEDS

CONFIDENCE = 0.95
REPETITIONS = 2_000
# Points at which curves over wall-clock time are read off
TIME_POINTS = 60

# Score of a run, by the name of its column
SCORES = {"final": "final return", "auc": "mean return over training"}


@dataclass(frozen=True)
class Estimate:
    """
    A number and its 95 % interval.

    :param point: The estimate
    :param low: Lower end, or ``None`` where there are too few runs for an interval
    :param high: Upper end, or ``None``
    """

    point: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """
    An interquartile mean along an axis, with its band.

    :param x: Steps or seconds
    :param point: Interquartile mean over the seeds
    :param low: Lower edge of the band, or ``None`` where there are too few runs
    :param high: Upper edge, or ``None``
    """

    x: np.ndarray
    point: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class Duel:
    """
    Two algorithms, the one with the higher score first.

    :param environment: Where they met; ``None``: on all environments together
    :param score: Key of ``SCORES``
    :param first: The one ahead
    :param second: The other
    :param difference: Of their interquartile means
    :param improvement: Probability that a run of the first scores higher than one of the second
    :param p: Of Welch's t-test, two-sided; ``None``: too few seeds
    :param p_rank: Of the Mann-Whitney U test, two-sided; ``None``: too few seeds
    :param p_holm: Welch's, after Holm's correction over all duels of this score; ``None``: too few seeds
    :param equal: Whether they scored exactly the same with every seed, so that neither is ahead
    """

    environment: str | None
    score: str
    first: str
    second: str
    difference: Estimate
    improvement: Estimate
    p: float | None = None
    p_rank: float | None = None
    p_holm: float | None = None
    equal: bool = False

    @property
    def decided(self) -> bool:
        """Whether the difference is more than chance explains, at the 5 % level."""
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    # rliable 1.2 takes a random_state, but draws from numpy's global generator: without this no report is made twice
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _bootstrap(scores: Any, statistic: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    with _seeded():
        points, intervals = rly.get_interval_estimates(
            {"": scores}, statistic, reps=REPETITIONS, confidence_interval_size=CONFIDENCE
        )
    return np.atleast_1d(points[""]), intervals[""]


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """
    What rliable's ``aggregate_iqm`` returns, for every point at once, without SciPy's checks: a bootstrap calls it thousands
    of times.

    :param scores: (runs, environments) or (runs, environments, points)
    :return: Mean of the middle half of all runs, (1,) or (points,)
    """
    pooled = np.sort(scores.reshape(scores.shape[0] * scores.shape[1], -1), axis=0)
    cut = len(pooled) // 4
    return pooled[cut : len(pooled) - cut].mean(axis=0)


def iqm(scores: np.ndarray) -> Estimate:
    """
    :param scores: Of one algorithm, (runs, environments)
    :return: Interquartile mean with its stratified bootstrap interval
    """
    if len(scores) < MIN_SEEDS:
        return Estimate(float(interquartile_mean(scores)[0]))
    points, interval = _bootstrap(scores, interquartile_mean)
    return Estimate(float(points[0]), float(interval[0, 0]), float(interval[1, 0]))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """
    What rliable's function of this name returns, without SciPy's test around it: a bootstrap calls it thousands of times.

    :param x: Scores of one algorithm, (runs, environments)
    :param y: Of another, (runs, environments)
    :return: P(x > y), ties counting half, averaged over environments
    """
    return float(((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])).mean())


def duel(environment: str | None, score: str, ours: dict[str, np.ndarray], first: str, second: str) -> Duel:
    """
    :param environment: Where, or ``None``
    :param score: Key of ``SCORES``
    :param ours: Scores of every algorithm, (runs, environments)
    :param first: One algorithm
    :param second: Another
    :return: Their comparison, without the correction for the number of comparisons
    """
    if interquartile_mean(ours[first]) < interquartile_mean(ours[second]):
        first, second = second, first
    x, y = ours[first], ours[second]
    equal = np.array_equal(x, y)
    if min(len(x), len(y)) < MIN_SEEDS:
        difference = Estimate(float((interquartile_mean(x) - interquartile_mean(y))[0]))
        return Duel(environment, score, first, second, difference, Estimate(probability_of_improvement(x, y)), equal=equal)

    def difference_and_improvement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        gap = interquartile_mean(a) - interquartile_mean(b)
        return np.array([gap[0], probability_of_improvement(a, b)])

    points, interval = _bootstrap([x, y], difference_and_improvement)
    gap, improvement = (Estimate(*map(float, (points[k], interval[0, k], interval[1, k]))) for k in range(2))
    if environment is None:
        return Duel(environment, score, first, second, gap, improvement, equal=equal)
    return Duel(environment, score, first, second, gap, improvement, p=_welch(x, y), p_rank=_rank_test(x, y), equal=equal)


def _welch(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 and np.ptp(y) == 0:
        # No variance in either: the statistic is not defined
        return float(x[0, 0] == y[0, 0])
    with warnings.catch_warnings():
        # Of runs that all score the same, as happens where a task is solved
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return float(scipy.stats.ttest_ind(x.ravel(), y.ravel(), equal_var=False).pvalue)


def _rank_test(x: np.ndarray, y: np.ndarray) -> float:
    return float(scipy.stats.mannwhitneyu(x.ravel(), y.ravel(), alternative="two-sided").pvalue)


def corrected(duels: list[Duel]) -> list[Duel]:
    """
    :param duels: Of one score
    :return: The same with Holm's correction over all of them that were tested
    """
    tested = [found.p for found in duels if found.p is not None]
    adjusted = iter(multipletests(tested, method="holm")[1]) if tested else iter(())
    return [Duel(**vars(found) | {"p_holm": None if found.p is None else float(next(adjusted))}) for found in duels]


def ranked(estimates: dict[str, Estimate]) -> dict[str, Estimate]:
    """
    :param estimates: Of the algorithms
    :return: The same, the highest first
    """
    return dict(sorted(estimates.items(), key=lambda item: -item[1].point))


class Statistics:
    """
    Everything that is computed from a comparison's results.

    :param evaluations: Rows of ``store.COLUMNS``
    :param algorithms: In the user's order
    :param environments: In the user's order
    """

    def __init__(self, evaluations: list[dict[str, Any]], algorithms: list[str], environments: list[str]) -> None:
        self.evaluations = pd.DataFrame(evaluations)
        self.runs = pd.DataFrame(
            {
                "algorithm": algorithm,
                "environment": environment,
                "seed": seed,
                "final": run["return_mean"].iloc[-1],
                "auc": np.trapezoid(run["return_mean"], run["step"]) / (run["step"].iloc[-1] - run["step"].iloc[0]),
                "steps": run["step"].iloc[-1],
                "train_seconds": run["train_seconds"].iloc[-1],
            }
            for (environment, algorithm, seed), run in self.evaluations.groupby(
                ["environment", "algorithm", "seed"], sort=False
            )
        )
        self.environments = [env for env in environments if env in set(self.runs["environment"])]
        self.algorithms = [algo for algo in algorithms if algo in set(self.runs["algorithm"])]
        self._rankings = {(env, score): self._ranking(env, score) for env in self.environments for score in SCORES}
        self.normalised = self._normalised() if len(self.environments) > 1 else {}
        self.duels = [found for score in SCORES for found in corrected(list(self._duels(score)))]
        # Every pair of algorithms over all environments
        self.overall_duels = [
            duel(None, "final", self.normalised, *pair) for pair in itertools.combinations(self.normalised, 2)
        ]

    def scores(self, environment: str, score: str) -> dict[str, np.ndarray]:
        """
        :param environment: Where
        :param score: Key of ``SCORES``
        :return: Of every algorithm that has runs there, (runs, 1)
        """
        here = self.runs[self.runs["environment"] == environment]
        columns = {algo: here.loc[here["algorithm"] == algo, score].to_numpy()[:, None] for algo in self.algorithms}
        return {algo: column for algo, column in columns.items() if len(column)}

    def ranking(self, environment: str, score: str = "final") -> dict[str, Estimate]:
        """
        :param environment: Where
        :param score: Key of ``SCORES``
        :return: Interquartile means, the highest first
        """
        return self._rankings[environment, score]

    def _ranking(self, environment: str, score: str) -> dict[str, Estimate]:
        return ranked({algo: iqm(scores) for algo, scores in self.scores(environment, score).items()})

    def _duels(self, score: str) -> Iterator[Duel]:
        for environment in self.environments:
            scores = self.scores(environment, score)
            for first, second in itertools.combinations(scores, 2):
                yield duel(environment, score, scores, first, second)

    def find_duel(self, environment: str | None, one: str, other: str) -> Duel:
        """
        :param environment: Where; ``None``: on all together
        :param one: An algorithm
        :param other: Another
        :return: Their comparison by final return
        """
        wanted = (environment, "final", {one, other})
        duels = (*self.duels, *self.overall_duels)
        return next(found for found in duels if (found.environment, found.score, {found.first, found.second}) == wanted)

    def _normalised(self) -> dict[str, np.ndarray]:
        """
        Final returns on one scale, so that environments can be pooled: 0 is the untrained policies' mean return, 1 the highest
        interquartile mean of the comparison. Only seeds that an algorithm finished everywhere count.

        :return: Of every algorithm that has such seeds, (runs, environments); nothing if some environment was not learned
        """
        scaled = self.runs.copy()
        for environment in self.environments:
            rows = self.evaluations[self.evaluations["environment"] == environment]
            floor = rows.loc[rows["step"] == 0, "return_mean"].mean()
            top = next(iter(self.ranking(environment, "final").values())).point
            if not top > floor:
                return {}
            here = scaled["environment"] == environment
            scaled.loc[here, "final"] = (scaled.loc[here, "final"] - floor) / (top - floor)
        matrices = {}
        for algorithm in self.algorithms:
            table = scaled[scaled["algorithm"] == algorithm].pivot(index="seed", columns="environment", values="final")
            if set(table.columns) == set(self.environments) and len(table.dropna()):
                matrices[algorithm] = table.dropna()[self.environments].to_numpy()
        return matrices

    def curve(self, environment: str, algorithm: str, axis: str) -> Curve | None:
        """
        :param environment: Where
        :param algorithm: Whose
        :param axis: ``step`` or ``train_seconds``
        :return: Interquartile mean and pointwise band; over time, until the quickest run ended. ``None`` without runs
        """
        rows = self.evaluations
        rows = rows[(rows["environment"] == environment) & (rows["algorithm"] == algorithm)]
        if rows.empty:
            return None
        runs = [run for _, run in rows.groupby("seed")]
        if axis == "step":
            x = runs[0]["step"].to_numpy()
        else:
            x = np.linspace(0, min(run["train_seconds"].iloc[-1] for run in runs), TIME_POINTS)
        # (runs, 1 task, points)
        values = np.stack([np.interp(x, run[axis], run["return_mean"]) for run in runs])[:, None]
        if len(runs) < MIN_SEEDS:
            return Curve(x, interquartile_mean(values), None, None)
        points, interval = _bootstrap(values, interquartile_mean)
        return Curve(x, points, interval[0], interval[1])
