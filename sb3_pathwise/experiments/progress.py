"""What the user sees while runs are executed: a line per finished run and, in a terminal, bars with speed and time left."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sb3_pathwise.experiments.grid import Run

# More bars than this fill the screen
MAX_BARS = 12


class RunsColumn(ProgressColumn):
    """Runs done, on the bar of the whole."""

    def render(self, task: Task) -> Text:
        """
        :param task: A bar
        :return: Its text
        """
        return Text(task.fields.get("runs", ""))


class SpeedColumn(ProgressColumn):
    """Environment steps per second."""

    def render(self, task: Task) -> Text:
        """
        :param task: A bar
        :return: Its text
        """
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} steps/s", style="progress.data.speed")


class Display:
    """
    Live display of a comparison; in a file or a pipe, only the lines about finished runs.

    :param runs: To be executed
    :param n_finished: Runs that were there already
    :param console: Where to
    """

    def __init__(self, runs: list[Run], n_finished: int, console: Console) -> None:
        self.runs = runs
        self.n_all = len(runs) + n_finished
        self.n_done = n_finished
        self.console = console
        self.begun = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            SpeedColumn(),
            TimeRemainingColumn(),
            RunsColumn(),
            console=console,
            transient=True,
            speed_estimate_period=60,
            disable=not console.is_terminal,
        )
        self._whole = self._progress.add_task(
            "all runs", total=sum(run.n_timesteps for run in runs), runs=f"{self.n_done}/{self.n_all} runs"
        )
        self._bars: dict[int, TaskID] = {}
        self._finished_steps = 0
        self._finished: set[int] = set()

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def tick(self, steps: dict[int, int]) -> None:
        """
        :param steps: So far, of each begun run, by its place
        """
        under_way = {index: count for index, count in steps.items() if index not in self._finished}
        self._progress.update(self._whole, completed=self._finished_steps + sum(under_way.values()))
        for index, count in under_way.items():
            if index not in self._bars and len(self._bars) < MAX_BARS:
                run = self.runs[index]
                self._bars[index] = self._progress.add_task(f"  {run.label}", total=run.n_timesteps)
            if index in self._bars:
                self._progress.update(self._bars[index], completed=count)

    def finish(self, index: int, score: float | None, seconds: float | None) -> None:
        """
        :param index: The run's place
        :param score: Its final return, or ``None`` if it failed
        :param seconds: How long it took
        """
        run = self.runs[index]
        self._finished.add(index)
        self._finished_steps += run.n_timesteps
        self.n_done += score is not None
        if index in self._bars:
            self._progress.remove_task(self._bars.pop(index))
        self._progress.update(self._whole, completed=self._finished_steps, runs=f"{self.n_done}/{self.n_all} runs")
        time_text = "" if seconds is None else f" in {seconds:.1f} s"
        what = "failed" if score is None else f"final return {score:.1f}"
        self.console.print(
            f"[{self.n_done}/{self.n_all}] {run.label}: {what}{time_text}",
            style="red" if score is None else None,
            highlight=False,
            markup=False,
        )
