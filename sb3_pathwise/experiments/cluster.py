"""
Where runs are executed: on a Dask cluster, of this machine's processes or of whichever machines a scheduler has.

What is done with the outcomes, and what the user sees meanwhile, is decided elsewhere.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

from sb3_pathwise.experiments.grid import ComparisonError, Run, one_line

POLL_SECONDS = 0.25
CONNECT_SECONDS = 10
# How often a run tells the scheduler where it is, and the number of workers is asked for
REPORT_SECONDS = 2.0
# Where a process can be forked off one that has imported everything already, so that it need not do it again
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
IMPORTED = ["distributed", "distributed.nanny", "rl_zoo3.import_envs", "sb3_pathwise.experiments.run"]
CONFIG = {
    "distributed.worker.multiprocessing-method": METHOD,
    # A run whose process dies is tried once more
    "distributed.scheduler.allowed-failures": 1,
    # A laptop may sleep: a process that is silent for minutes is not dead, and one that is dead is found by its connection
    "distributed.scheduler.worker-ttl": None,
    # What is for a dashboard: samples of the stack, a hundred in a second, and how busy a process is
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}

Outcome = dict[str, Any]


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    # Processes and threads that are started meanwhile inherit this, and keep it: Ctrl-C reaches every process of the terminal,
    # but the parent is the one to react, and stops its workers
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Its start, which workers need, would end the mask
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def begin_imports(torch_threads: int) -> None:
    """
    Let another process import what workers on this machine need, beside what this process does until they are started.

    :param torch_threads: Threads of numerical libraries in each worker
    """
    if METHOD != "forkserver":
        return
    before = os.environ.copy()
    # Read when the libraries are loaded, which is before a worker is told anything
    os.environ["OMP_NUM_THREADS"] = str(torch_threads)
    with _interrupts_held_back():
        multiprocessing.get_context(METHOD).set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)


class Progress:
    """
    Tells the scheduler how far a run is, and learns from its worker when nobody waits for the run any more.

    :param topic: Of the events
    :param index: The run's place
    """

    def __init__(self, topic: str, index: int) -> None:
        self.topic = topic
        self.index = index
        self._next_report = 0.0

    def __call__(self, steps: int) -> bool:
        """:return: Whether the run is still wanted: it is not if the client has called it off or is gone"""
        if time.monotonic() < self._next_report:
            return True
        from distributed import get_worker

        self._next_report = time.monotonic() + REPORT_SECONDS
        worker = get_worker()
        worker.log_event(self.topic, [self.index, steps])
        task = worker.state.tasks.get(worker.get_current_task())
        return task is not None and task.state == "executing"


@contextlib.contextmanager
def connected(jobs: int, address: str | None) -> Iterator[Any]:
    """
    A client of a Dask cluster, whose processes are stopped in the end if they are this machine's.

    :param jobs: Processes on this machine
    :param address: Of the scheduler of another cluster, which is used instead
    :raises ComparisonError: if there is no such scheduler, or its workers are not fit
    """
    import dask
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        target: Any = address
        if address is None:
            size: dict[str, Any] = {"n_workers": jobs, "threads_per_worker": 1, "processes": True, "memory_limit": 0}
            quiet = {"silence_logs": logging.CRITICAL, "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": None}
            with _interrupts_held_back(), dask.config.set(CONFIG):
                target = stack.enter_context(LocalCluster(**size, **quiet))
        try:
            client = stack.enter_context(Client(target, timeout=CONNECT_SECONDS, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise ComparisonError(f"--scheduler: no Dask scheduler answers at {address} ({one_line(error)})") from error
        # This machine's are as they were started, and have imported what they need
        if address is not None:
            _check_workers(client)
        yield client


def _check_workers(client: Any) -> None:
    for worker, threads in client.nthreads().items():
        if threads > 1:
            raise ComparisonError(
                f"--scheduler: worker {worker} has {threads} threads, but runs in one process would share their random "
                f"numbers; start it with --nthreads 1 --nworkers {threads}"
            )
    try:
        client.run(_probe)
    except ImportError as error:
        raise ComparisonError(f"--scheduler: a worker lacks a package ({one_line(error)})") from error


def outcomes(
    client: Any, runs: list[Run], tick: Callable[[dict[int, int]], None], notify: Callable[[str], None]
) -> Generator[tuple[int, Outcome], None, None]:
    """
    Execute runs, each in a process of its own; one whose process dies is given to another. Closing this stops them.

    Never more than there are workers are handed out: Dask blames the death of a worker on everything that waits there.

    :param client: What ``connected`` gives
    :param runs: To execute
    :param tick: Called every ``POLL_SECONDS`` with the steps of each begun run, by its place in ``runs``
    :param notify: Told, in a line, of a worker that is lost
    :return: The place of each run and its outcome, as they finish
    :raises ComparisonError: if the scheduler is lost
    """
    from sb3_pathwise.experiments.run import execute

    steps: dict[int, int] = {}
    queue, next_look, n_workers = list(range(len(runs))), 0.0, 1
    pending: dict[Any, int] = {}
    run_of: dict[str, Run] = {}
    # Of this start alone, for what workers still say of an earlier one must not be heard
    topic = f"sb3-pathwise-{uuid.uuid4()}"

    def note_loss(event: tuple[float, Any]) -> None:
        _, message = event
        if isinstance(message, dict) and message.get("action") == "remove-worker":
            if labels := "; ".join(run_of[key].label for key in message["processing-tasks"] if key in run_of):
                notify(f"Lost the worker {message['worker']}. Dask gives what it had to another one: {labels}")

    client.subscribe_topic(topic, lambda event: steps.update([event[1]]))
    # Dask's own, of what happens
    client.subscribe_topic("all", note_loss)
    try:
        while queue or pending:
            if queue and time.monotonic() > next_look:
                n_workers, next_look = max(1, len(client.nthreads())), time.monotonic() + REPORT_SECONDS
            while queue and len(pending) < n_workers:
                index = queue.pop(0)
                key = f"{runs[index].label}-{uuid.uuid4()}"
                run_of[key] = runs[index]
                pending[client.submit(execute, runs[index], Progress(topic, index), key=key, pure=False)] = index
            done = [future for future in pending if future.done()]
            for future in done:
                yield pending.pop(future), _outcome(future)
            tick(dict(steps))
            if not done:
                time.sleep(POLL_SECONDS)
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.unsubscribe_topic(topic)
            client.unsubscribe_topic("all")
            # Runs that have begun see it, and stop
            client.cancel(list(pending), force=True)


def _outcome(future: Any) -> Outcome:
    from distributed import CancelledError, KilledWorker

    try:
        return future.result()
    except CancelledError as error:
        raise ComparisonError("lost the Dask scheduler; give the same command to go on") from error
    except KilledWorker as error:
        reason = f"Every process that it was given to died, killed or by a crash in a library ({one_line(error)})"
    except Exception as error:
        reason = one_line(error)
    return {"error": reason + "\n", "episodes": []}


def _probe() -> None:
    import sb3_pathwise.experiments.run  # noqa: F401
