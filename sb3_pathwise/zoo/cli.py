"""
The command ``sb3-pathwise``, which is ``python -m sb3_pathwise``: rl_zoo3's commands with our algorithms, and our own.

Only the way to a command is here: its name, its extra, the process that it runs in, and one line for a user's mistake.
What rl_zoo3 must be taught is in ``registry.py``; our own commands are modules of ``experiments`` with a ``main``.
"""

import argparse
import contextlib
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_pathwise import __version__


class Command(NamedTuple):
    """A command of ``sb3-pathwise``: what it does, in one line, and the extras of the package that it needs."""

    summary: str
    extras: str


COMMANDS = {
    "train": Command("train a model, or tune its hyperparameters with -optimize", "zoo"),
    "enjoy": Command("let a trained model play, and print its returns", "zoo"),
    "plot_train": Command("plot the returns during training", "zoo,plots"),
    "all_plots": Command("gather evaluations of several runs: learning curves and a table", "zoo,plots"),
    "plot_from_file": Command("plot what all_plots has gathered, with rliable's intervals if asked", "zoo,plots"),
    "record_video": Command("record a trained model as a video", "zoo,video"),
    "record_training": Command("record all checkpoints of a run as one video", "zoo,video"),
    "push_to_hub": Command("upload a trained model to the Hugging Face hub", "zoo,video"),
    "load_from_hub": Command("download a trained model from the Hugging Face hub", "zoo"),
    "compare": Command("run a grid of algorithms, environments and seeds, and report", "compare"),
    "report": Command("write the report of a comparison again", "compare"),
    "bench": Command("measure speed against other implementations", "compare"),
}
OWN_COMMANDS = ("compare", "report", "bench")
PLOTS = ("plot_train", "all_plots", "plot_from_file")
# Commands of a trained model, which need no replay buffer
PLAYERS = ("enjoy", "record_video", "push_to_hub")
# What the extras bring
EXTRA_MODULES = {
    *("rl_zoo3", "huggingface_hub", "huggingface_sb3", "optuna", "requests"),
    *("matplotlib", "seaborn", "pandas", "scipy", "rliable"),
    *("imageio_ffmpeg", "moviepy", "pygame"),
    *("rich", "tqdm"),
    *("dask", "distributed", "jinja2", "statsmodels"),
}
# What a wrong argument, file or environment ends in, as opposed to an error in the program
MISTAKES = (AssertionError, ImportError, OSError, TypeError, ValueError, gym.error.Error)
EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: the arguments, without the program's name; ``None``: those of the process
    :return: exit code: 0, 1 if the command failed, 2 if there is no such command, 130 if it was interrupted
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else EXIT_USAGE
    if argv[0] == "--version":
        print(f"sb3-pathwise {__version__}")
        return 0
    name, *arguments = argv
    if name not in COMMANDS:
        return fail("", f"there is no command '{name}'; the commands are {', '.join(COMMANDS)}", EXIT_USAGE)
    try:
        if name in OWN_COMMANDS:
            return importlib.import_module(f"sb3_pathwise.experiments.{name}").main(arguments)
        run_zoo(name, arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_MODULES:
            raise
        extras = COMMANDS[name].extras
        return fail(name, f"{module} is not installed; this adds what is missing: pip install 'sb3-pathwise[{extras}]'")
    except MISTAKES as error:
        # `python -X dev` shows where it comes from. While a model learns, it is no mistake of the user's.
        if sys.flags.dev_mode or is_learning(error):
            raise
        return fail(name, " ".join(str(error).split()) or type(error).__name__)
    return 0


def usage() -> str:
    """:return: the help text: one line for each command"""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sb3-pathwise COMMAND [ARGUMENTS]",
            "",
            "Soft actor-critics that differ in the route to the actor's gradient:",
            "--algo pathwise_ac, likelihood_ratio_ac, measure_valued_ac or mixed_ac;",
            "with TQC's or CrossQ's critic pathwise_tqc, likelihood_ratio_tqc, pathwise_crossq or likelihood_ratio_crossq;",
            "or any of rl_zoo3's.",
            "",
            *lines,
            "",
            "`sb3-pathwise COMMAND --help` lists the arguments of a command; except for "
            f"{', '.join(OWN_COMMANDS)}, they are rl_zoo3's.",
        ]
    )


def fail(name: str, message: str, code: int = EXIT_ERROR) -> int:
    """
    :param name: the command, if there is one
    :param message: what is wrong, one line
    :param code: exit code
    :return: the exit code
    """
    print(f"{'sb3-pathwise ' + name if name else 'sb3-pathwise'}: error: {message}", file=sys.stderr)
    return code


def is_learning(error: BaseException) -> bool:
    """
    :param error: an exception
    :return: whether it was raised while a model learned, rather than before
    """
    return any(frame.name == "learn" for frame in traceback.extract_tb(error.__traceback__))


def run_zoo(name: str, arguments: list[str]) -> None:
    """
    Run a command of rl_zoo3 in this process, where our algorithms are registered.

    :param name: the command
    :param arguments: its arguments
    """
    from sb3_pathwise.zoo import registry

    registry.register(replay_buffer=name not in PLAYERS)
    arguments = with_default_folder(name, arguments)
    with replaced(sys, "argv", [f"sb3-pathwise {name}", *arguments]), values_that_are_no_python_named():
        if name == "train":
            from rl_zoo3.train import train

            train()
        elif name in PLOTS:
            plot = getattr(importlib.import_module("rl_zoo3.plots"), name)
            with figures_saved_without_display(name), too_few_runs_named():
                plot()
        else:
            from sb3_pathwise.zoo.hub import mended_hub

            # Scripts without a function, except for enjoy, which is one as well
            with mended_hub(), video_tools() if name == "record_training" else contextlib.nullcontext():
                runpy.run_module(f"rl_zoo3.{name}", run_name="__main__")


def with_default_folder(name: str, arguments: list[str]) -> list[str]:
    """
    Look for our models where ``train`` writes them, as nobody publishes them in rl_zoo3's ``rl-trained-agents``.

    :param name: the command
    :param arguments: its arguments
    :return: the arguments, with ``-f logs`` where it is needed
    """
    from sb3_pathwise.zoo.registry import ALGORITHMS

    if name not in ("enjoy", "record_video", "record_training"):
        return arguments
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("-f", "--folder")
    known, _ = parser.parse_known_args(arguments)
    return [*arguments, "-f", "logs"] if known.algo in ALGORITHMS and known.folder is None else arguments


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """
    :param owner: an object
    :param name: an attribute of it
    :param value: what the attribute is, meanwhile
    """
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def values_that_are_no_python_named() -> Iterator[None]:
    """
    Say which value rl_zoo3 cannot evaluate, and how to write it.

    :raises ValueError: if there is one
    """
    from rl_zoo3.utils import StoreDict

    store: Any = StoreDict.__call__

    def check_and_store(self: Any, parser: Any, namespace: Any, values: list[str], option_string: str | None = None) -> None:
        for item in values:
            try:
                store(self, parser, argparse.Namespace(), [item], option_string)
            except Exception as error:
                key, colon, value = item.partition(":")
                reason = "is not of the form name:value" if not colon else f"has no value that Python can read ({error})"
                quoted = f"; a text needs quotes: {option_string} \"{key}:'{value}'\"" if colon else ""
                raise ValueError(f"{option_string}: {item} {reason}{quoted}") from error
        store(self, parser, namespace, values, option_string)

    with replaced(StoreDict, "__call__", check_and_store):
        yield


@contextlib.contextmanager
def figures_saved_without_display(name: str) -> Iterator[None]:
    """
    Save the figures that a command shows as PNG files where there is no display to show them on.

    :param name: the command, which begins the files' names
    """
    from matplotlib import pyplot as plt

    def save() -> None:
        for number in plt.get_fignums():
            figure = plt.figure(number)
            label = str(figure.get_label() or number).lower().replace(" ", "_").replace("/", "-")
            path = Path(f"{name}_{label}.png")
            figure.savefig(path, bbox_inches="tight")
            print(f"Saving to {path}")
        # As if somebody had closed the windows
        plt.close("all")

    # Matplotlib's choice when it finds no display
    with replaced(plt, "show", save) if plt.get_backend().lower() == "agg" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def too_few_runs_named() -> Iterator[None]:
    """
    Say what rl_zoo3 lacks when it says that a sequence is empty.

    :raises ValueError: if an algorithm has one run only
    """
    try:
        yield
    except ValueError as error:
        if "empty sequence" not in str(error):
            raise
        raise ValueError("each algorithm needs two runs at least, with evaluations of two episodes at least") from error


@contextlib.contextmanager
def video_tools() -> Iterator[None]:
    """
    Let rl_zoo3's ``record_training`` find ffmpeg, and start our ``record_video``: its own would not know our algorithms.

    :raises ImportError: if there is no ffmpeg
    """
    call = subprocess.call

    def call_with_algorithms(command: list[str], *args: Any, **kwargs: Any) -> int:
        if command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "sb3_pathwise", "record_video", *command[3:]]
        return call(command, *args, **kwargs)

    with tempfile.TemporaryDirectory() as folder, replaced(subprocess, "call", call_with_algorithms):
        if shutil.which("ffmpeg") is None:
            from imageio_ffmpeg import get_ffmpeg_exe

            Path(folder, "ffmpeg").symlink_to(get_ffmpeg_exe())
            os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), folder])
        yield


if __name__ == "__main__":
    sys.exit(main())
