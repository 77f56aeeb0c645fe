"""
Where runs are executed: joblib's processes on this machine, or a Dask cluster. Both give back what ``execute`` returns.

What is done with the outcomes, and what the user sees meanwhile, is decided elsewhere.
"""

import contextlib
import os
import re
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from sb3_pathwise.experiments.grid import ComparisonError, Run, one_line

POLL_SECONDS = 0.1
CONNECT_SECONDS = 10
# How often a run tells a scheduler where it is, and asks whether to stop
REPORT_SECONDS = 2.0

Outcome = dict[str, Any]
Tick = Callable[[dict[int, int]], None]


class Engine(Protocol):
    """Executes runs. Used as a context; leaving it stops whatever is still being executed."""

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *error: Any) -> None: ...

    def outcomes(self, runs: list[Run], tick: Tick) -> Iterator[tuple[Run, Outcome]]:
        """
        :param runs: To execute
        :param tick: Called every ``POLL_SECONDS`` with the steps of each begun run, by its place in ``runs``
        :return: Each run with its outcome, as they finish
        """
        ...


def lost(reason: str) -> Outcome:
    """
    :param reason: Why there is no outcome
    :return: The outcome of a run whose process is gone
    """
    return {"error": reason + "\n", "evaluations": [], "log": ""}


def _drain(pending: dict[Any, int], tick: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    """
    :param pending: Futures, of joblib's kind or Dask's, and whatever they stand for
    :param tick: Called between looks
    :return: What a future stands for, and the future, as they are done
    """
    while pending:
        done = [future for future in pending if future.done()]
        for future in done:
            yield pending.pop(future), future
        tick()
        if not done:
            time.sleep(POLL_SECONDS)


class SharedProgress:
    """
    A run's cell in a file of step counts that all processes of a machine map into memory.

    :param path: The file
    :param index: The cell
    """

    def __init__(self, path: str, index: int) -> None:
        self.path = path
        self.index = index
        self._cell: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cell": None}

    def __call__(self, steps: int) -> bool:
        """
        :param steps: So far
        :return: Whether to go on, which a worker need not ask: it is stopped with its process
        """
        if self._cell is None:
            self._cell = np.memmap(self.path, dtype=np.int64, mode="r+")
        self._cell[self.index] = steps
        return True


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    # Processes and threads that are started meanwhile inherit this, and keep it: Ctrl-C reaches every process of the terminal,
    # but the parent is the one to react, and stops its workers
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Its start, which joblib's workers need, would end the mask
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _prepare_worker(parent: int) -> None:
    # On Windows there is no mask to inherit
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(REPORT_SECONDS)
        # Killed without a chance to stop its workers: nobody waits for them any more
        os._exit(1)

    # On Windows a process keeps the number of a parent that is gone
    threading.Thread(target=watch, daemon=True).start()


class LocalEngine:
    """
    joblib's processes (loky) on this machine.

    :param jobs: Processes
    :param torch_threads: Threads of each
    """

    def __init__(self, jobs: int, torch_threads: int = 1) -> None:
        self.jobs = jobs
        # As joblib's inner_max_num_threads does
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        self._env = dict.fromkeys(names, str(torch_threads))
        self._executor: Any = None

    def __enter__(self) -> "LocalEngine":
        self._folder = tempfile.TemporaryDirectory(prefix="sb3-pathwise-")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
            self._executor = None

    def outcomes(self, runs: list[Run], tick: Tick) -> Iterator[tuple[Run, Outcome]]:
        """
        A process that dies (killed, out of memory) takes joblib's whole pool with it. The runs that were under way are then
        tried again, one at a time and after all others, so that the guilty one is known and spoils no other.

        :param runs: To execute
        :param tick: Told the steps of each run
        :return: Each run with its outcome, as they finish
        """
        from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

        from sb3_pathwise.experiments.run import execute

        path = str(Path(self._folder.name) / "steps")
        steps = np.memmap(path, dtype=np.int64, mode="w+", shape=(max(1, len(runs)),))
        steps[:] = -1

        def look() -> None:
            tick({index: int(count) for index, count in enumerate(steps[: len(runs)]) if count >= 0})

        queue, suspects = list(range(len(runs))), list[int]()
        while queue or suspects:
            alone = not queue
            batch, queue = ([suspects.pop(0)], []) if alone else (queue, [])
            steps[batch] = -1
            with _interrupts_held_back():
                self._executor = ProcessPoolExecutor(
                    max_workers=min(self.jobs, len(batch)),
                    env=self._env,
                    initializer=_prepare_worker,
                    initargs=(os.getpid(),),
                )
                submit = self._executor.submit
                pending = {submit(execute, runs[index], SharedProgress(path, index)): index for index in batch}
            for index, future in _drain(pending, look):
                error = future.exception()
                if error is None:
                    yield runs[index], future.result()
                elif not isinstance(error, BrokenProcessPool):
                    yield runs[index], lost(one_line(error))
                elif alone:
                    codes = re.search(r"\{.*?\}", str(error))
                    found = codes.group() if codes else one_line(error)
                    yield runs[index], lost(f"Its process died: {found}. Killed, out of memory, or a crash in a library.")
                else:
                    (suspects if steps[index] >= 0 else queue).append(index)
            self._stop()


class ClusterProgress:
    """
    Tells a Dask scheduler how far a run is, and learns from it when to stop.

    :param topic: Of the events, and the name of the signal to stop
    :param index: The run's place
    """

    def __init__(self, topic: str, index: int) -> None:
        self.topic = topic
        self.index = index
        self._next_report = 0.0

    def __call__(self, steps: int) -> bool:
        """
        :param steps: So far
        :return: Whether nobody has asked to stop
        """
        from distributed import Event, get_worker

        now = time.monotonic()
        if now < self._next_report:
            return True
        self._next_report = now + REPORT_SECONDS
        get_worker().log_event(self.topic, [self.index, steps])
        return not Event(self.topic).is_set()


class DaskEngine:
    """
    A Dask cluster. A run whose worker dies is given to another worker by the scheduler.

    :param address: Of the scheduler
    :param notify: Told, in a line, of a worker that is lost
    :raises ComparisonError: if there is none, or its workers are not fit
    """

    def __init__(self, address: str, notify: Callable[[str], None]) -> None:
        self.address = address
        self._notify = notify
        # Another for every start: the signal to stop must not outlast this one
        self._topic = f"sb3-pathwise-{uuid.uuid4()}"

    def __enter__(self) -> "DaskEngine":
        try:
            from distributed import Client
        except ImportError as error:
            raise ComparisonError("--scheduler needs Dask: pip install 'sb3-pathwise[distributed]'") from error
        try:
            self._client = Client(self.address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ComparisonError(f"--scheduler: no Dask scheduler answers at {self.address} ({one_line(error)})") from error
        try:
            self._check_workers()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        from distributed import Event

        # Runs that have begun cannot be called off, but they ask
        if kind is not None and self._client.status == "running":
            Event(self._topic, client=self._client).set()
        self._client.close()

    def _check_workers(self) -> None:
        threads = self._client.nthreads()
        if many := {worker: number for worker, number in threads.items() if number > 1}:
            worker, number = next(iter(many.items()))
            raise ComparisonError(
                f"--scheduler: worker {worker} has {number} threads, but runs in one process would share their random "
                f"numbers; start it with --nthreads 1 --nworkers {number}"
            )
        try:
            self._client.run(_probe)
        except ImportError as error:
            raise ComparisonError(f"--scheduler: a worker lacks a package ({one_line(error)})") from error

    def outcomes(self, runs: list[Run], tick: Tick) -> Iterator[tuple[Run, Outcome]]:
        """
        :param runs: To execute
        :param tick: Told the steps of each run
        :return: Each run with its outcome, as they finish
        :raises ComparisonError: if the scheduler is lost
        """
        from distributed import CancelledError, KilledWorker

        from sb3_pathwise.experiments.run import execute

        steps: dict[int, int] = {}

        def note(event: tuple[float, list[int]]) -> None:
            index, count = event[1]
            steps[index] = count

        def note_loss(event: tuple[float, Any]) -> None:
            _, message = event
            if isinstance(message, dict) and message.get("action") == "remove-worker":
                labels = "; ".join(run_of[key].label for key in message["processing-tasks"] if key in run_of)
                if labels:
                    self._notify(f"Lost the worker {message['worker']}. Dask gives what it had to another one: {labels}")

        pending, run_of = {}, dict[str, Run]()
        self._client.subscribe_topic(self._topic, note)
        # Dask's own topic for what happens to the cluster
        self._client.subscribe_topic("all", note_loss)
        for index, run in enumerate(runs):
            progress, key = ClusterProgress(self._topic, index), f"{run.label}-{uuid.uuid4()}"
            run_of[key] = run
            pending[self._client.submit(execute, run, progress, key=key, pure=False)] = index
        for index, future in _drain(pending, lambda: tick(dict(steps))):
            try:
                outcome = future.result()
            except CancelledError as error:
                raise ComparisonError(f"lost the Dask scheduler at {self.address}; give the same command to go on") from error
            except KilledWorker as error:
                outcome = lost(f"Every worker that it was given to died: {one_line(error)}")
            except Exception as error:
                outcome = lost(one_line(error))
            yield runs[index], outcome


def _probe() -> None:
    import sb3_pathwise.experiments.run  # noqa: F401
