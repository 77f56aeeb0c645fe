"""
The folder of a comparison: what it holds, and who may write to it.

Layout: ``comparison.json`` (the request and its hyperparameters), ``runs/<variant>/<env>/seed_<n>/`` for finished runs only,
``failed/`` likewise for those that raised, ``results.csv`` with every evaluation of the finished ones.
"""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sb3_pathwise.experiments.grid import Comparison, ComparisonError, Run, one_line, slug
from sb3_pathwise.persistence.atomic import synced_file, whole_folder, write_atomically

MANIFEST = "comparison.json"
COLUMNS = ("algorithm", "environment", "seed", "step", "train_seconds", "return_mean", "return_std", "length_mean")


def plain(value: Any) -> Any:
    """
    :param value: Hyperparameters, which a Python file may have given as objects
    :return: The same as JSON and YAML can hold it, objects by their names
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


class Store:
    """
    A comparison's folder, held by one process at a time.

    :param output: The folder
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._lock = FileLock(output / ".lock")

    def check(self, comparison: Comparison, runs: list[Run]) -> None:
        """
        Whether the folder can hold a comparison: nothing is written. One in which no run has finished blocks nobody.

        :param comparison: The request
        :param runs: Its runs
        :raises ComparisonError: if the folder holds something else, or cannot be read
        """
        try:
            contents = {path.name for path in self.output.iterdir()} - {".lock"}
        except FileNotFoundError:
            return
        except OSError as error:
            raise ComparisonError(f"cannot write to {self.output} ({one_line(error)})") from error
        if MANIFEST not in contents and contents:
            raise ComparisonError(f"{self.output} is not empty and holds no comparison; choose another --output")
        if self._has_runs():
            check_same(read_manifest(self.output), self._manifest(comparison, runs), self.output)

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
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ComparisonError(f"{self.output} is in use by another compare") from error
        except OSError as error:
            raise ComparisonError(f"cannot write to {self.output} ({one_line(error)})") from error
        try:
            self.check(comparison, runs)
            try:
                # One pattern after the other: what the first one removes, the second must not find
                for pattern in (".tmp-*", "*/.tmp-*"):
                    for leftover in list(self.output.glob(pattern)):
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                if not self._has_runs():
                    # Of whichever comparison it was
                    shutil.rmtree(self.output / "failed", ignore_errors=True)
                manifest = self._manifest(comparison, runs)
                write_atomically(self.output / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            except OSError as error:
                raise ComparisonError(f"cannot write to {self.output} ({one_line(error)})") from error
            yield self
        finally:
            self._lock.release()

    @staticmethod
    def _manifest(comparison: Comparison, runs: list[Run]) -> dict[str, Any]:
        cells: dict[str, dict[str, Any]] = {}
        for run in runs:
            cell = plain(vars(run))
            cells.setdefault(run.variant, {})[run.env] = {key: cell[key] for key in cell if key not in {"variant", "seed"}}
        return {"format": 1, "request": comparison.as_dict(), "cells": cells}

    def _has_runs(self) -> bool:
        return any(self.output.glob("runs/*/*/seed_*"))

    def unfinished(self, runs: list[Run]) -> list[Run]:
        """
        :param runs: Those of the comparison
        :return: Those that are still to be executed
        """
        return [run for run in runs if not self.finished(run)]

    def finished(self, run: Run) -> bool:
        """
        :param run: One of the comparison
        :return: Whether its results are there, all of them
        """
        return (self.output / "runs" / run.folder).is_dir()

    def save(self, run: Run, outcome: dict[str, Any]) -> None:
        """
        Write a run's folder, all of it or nothing: under ``runs``, or under ``failed`` if it raised.

        :param run: What was trained
        :param outcome: What ``execute`` returned
        """
        import yaml

        files = {
            "run.json": json.dumps({"run": plain(vars(run)), **{k: outcome.get(k) for k in _KEPT}}, indent=2) + "\n",
            # The zoo's form: --conf-file takes it
            "config.yml": yaml.safe_dump({run.env: {"n_timesteps": run.n_timesteps, **plain(run.hyperparams)}}),
        }
        if outcome.get("log"):
            files["log.txt"] = outcome["log"]
        failed = self.output / "failed" / run.folder
        if outcome["error"]:
            files["traceback.txt"] = outcome["error"]
            self._write_folder(failed, files)
            return
        episodes = [
            (evaluation["step"], evaluation["train_seconds"], episode, value, length)
            for evaluation in outcome["evaluations"]
            for episode, (value, length) in enumerate(zip(evaluation["returns"], evaluation["lengths"], strict=True))
        ]
        files["evaluations.csv"] = _csv(("step", "train_seconds", "episode", "return", "length"), episodes)
        self._write_folder(self.output / "runs" / run.folder, files)
        shutil.rmtree(failed, ignore_errors=True)

    def _write_folder(self, folder: Path, files: dict[str, str]) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished, doomed = self.output / ".tmp-unfinished", self.output / ".tmp-doomed"
        with whole_folder(folder, unfinished, doomed):
            for name, text in files.items():
                with synced_file(unfinished / name) as file:
                    file.write(text.encode())


_KEPT = ("started", "wall_seconds", "versions", "machine")


def _csv(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()


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
    if manifest.get("format") != 1:
        raise ComparisonError(f"{folder / MANIFEST} was written by another version of sb3-pathwise")
    return manifest


def check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """
    :param old: What the folder was started with
    :param new: What is asked for now
    :param folder: For the error's text
    :raises ComparisonError: if a run of the old comparison is missing from the new one, or has changed
    """

    def refuse(what: str) -> None:
        raise ComparisonError(f"{folder} holds another comparison ({what}); choose another --output")

    old_seeds, new_seeds = (set(Comparison(**manifest["request"]).seeds) for manifest in (old, new))
    if not old_seeds <= new_seeds:
        refuse(f"with seeds {min(old_seeds)} to {max(old_seeds)}, here {min(new_seeds)} to {max(new_seeds)}")
    for variant, cells in old["cells"].items():
        for env, cell in cells.items():
            if env not in new["cells"].get(variant, {}):
                refuse(f"with {variant} on {env}")
            # Through JSON, as the old one was
            there, here = cell, json.loads(json.dumps(new["cells"][variant][env]))
            for key in sorted((there["hyperparams"] | here["hyperparams"]).keys()):
                a, b = (values["hyperparams"].get(key, "the default") for values in (there, here))
                if a != b:
                    refuse(f"{key} of {variant} on {env} is {a} there, {b} here")
            for key in sorted(there.keys() - {"hyperparams"}):
                if there[key] != here[key]:
                    refuse(f"{key} is {there[key]} there, {here[key]} here")


def read_results(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """
    :param folder: A comparison's
    :return: One row per evaluation of the finished runs (``COLUMNS``), what is known of each of these runs, and the runs
        that are missing, with ``error`` if they failed; in the order of the request
    :raises ComparisonError: if a run's files cannot be read
    """
    manifest = read_manifest(folder)
    evaluations: list[dict[str, Any]] = []
    finished, missing = [], []
    for env in manifest["request"]["envs"]:
        for variant in manifest["request"]["algos"]:
            for seed in Comparison(**manifest["request"]).seeds:
                where = f"{slug(variant)}/{slug(env)}/seed_{seed}"
                key = {"algorithm": variant, "environment": env, "seed": seed}
                if not (folder / "runs" / where).is_dir():
                    failure = folder / "failed" / where / "traceback.txt"
                    missing.append({**key, "error": failure.read_text() if failure.exists() else None})
                    continue
                try:
                    evaluations += [{**key, **row} for row in _read_evaluations(folder / "runs" / where / "evaluations.csv")]
                    finished.append({**key, **json.loads((folder / "runs" / where / "run.json").read_text())})
                except (OSError, ValueError, KeyError) as error:
                    raise ComparisonError(
                        f"cannot read {folder / 'runs' / where} ({one_line(error)}); remove that folder and compare again"
                    ) from error
    return evaluations, finished, missing


def _read_evaluations(path: Path) -> list[dict[str, Any]]:
    rows: dict[int, list[dict[str, str]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(int(row["step"]), []).append(row)
    evaluations = []
    for step, episodes in rows.items():
        returns = [float(row["return"]) for row in episodes]
        mean = sum(returns) / len(returns)
        evaluations.append(
            {
                "step": step,
                "train_seconds": float(episodes[0]["train_seconds"]),
                "return_mean": mean,
                "return_std": (sum((value - mean) ** 2 for value in returns) / len(returns)) ** 0.5,
                "length_mean": sum(int(row["length"]) for row in episodes) / len(episodes),
            }
        )
    return evaluations


def write_results(folder: Path) -> None:
    """
    Write ``results.csv`` from the finished runs.

    :param folder: A comparison's
    """
    evaluations, _, _ = read_results(folder)
    rows = [tuple(row[column] for column in COLUMNS) for row in evaluations]
    write_atomically(folder / "results.csv", _csv(COLUMNS, rows))
