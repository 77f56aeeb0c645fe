"""What the user sees while runs are executed: a line per finished run and, in a terminal, bars with speed and time left."""

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


class Speed(ProgressColumn):
    """Environment steps per second."""

    def render(self, task: Task) -> Text:
        """:return: The text of a bar"""
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
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=console, transient=True, speed_estimate_period=60, disable=not console.is_terminal
        )
        self._whole = self._progress.add_task("", total=sum(run.n_timesteps for run in runs))
        self._bars: dict[int, TaskID] = {}
        self._finished: set[int] = set()

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def tick(self, steps: dict[int, int]) -> None:
        """Show the steps so far of each begun run, by its place."""
        for index, count in steps.items():
            if index not in self._finished and (index in self._bars or len(self._bars) < MAX_BARS):
                if index not in self._bars:
                    run = self.runs[index]
                    self._bars[index] = self._progress.add_task(f"  {run.label}", total=run.n_timesteps)
                self._progress.update(self._bars[index], completed=count)
        done = sum(run.n_timesteps if index in self._finished else steps.get(index, 0) for index, run in enumerate(self.runs))
        self._progress.update(self._whole, completed=done, description=f"{self.n_done}/{self.n_all} runs")

    def finish(self, index: int, score: float | None, seconds: float | None) -> None:
        """Show a run's final return, or ``None`` if it failed, and how long it took."""
        self._finished.add(index)
        self.n_done += score is not None
        if index in self._bars:
            self._progress.remove_task(self._bars.pop(index))
        time_text = "" if seconds is None else f" in {seconds:.1f} s"
        what = "failed" if score is None else f"final return {score:.1f}"
        self.console.print(
            f"[{self.n_done}/{self.n_all}] {self.runs[index].label}: {what}{time_text}",
            style="red" if score is None else None,
            highlight=False,
            markup=False,
        )
