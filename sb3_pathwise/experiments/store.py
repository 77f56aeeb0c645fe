"""
The folder of a comparison: what it holds, and who may write to it.

``comparison.sqlite`` holds every run, with its evaluations or its traceback, in one transaction each. Beside it is the same as
text, to be read and to be committed: ``comparison.json`` (the request, and the settings that follow from it), ``runs.csv`` (a
row for each run) and ``results.csv`` (a row for each episode of each evaluation). A database that is missing, or lacks runs of
the text, is filled from there, so that the text is enough to go on with a comparison on another machine.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from sb3_pathwise.experiments.grid import Comparison, ComparisonError, Run, eval_steps, one_line
from sb3_pathwise.persistence.atomic import write_atomically

MANIFEST, RUNS, RESULTS, DATABASE = "comparison.json", "runs.csv", "results.csv", "comparison.sqlite"
FORMAT = 2
KEY = ["algorithm", "environment", "seed"]
# Of every run, besides the versions of what it was made with
RUN_COLUMNS = [*KEY, "started", "wall_seconds", "error"]
COLUMNS = [*KEY, "step", "train_seconds", "episode", "return", "length"]
SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS runs (
    algorithm TEXT, environment TEXT, seed INTEGER, started TEXT, wall_seconds REAL, error TEXT, versions TEXT,
    PRIMARY KEY (algorithm, environment, seed)
);
CREATE TABLE IF NOT EXISTS results (
    algorithm TEXT, environment TEXT, seed INTEGER, step INTEGER, train_seconds REAL, episode INTEGER, "return" REAL,
    length INTEGER, PRIMARY KEY (algorithm, environment, seed, step, episode)
);
COMMIT;
"""


class Store:
    """
    A comparison's folder, held by one process at a time.

    :param output: The folder
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.db: sqlite3.Connection

    def check(self, comparison: Comparison, runs: list[Run]) -> None:
        """
        Whether the folder can hold a comparison: nothing is written. One in which no run has finished blocks nobody.

        :param comparison: The request
        :param runs: Its runs
        :raises ComparisonError: if the folder holds something else, or cannot be read
        """
        try:
            # A process that was killed just after it had made the folder leaves these
            leftovers = (".tmp-", ".gitignore", DATABASE)
            names = {path.name for path in self.output.iterdir() if not path.name.startswith(leftovers)}
        except FileNotFoundError:
            return
        except OSError as error:
            raise ComparisonError(f"cannot write to {self.output} ({one_line(error)})") from error
        if MANIFEST not in names and names:
            raise ComparisonError(f"{self.output} is not empty and holds no comparison; choose another --output")
        manifest = read_manifest(self.output) if names else {}
        if not finished_of(read_runs(self.output)).empty:
            check_same(manifest, make_manifest(comparison, runs), self.output)

    @contextlib.contextmanager
    def opened(self, comparison: Comparison, runs: list[Run]) -> Iterator["Store"]:
        """
        Create the folder, or go on with the same comparison, which may have gained algorithms, environments or seeds.

        :param comparison: The request
        :param runs: Its runs
        :raises ComparisonError: if the folder cannot be written, is in use, or holds something else
        """
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(self.output / DATABASE, timeout=0)
            with contextlib.closing(self.db):
                # The lock is held until the connection is closed, and needs no shared memory, which network file systems lack
                self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.executescript(SCHEMA)
                write_atomically(self.output / ".gitignore", f"{DATABASE}*\n")
                for leftover in self.output.glob(".tmp-*"):
                    leftover.unlink()
                if (self.output / MANIFEST).exists():
                    self._take_in()
                    # What a process had no time to write as text before it was killed
                    self.export()
                    self.check(comparison, runs)
                with self.db:
                    # Failures are of whichever comparison it was if no run of it is there
                    self.db.execute("DELETE FROM runs WHERE NOT EXISTS (SELECT * FROM runs WHERE error IS NULL)")
                write_atomically(self.output / MANIFEST, json.dumps(make_manifest(comparison, runs), indent=1) + "\n")
                self.export()
                yield self
        except (OSError, sqlite3.DatabaseError) as error:
            if "locked" in str(error):
                raise ComparisonError(f"{self.output} is in use by another compare") from error
            raise ComparisonError(f"cannot write to {self.output} ({one_line(error)})") from error

    def _take_in(self) -> None:
        # The finished runs that only the text has, as from another machine, by way of git
        manifest, (runs, results) = read_manifest(self.output), read_results(self.output)
        ours = set(self.db.execute("SELECT algorithm, environment, seed FROM runs WHERE error IS NULL"))
        episodes = dict(list(results.groupby(KEY)))
        for run in finished_of(runs).to_dict("records"):
            key = (run["algorithm"], run["environment"], run["seed"])
            if key in ours:
                continue
            cell = manifest["cells"][key[0]][key[1]]
            n_expected = len(eval_steps(cell["n_timesteps"], cell["eval_freq"])) * cell["n_eval_episodes"]
            if len(episodes.get(key, ())) != n_expected:
                what = f"{self.output / RESULTS} lacks episodes of {' '.join(map(str, key))}"
                raise ComparisonError(f"{what}: it can be reported, not continued; without its line in {RUNS} it is run again")
            versions = {name: value for name, value in run.items() if name not in RUN_COLUMNS and value}
            rows = episodes[key][COLUMNS[3:]].astype(object).to_numpy().tolist()
            self._insert(key, [run["started"], float(run["wall_seconds"]), None], versions, rows)

    def unfinished(self, runs: list[Run]) -> list[Run]:
        """:return: Those of a comparison's runs that are still to be executed"""
        finished = set(finished_of(read_runs(self.output))[KEY].itertuples(index=False, name=None))
        return [run for run in runs if (run.variant, run.env, run.seed) not in finished]

    def save(self, run: Run, outcome: dict[str, Any]) -> None:
        """
        Keep a run with its evaluations, or with its traceback if it failed, and bring the text up to date.

        :param run: What was trained
        :param outcome: What ``execute`` returned
        """
        record = [outcome.get("started"), outcome.get("wall_seconds"), outcome["error"]]
        self._insert((run.variant, run.env, run.seed), record, outcome.get("versions", {}), outcome["episodes"])
        self.export()

    def _insert(self, key: tuple[str, str, int], record: list[Any], versions: dict[str, str], rows: list[Any]) -> None:
        with self.db:
            self.db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", [*key, *record, json.dumps(versions)])
            self.db.executemany("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [[*key, *row] for row in rows])

    def export(self) -> None:
        """Write the text anew: each file is the old one or the new one, and ``runs.csv`` names no run that the other lacks."""
        order = f"ORDER BY {', '.join(KEY)}"
        results = pd.read_sql_query(f"SELECT * FROM results {order}, step, episode", self.db)
        runs = pd.read_sql_query(f"SELECT * FROM runs {order}", self.db)
        versions = pd.DataFrame([json.loads(text) for text in runs.pop("versions")], index=runs.index)
        for name, table in {RESULTS: results, RUNS: runs.join(versions)}.items():
            write_atomically(self.output / name, table.to_csv(index=False, lineterminator="\n"))


def make_manifest(comparison: Comparison, runs: list[Run]) -> dict[str, Any]:
    """:return: What ``comparison.json`` holds, of a request and its runs; objects that a Python file gave by their names"""

    def name(value: Any) -> str:
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)

    cells: dict[str, dict[str, Any]] = {}
    for run in runs:
        cell = {key: value for key, value in vars(run).items() if key not in {"variant", "seed"}}
        cells.setdefault(run.variant, {})[run.env] = cell
    return json.loads(json.dumps({"format": FORMAT, "request": asdict(comparison), "cells": cells}, default=name))


def read_manifest(folder: Path) -> dict[str, Any]:
    """
    :param folder: A comparison's
    :return: What it was started with
    :raises ComparisonError: if there is none, or it cannot be read
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise ComparisonError(f"{folder} holds no comparison (no {MANIFEST} in it)") from error
    except (OSError, ValueError) as error:
        raise ComparisonError(f"cannot read {folder / MANIFEST} ({one_line(error)})") from error
    if manifest.get("format") != FORMAT:
        raise ComparisonError(f"{folder} holds a comparison of another version of sb3-pathwise, which this one cannot read")
    return manifest


def _read(path: Path, columns: list[str], types: dict[str, type], **how: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(path, **how).astype(types)
    except FileNotFoundError:
        return pd.DataFrame(columns=columns).astype(types)
    except (OSError, ValueError, KeyError) as error:
        raise ComparisonError(f"cannot read {path} ({one_line(error)})") from error


def read_runs(folder: Path) -> pd.DataFrame:
    """:return: The runs that have ended, as text: ``RUN_COLUMNS``, then versions; the error is empty if it finished"""
    types: dict[str, type] = {**dict.fromkeys(RUN_COLUMNS, str), "seed": int}
    return _read(folder / RUNS, RUN_COLUMNS, types, dtype=str, keep_default_na=False)


def finished_of(runs: pd.DataFrame) -> pd.DataFrame:
    """:return: Of what ``read_runs`` gives, the runs that did not fail"""
    return runs[runs["error"] == ""]


def read_results(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """:return: What ``read_runs`` gives, and every episode of the finished runs, with ``COLUMNS``"""
    runs, types = read_runs(folder), {"seed": int, "step": int, "train_seconds": float, "return": float, "length": float}
    results = _read(folder / RESULTS, COLUMNS, types, float_precision="round_trip")
    return runs, results.merge(finished_of(runs)[KEY], on=KEY)


def check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """
    :param old: What the folder was started with
    :param new: What is asked for now
    :param folder: For the error's text
    :raises ComparisonError: if a run of the old comparison is missing from the new one, or has changed
    """

    def refuse(what: str) -> NoReturn:
        raise ComparisonError(f"{folder} holds another comparison ({what}); choose another --output")

    old_seeds, new_seeds = (Comparison(**manifest["request"]).seeds for manifest in (old, new))
    if not {*old_seeds} <= {*new_seeds}:
        refuse(f"with seeds {old_seeds[0]} to {old_seeds[-1]}, here {new_seeds[0]} to {new_seeds[-1]}")
    for variant, env, there in ((variant, env, cell) for variant, row in old["cells"].items() for env, cell in row.items()):
        here = new["cells"].get(variant, {}).get(env) or refuse(f"with {variant} on {env}")
        for key in sorted(there["hyperparams"] | here["hyperparams"]):
            a, b = (values["hyperparams"].get(key, "the default") for values in (there, here))
            if a != b:
                refuse(f"{key} of {variant} on {env} is {a} there, {b} here")
        for key in sorted(there.keys() - {"hyperparams"}):
            if there[key] != here[key]:
                refuse(f"{key} is {there[key]} there, {here[key]} here")
