"""What the user sees while runs are executed: a line per finished run and, in a terminal, bars with speed and time left."""

from statistics import fmean
from typing import Any

from tqdm import tqdm

from sb3_pathwise.experiments.grid import Run

# More bars than this fill the screen
MAX_BARS = 12


class Display:
    """
    Live display of a comparison; in a file or a pipe, only the lines about finished runs.

    :param runs: To be executed
    :param n_finished: Runs that were there already
    """

    def __init__(self, runs: list[Run], n_finished: int) -> None:
        self.runs = runs
        self.n_all = len(runs) + n_finished
        self.n_done = n_finished
        self.whole = self._bar("", sum(run.n_timesteps for run in runs))
        self.bars: dict[int, tqdm] = {}
        self.finished: set[int] = set()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        for bar in (*self.bars.values(), self.whole):
            bar.close()

    @staticmethod
    def _bar(label: str, total: int) -> tqdm:
        return tqdm(total=total, desc=label, unit=" steps", smoothing=0.05, leave=False, disable=None, dynamic_ncols=True)

    def tick(self, steps: dict[int, int]) -> None:
        """Show the steps so far of each begun run, by its place."""
        for index in steps.keys() - self.finished:
            if index not in self.bars and len(self.bars) < MAX_BARS:
                self.bars[index] = self._bar(f"  {self.runs[index].label}", self.runs[index].n_timesteps)
            if index in self.bars:
                self.bars[index].update(steps[index] - self.bars[index].n)
        done = sum(run.n_timesteps if index in self.finished else steps.get(index, 0) for index, run in enumerate(self.runs))
        self.whole.set_description(f"{self.n_done}/{self.n_all} runs")
        self.whole.update(done - self.whole.n)

    def finish(self, index: int, outcome: dict[str, Any]) -> None:
        """Show a run's final return, or that it failed."""
        self.finished.add(index)
        if index in self.bars:
            self.bars.pop(index).close()
        what = "failed"
        if not outcome["error"]:
            self.n_done += 1
            last = fmean(value for step, _, _, value, _ in outcome["episodes"] if step == outcome["episodes"][-1][0])
            what = f"final return {last:.1f} in {outcome['wall_seconds']:.1f} s"
        tqdm.write(f"[{self.n_done}/{self.n_all}] {self.runs[index].label}: {what}")
