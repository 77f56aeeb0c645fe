"""
Scores of runs, and how sure one may be of them: interquartile means, bootstrap intervals, probabilities of improvement, tests.

The estimators are rliable's (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"), the
tests SciPy's and the correction statsmodels'. How numbers are put into words and pictures is not decided here.
"""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from rliable import library as rly
from statsmodels.stats.multitest import multipletests

from sb3_pathwise.experiments.grid import MIN_SEEDS
from sb3_pathwise.experiments.store import KEY

CONFIDENCE = 0.95
REPETITIONS = 2_000
# Points at which curves over wall-clock time, and those of several tasks, are read off
CURVE_POINTS = 60

# Score of a run, by the name of its column
SCORES = {"final": "final return", "auc": "mean return over training"}
# The aggregate's name among the environments
ALL = "all environments"


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval, which are NaN where there are too few runs for one."""

    point: float
    low: float = math.nan
    high: float = math.nan

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


@dataclass
class Duel:
    """
    Two algorithms compared by one of ``SCORES`` at a place, the one with the higher score first.

    ``difference`` is that of their interquartile means, ``improvement`` the probability that a run of the first scores higher
    than one of the second. ``p`` is of Welch's t-test, ``p_rank`` of the Mann-Whitney U test, both two-sided, ``p_holm`` the
    first after Holm's correction over all duels of the score; NaN: too few seeds, or several environments.
    """

    first: str
    second: str
    difference: Estimate
    improvement: Estimate
    # They scored exactly the same with every seed, so that neither is ahead
    equal: bool
    p: float = math.nan
    p_rank: float = math.nan
    p_holm: float = math.nan

    @property
    def decided(self) -> bool:
        """Whether the difference is more than chance explains, by Welch's test; over all environments, by the improvement"""
        return self.improvement.low > 0.5 if math.isnan(self.p) else self.p_holm < 1 - CONFIDENCE


def bootstrap(statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> np.ndarray:
    """
    :param statistic: Of the scores, (values,)
    :param scores: Of one algorithm each, (runs, environments) or (runs, environments, points)
    :return: The statistic, and both ends of its stratified bootstrap interval, which are NaN with too few runs; (3, values)
    """
    if min(map(len, scores)) < MIN_SEEDS:
        points = statistic(*scores)
        return np.stack([points, *[np.full_like(points, np.nan)] * 2])
    # rliable 1.2 takes a random_state, but draws from numpy's global generator: without this no report is made twice
    state = np.random.get_state()
    np.random.seed(0)
    try:
        samples = {"": list(scores) if len(scores) > 1 else scores[0]}
        points, ends = rly.get_interval_estimates(samples, statistic, reps=REPETITIONS, confidence_interval_size=CONFIDENCE)
    finally:
        np.random.set_state(state)
    return np.stack([points[""], *ends[""]])


def _interquartile_mean(scores: np.ndarray) -> np.ndarray:
    # rliable's aggregate_iqm, for every point at once, without SciPy's checks: a bootstrap calls it thousands of times
    pooled = np.sort(scores.reshape(scores.shape[0] * scores.shape[1], -1), axis=0)
    cut = len(pooled) // 4
    return pooled[cut : len(pooled) - cut].mean(axis=0)


def _difference_and_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # rliable's probability_of_improvement, in which ties count half, without SciPy's test around it
    improvement = ((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])).mean()
    return np.append(_interquartile_mean(x) - _interquartile_mean(y), improvement)


class Place:
    """
    What is computed from the runs of one environment, or from the normalised ones of several.

    :param name: The environment's, or ``ALL``
    :param returns: Means of evaluations: environment, algorithm, seed, step, train_seconds, return
    :param algorithms: In the user's order
    """

    def __init__(self, name: str, returns: pd.DataFrame, algorithms: list[str]) -> None:
        self.name, self.returns, self.environments = name, returns, list(returns["environment"].unique())
        self.algorithms = [algo for algo in algorithms if algo in set(returns["algorithm"])]
        # By the score: of every algorithm, (runs, environments); interquartile means, the highest first; all pairs
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        self.ranking: dict[str, dict[str, Estimate]] = {}
        self.duels: dict[str, list[Duel]] = {}
        runs = returns.groupby(KEY)
        area = runs[["step", "return"]].apply(lambda run: np.trapezoid(run["return"], run["step"]) / np.ptp(run["step"]))
        # The last evaluation of every run, and its scores
        self.runs = runs.tail(1).rename(columns={"return": "final"}).set_index(KEY).assign(auc=area)
        for score in SCORES:
            table = self.runs[score].unstack("environment")[self.environments]
            self.scores[score] = scores = {algo: table.loc[algo].to_numpy() for algo in self.algorithms}
            ranking = {algo: Estimate(*bootstrap(_interquartile_mean, ours)[:, 0]) for algo, ours in scores.items()}
            self.ranking[score] = dict(sorted(ranking.items(), key=lambda item: -item[1].point))
            self.duels[score] = [self._duel(score, *pair) for pair in itertools.combinations(self.algorithms, 2)]

    def _duel(self, score: str, *pair: str) -> Duel:
        first, second = sorted(pair, key=list(self.ranking[score]).index)
        x, y = self.scores[score][first], self.scores[score][second]
        difference, improvement = (Estimate(*ends) for ends in bootstrap(_difference_and_improvement, x, y).T)
        equal = np.array_equal(x, y)
        # One sample, seen twice, has no interval of its own
        duel = Duel(first, second, difference, Estimate(improvement.point) if equal else improvement, equal)
        if self.name != ALL and difference.bounded:
            duel.p_rank = float(scipy.stats.mannwhitneyu(x.ravel(), y.ravel(), alternative="two-sided").pvalue)
            with warnings.catch_warnings():
                # Of runs that all score the same, as happens where a task is solved
                warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
                p = float(scipy.stats.ttest_ind(x.ravel(), y.ravel(), equal_var=False).pvalue)
            # Not defined where every run of both scores the same
            duel.p = 1.0 if math.isnan(p) else p
        return duel

    def against_the_best(self) -> dict[str, Duel]:
        """:return: Duels of the best by final return with each other algorithm, in the order of the ranking"""
        leader, *others = self.ranking["final"]
        found = {duel.second: duel for duel in self.duels["final"] if duel.first == leader}
        return {other: found[other] for other in others}

    def curve(self, algorithm: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """
        :param algorithm: Whose
        :param axis: ``step`` or ``train_seconds``
        :return: Its values until the quickest run ended, and there the interquartile mean with both edges of its pointwise
            band, (3, points)
        """
        ours = self.returns[self.returns["algorithm"] == algorithm]
        runs = [run for _, run in ours.groupby(["environment", "seed"], sort=False)]
        x, *others = (run[axis].to_numpy() for run in runs)
        if axis == "train_seconds" or not all(np.array_equal(x, other) for other in others):
            x = np.linspace(0, min(run[axis].iloc[-1] for run in runs), CURVE_POINTS)
        values = np.array([np.interp(x, run[axis], run["return"]) for run in runs])
        # (runs, environments, points)
        return x, bootstrap(_interquartile_mean, values.reshape(len(self.environments), -1, len(x)).swapaxes(0, 1))


class Statistics:
    """
    Everything that is computed from a comparison's results.

    :param results: Every episode, with ``store.COLUMNS``
    :param algos: In the user's order
    :param envs: In the user's order
    :param references: Returns by environment, of a policy of random actions (``random``: normalised score 0) and of a known
        algorithm (``reference``: 1)
    """

    def __init__(self, results: pd.DataFrame, algos: list[str], envs: list[str], references: pd.DataFrame) -> None:
        returns = (
            results.groupby([*KEY, "step"])[["train_seconds", "return"]].mean().reset_index(["algorithm", "seed", "step"])
        )
        envs = [env for env in envs if env in returns.index]
        returns = returns.loc[envs].reset_index()
        self.algorithms = [algo for algo in algos if algo in set(returns["algorithm"])]
        self.environments = [Place(env, returns[returns["environment"] == env], algos) for env in envs]
        # These, and before them all together, if there are references for all and seeds that were finished on all
        self.places = list(self.environments)
        self.references: pd.DataFrame | None = None
        self.unknown = [env for env in envs if env not in references.index]
        everywhere = returns.groupby(["algorithm", "seed"])["environment"].transform("nunique") == len(envs)
        if len(envs) > 1 and not self.unknown and everywhere.any():
            self.references = references.loc[envs].reset_index()
            zero, one = references.loc[returns["environment"], ["random", "reference"]].to_numpy().T
            normalised = returns.assign(**{"return": (returns["return"] - zero) / (one - zero)})[everywhere]
            self.places.insert(0, Place(ALL, normalised, algos))
        for score in SCORES:
            tested = [duel for place in self.places for duel in place.duels[score] if not math.isnan(duel.p)]
            for duel, p in zip(tested, multipletests([duel.p for duel in tested], method="holm")[1], strict=True):
                duel.p_holm = float(p)
