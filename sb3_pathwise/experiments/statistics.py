"""
Scores of runs, and how sure one may be of them: interquartile means, bootstrap intervals, probabilities of improvement, tests.

The estimators are rliable's (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"), the
tests SciPy's and the correction statsmodels'. How numbers are put into words and pictures is not decided here.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from rliable import library as rly
from statsmodels.stats.multitest import multipletests

from sb3_pathwise.experiments.grid import MIN_SEEDS, ComparisonError, one_line

CONFIDENCE = 0.95
REPETITIONS = 2_000
# Points at which curves over wall-clock time, and those of several tasks, are read off
CURVE_POINTS = 60

# Score of a run, by the name of its column
SCORES = {"final": "final return", "auc": "mean return over training"}
# The aggregate's name among the environments
ALL = "all environments"
REFERENCES = Path(__file__).with_name("references.csv")


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval, which are ``None`` where there are too few runs for one."""

    point: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Duel:
    """
    Two algorithms compared by one of ``SCORES`` on an environment or on ``ALL``, the one with the higher score first.

    ``difference`` is that of their interquartile means, ``improvement`` the probability that a run of the first scores higher
    than one of the second. ``p`` is of Welch's t-test, ``p_rank`` of the Mann-Whitney U test, both two-sided, ``p_holm`` the
    first after Holm's correction over all duels of the score; ``None``: too few seeds, or several environments.
    """

    environment: str
    score: str
    first: str
    second: str
    difference: Estimate
    improvement: Estimate
    # They scored exactly the same with every seed, so that neither is ahead
    equal: bool = False
    p: float | None = None
    p_rank: float | None = None
    p_holm: float | None = None

    @property
    def testable(self) -> bool:
        """Whether there are seeds enough."""
        return self.difference.low is not None

    @property
    def decided(self) -> bool:
        """Whether the difference is more than chance explains, by Welch's test; over all environments, by the improvement"""
        if self.environment == ALL:
            return self.improvement.low is not None and self.improvement.low > 0.5
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


def bootstrap(statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> np.ndarray:
    """
    :param statistic: Of the scores, (values,)
    :param scores: Of one algorithm each, (runs, environments) or (runs, environments, points)
    :return: The statistic, and both ends of its stratified bootstrap interval, which are NaN with too few runs; (3, values)
    """
    if min(map(len, scores)) < MIN_SEEDS:
        points = statistic(*scores)
        return np.stack([points, *[np.full_like(points, np.nan)] * 2])
    with _seeded():
        samples = {"": list(scores) if len(scores) > 1 else scores[0]}
        points, ends = rly.get_interval_estimates(samples, statistic, reps=REPETITIONS, confidence_interval_size=CONFIDENCE)
    return np.stack([points[""], *ends[""]])


def estimates(statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> list[Estimate]:
    """:return: What ``bootstrap`` returns, value by value"""
    rows = bootstrap(statistic, *scores).T.tolist()
    return [Estimate(point) if math.isnan(low) else Estimate(point, low, high) for point, low, high in rows]


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


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """
    What rliable's function of this name returns, without SciPy's test around it: a bootstrap calls it thousands of times.

    :param x: Scores of one algorithm, (runs, environments)
    :param y: Of another, (runs, environments)
    :return: P(x > y), ties counting half, averaged over environments
    """
    return float(((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])).mean())


def duel(environment: str, score: str, ours: dict[str, np.ndarray], first: str, second: str) -> Duel:
    """:return: Two algorithms compared by their scores, (runs, environments), without correction for the number of duels"""
    if interquartile_mean(ours[first]) < interquartile_mean(ours[second]):
        first, second = second, first
    x, y = ours[first], ours[second]

    def difference_and_improvement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.append(interquartile_mean(a) - interquartile_mean(b), probability_of_improvement(a, b))

    gap, improvement = estimates(difference_and_improvement, x, y)
    equal = np.array_equal(x, y)
    # One sample, seen twice, has no interval of its own
    found = Duel(environment, score, first, second, gap, Estimate(improvement.point) if equal else improvement, equal)
    if environment == ALL or not found.testable:
        return found
    p_rank = scipy.stats.mannwhitneyu(x.ravel(), y.ravel(), alternative="two-sided").pvalue
    return replace(found, p=_welch(x, y), p_rank=float(p_rank))


def _welch(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 and np.ptp(y) == 0:
        # No variance in either: the statistic is not defined
        return float(x[0, 0] == y[0, 0])
    with warnings.catch_warnings():
        # Of runs that all score the same, as happens where a task is solved
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return float(scipy.stats.ttest_ind(x.ravel(), y.ravel(), equal_var=False).pvalue)


def corrected(duels: list[Duel]) -> list[Duel]:
    """:return: Duels of one score, with Holm's correction over all of them that were tested"""
    tested = [found.p for found in duels if found.p is not None]
    adjusted = iter(multipletests(tested, method="holm")[1]) if tested else iter(())
    return [replace(found, p_holm=None if found.p is None else float(next(adjusted))) for found in duels]


def read_table(path: Path, key: list[str], numbers: list[str]) -> pd.DataFrame:
    """:return: A CSV file of the user, by its key"""
    try:
        return pd.read_csv(path).astype(dict.fromkeys(numbers, float)).set_index(key)
    except (OSError, ValueError, KeyError) as error:
        raise ComparisonError(
            f"cannot read {path}, a CSV file with {', '.join([*key, *numbers])} ({one_line(error)})"
        ) from error


class Statistics:
    """
    Everything that is computed from a comparison's results.

    :param results: Every episode, with ``store.COLUMNS``
    :param algorithms: In the user's order
    :param environments: In the user's order
    :param references: Returns by environment, of a policy of random actions (``random``: normalised score 0) and of a known
        algorithm (``reference``: 1); ``None``: those of the package
    :param seconds: Training time of 1,000 steps by algorithm and environment, measured apart, in place of the runs' own
    """

    def __init__(
        self,
        results: pd.DataFrame,
        algorithms: list[str],
        environments: list[str],
        references: pd.DataFrame | None = None,
        seconds: pd.DataFrame | None = None,
    ) -> None:
        keys = ["environment", "algorithm", "seed"]
        self.evaluations = results.groupby([*keys, "step"], as_index=False)[["train_seconds", "return"]].mean()
        if seconds is not None:
            self.evaluations["train_seconds"] = self._measured_apart(seconds)
        self.runs = pd.DataFrame([self._run(run) for _, run in self.evaluations.groupby(keys)])
        self.environments = [env for env in environments if env in set(self.runs["environment"])]
        self.algorithms = [algo for algo in algorithms if algo in set(self.runs["algorithm"])]
        self.references = read_table(REFERENCES, ["environment"], []) if references is None else references
        self.unknown = [env for env in self.environments if env not in self.references.index]
        # Of every environment, and of all together
        self.places = list(self.environments)
        if len(self.environments) > 1 and not self.unknown and self.scores(ALL, "final"):
            self.places.insert(0, ALL)
        self._rankings = {(place, score): self._ranking(place, score) for place in self.places for score in SCORES}
        self.duels = [found for score in SCORES for found in corrected(list(self._duels(score)))]

    def _measured_apart(self, seconds: pd.DataFrame) -> Any:
        rows = self.evaluations.join(seconds["seconds_per_1000_steps"], on=["algorithm", "environment"])
        if len(missing := rows[rows["seconds_per_1000_steps"].isna()]):
            raise ComparisonError("no seconds are given for {algorithm} on {environment}".format(**missing.iloc[0]))
        return rows["step"] * rows["seconds_per_1000_steps"] / 1000

    @staticmethod
    def _run(run: pd.DataFrame) -> dict[str, Any]:
        steps, returns, last = run["step"].to_numpy(), run["return"].to_numpy(), run.iloc[-1]
        auc = np.trapezoid(returns, steps) / (steps[-1] - steps[0])
        kept = last[["environment", "algorithm", "seed", "train_seconds"]].to_dict()
        return kept | {"final": returns[-1], "auc": auc, "steps": steps[-1]}

    def _tasks(self, environment: str) -> list[str]:
        return self.environments if environment == ALL else [environment]

    def _scaled(self, values: np.ndarray, environment: str, task: str) -> np.ndarray:
        if environment != ALL:
            return values
        zero, one = self.references.loc[task, ["random", "reference"]]
        return (values - zero) / (one - zero)

    def seeds(self, environment: str, algorithm: str) -> list[int]:
        """:return: The seeds that an algorithm finished; for ``ALL``, everywhere"""
        ours = self.runs[self.runs["algorithm"] == algorithm]
        finished = [set(ours.loc[ours["environment"] == task, "seed"]) for task in self._tasks(environment)]
        return sorted(set.intersection(*finished))

    def scores(self, environment: str, score: str) -> dict[str, np.ndarray]:
        """:return: Of every algorithm that has runs there, (runs, environments); for ``ALL``, normalised"""
        values = self.runs.set_index(["environment", "algorithm", "seed"])[score]
        found = {}
        for algo in self.algorithms:
            if seeds := self.seeds(environment, algo):
                tasks = self._tasks(environment)
                columns = [self._scaled(values[task, algo][seeds].to_numpy(), environment, task) for task in tasks]
                found[algo] = np.stack(columns, axis=1)
        return found

    def ranking(self, environment: str, score: str = "final") -> dict[str, Estimate]:
        """:return: Interquartile means, the highest first"""
        return self._rankings[environment, score]

    def _ranking(self, environment: str, score: str) -> dict[str, Estimate]:
        found = {algo: estimates(interquartile_mean, scores)[0] for algo, scores in self.scores(environment, score).items()}
        return dict(sorted(found.items(), key=lambda item: -item[1].point))

    def _duels(self, score: str) -> Iterator[Duel]:
        for environment in self.places:
            scores = self.scores(environment, score)
            for first, second in itertools.combinations(scores, 2):
                yield duel(environment, score, scores, first, second)

    def find_duel(self, environment: str, one: str, other: str) -> Duel:
        """:return: Two algorithms by final return"""
        wanted = (environment, "final", {one, other})
        return next(found for found in self.duels if (found.environment, found.score, {found.first, found.second}) == wanted)

    def curve(self, environment: str, algorithm: str, axis: str) -> tuple[np.ndarray, np.ndarray] | None:
        """
        :param environment: Where; for ``ALL``, scores are normalised
        :param algorithm: Whose
        :param axis: ``step`` or ``train_seconds``
        :return: Its values until the quickest run ended, and there the interquartile mean with both edges of its pointwise
            band, (3, points); ``None`` without runs
        """
        tasks, seeds = self._tasks(environment), self.seeds(environment, algorithm)
        if not seeds:
            return None
        ours = dict(list(self.evaluations[self.evaluations["algorithm"] == algorithm].groupby(["environment", "seed"])))
        runs = [[ours[task, seed] for task in tasks] for seed in seeds]
        x = runs[0][0][axis].to_numpy()
        if axis == "train_seconds" or any(not np.array_equal(run[axis], x) for row in runs for run in row):
            x = np.linspace(0, min(run[axis].iloc[-1] for row in runs for run in row), CURVE_POINTS)

        def points(task: str, run: pd.DataFrame) -> np.ndarray:
            return self._scaled(np.interp(x, run[axis], run["return"]), environment, task)

        # (runs, environments, points)
        values = [list(map(points, tasks, row)) for row in runs]
        return x, bootstrap(interquartile_mean, np.array(values))
