"""
The grid of a comparison: what the user asked for (``Comparison``), and the runs that follow from it (``Run``).

Everything that can be wrong with a request is found here, before any training. Executing runs is ``run.py``'s task.
"""

import ast
import contextlib
import difflib
import importlib
import io
import re
import shlex
from argparse import Namespace
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

# Fewer runs than this leave a bootstrap nothing to resample
MIN_SEEDS = 3

ALGOS_HELP = "zoo keys of SB3, sb3-contrib or sb3-pathwise, or variants such as likelihood_ratio_ac:n_action_samples=32"


# What compare itself decides, and the argument that decides it
OWN_KEYS = {
    "n_timesteps": "--timesteps",
    "seed": "--seeds and --first-seed",
    "device": "--device",
    "env": "--envs",
    "env_kwargs": "--env-kwargs",
}


class ComparisonError(Exception):
    """A request that cannot be carried out; its message is one line, meant for the user."""


def one_line(error: BaseException) -> str:
    """:return: The type and the message of an exception, on one line"""
    return " ".join(f"{type(error).__name__}: {error}".split())


def slug(text: str) -> str:
    """:return: A name for a file"""
    return re.sub(r"[^\w.=-]+", "_", text)


def parse_assignments(items: list[str], separator: str, argument: str) -> dict[str, Any]:
    """:return: Texts such as ``learning_rate:0.01`` as a dictionary; ``argument`` is what the user gave, for errors"""
    assignments: dict[str, Any] = {}
    for item in items:
        key, found, value = map(str.strip, item.partition(separator))
        if not found or not key.isidentifier():
            raise ComparisonError(f"{argument}: '{item}' is not of the form name{separator}value")
        if key in assignments:
            raise ComparisonError(f"{argument}: '{key}' is given twice")
        # What Python does not read as a value is left to rl_zoo3, which evaluates it where it expects code
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        assignments[key] = value
    return assignments


def parse_variant(variant: str) -> tuple[str, dict[str, Any]]:
    """:return: Key and hyperparameters of ``algo`` or ``algo:key=value,key=value``; commas in brackets belong to the value"""
    algo, _, text = variant.partition(":")
    items: list[str] = []
    for part in text.split(",") if text else ():
        # A part belongs to the one before it as long as brackets are open
        if items and sum(map(items[-1].count, "([{")) > sum(map(items[-1].count, ")]}")):
            items[-1] += f",{part}"
        else:
            items.append(part)
    return algo, parse_assignments(items, "=", f"algorithm '{variant}'")


def closest(name: str, names: Any) -> str:
    """:return: A suggestion to append to the error's text about an unknown name"""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def eval_steps(n_timesteps: int, eval_freq: int) -> list[int]:
    """:return: The steps at which a run is evaluated: before training, then every ``eval_freq``, and at the end"""
    return [*range(0, n_timesteps, eval_freq), n_timesteps]


@dataclass(frozen=True)
class Run:
    """One training run: everything that its returns depend on, and nothing else."""

    variant: str
    algo: str
    env: str
    seed: int
    n_timesteps: int
    eval_freq: int
    n_eval_episodes: int
    hyperparams: dict[str, Any]
    env_kwargs: dict[str, Any]
    eval_env_kwargs: dict[str, Any]
    gym_packages: list[str]
    device: str
    torch_threads: int

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.variant} on {self.env}, seed {self.seed}"


def _asked(flags: str, text: str, default: Any = MISSING, **how: Any) -> Any:
    # A field of the request, and the argument of the command that it comes from
    if default is MISSING:
        how |= {"nargs": "+", "required": True}
    elif default is list:
        how |= {"nargs": "+", "default": []}
    else:
        how |= {"type": int if default is None else type(default), "default": default}
    value: dict[str, Any] = {"default_factory": list} if default is list else {"default": default}
    return field(metadata={"flags": flags.split(), "how": how | {"help": text}}, **value)


@dataclass(frozen=True)
class Comparison:
    """What the user asked for, as the command line gives it."""

    algos: list[str] = _asked("--algos", ALGOS_HELP, metavar="ALGO")
    envs: list[str] = _asked("--envs", "environment ids", metavar="ENV")
    n_seeds: int = _asked("--seeds", "seeds per algorithm and environment (default: 5)", 5, metavar="N")
    first_seed: int = _asked("--first-seed", "the smallest seed (default: 0)", 0, metavar="SEED")
    n_timesteps: int | None = _asked("--timesteps", "steps of every run (default: the zoo's)", None, metavar="N")
    eval_freq: int | None = _asked("--eval-freq", "steps between evaluations (default: a twentieth)", None, metavar="N")
    n_eval_episodes: int = _asked("--eval-episodes", "episodes of an evaluation (default: 10)", 10, metavar="N")
    params: list[str] = _asked("-params --hyperparams", "overwrite hyperparameters of all", list, metavar="KEY:VALUE")
    conf_files: list[str] = _asked("--conf-file -conf", "YAML files in place of the zoo's", list, metavar="[ALGO=]FILE")
    env_kwargs: list[str] = _asked("--env-kwargs", "arguments of the environments", list, metavar="KEY:VALUE")
    eval_env_kwargs: list[str] = _asked("--eval-env-kwargs", "those of evaluations, if others", list, metavar="KEY:VALUE")
    gym_packages: list[str] = _asked("--gym-packages", "modules that register environments", list, metavar="MODULE")
    device: str = _asked("--device", "torch device (default: auto)", "auto")
    torch_threads: int = _asked("--torch-threads", "torch threads of each run (default: 1)", 1, metavar="N")

    @property
    def seeds(self) -> list[int]:
        """The seeds of every algorithm on every environment."""
        return list(range(self.first_seed, self.first_seed + self.n_seeds))

    def command(self, output: str) -> str:
        """:return: The command that asks for this comparison, and writes to a folder"""
        words = ["sb3-pathwise", "compare"]
        for asked in fields(self):
            value = getattr(self, asked.name)
            if value not in (None, []):
                words += [asked.metadata["flags"][0], *map(str, value if isinstance(value, list) else [value])]
        return shlex.join([*words, "--output", output])

    def check(self, for_report: bool) -> None:
        """
        Find what is wrong with the request itself, without importing anything; ``for_report``: intervals will be made.

        :raises ComparisonError: if something is
        """
        for name in ("algos", "envs"):
            values = getattr(self, name)
            if duplicate := [value for value in values if values.count(value) > 1]:
                raise ComparisonError(f"--{name}: {duplicate[0]} is named twice")
        for asked in fields(self):
            value, smallest = getattr(self, asked.name), 0 if asked.name == "first_seed" else 1
            if isinstance(value, int) and value < smallest:
                raise ComparisonError(f"{asked.metadata['flags'][0]} must be at least {smallest}, not {value}")
        if for_report and self.n_seeds < MIN_SEEDS:
            raise ComparisonError(
                f"--seeds {self.n_seeds} is too few for a confidence interval; "
                f"give at least {MIN_SEEDS} (10 are better), or --no-report to run without one"
            )

    def plan(self) -> list[Run]:
        """
        Read all hyperparameters and lay out the runs, first seed first, so that an early look is a fair one.

        :return: The runs
        :raises ComparisonError: if an algorithm, an environment, a hyperparameter or a file is unknown or unreadable
        """
        import gymnasium as gym

        algos = load_algorithms(self.gym_packages)
        env_kwargs = parse_assignments(self.env_kwargs, ":", "--env-kwargs")
        eval_env_kwargs = parse_assignments(self.eval_env_kwargs, ":", "--eval-env-kwargs")
        params = parse_assignments(self.params, ":", "-params")
        variants = {variant: parse_variant(variant) for variant in self.algos}
        for variant, (algo, overrides) in variants.items():
            if algo not in algos:
                raise ComparisonError(f"unknown algorithm '{algo}'{closest(algo, algos)} (known: {', '.join(sorted(algos))})")
            for argument, given in (("-params", params), (f"algorithm '{variant}'", overrides)):
                if own := [key for key in given if key in OWN_KEYS]:
                    raise ComparisonError(f"{argument}: '{own[0]}' is set by {OWN_KEYS[own[0]]}, for all runs alike")
        for env in self.envs:
            if env not in gym.registry:
                hint = closest(env, gym.registry)
                raise ComparisonError(f"unknown environment '{env}'{hint} (--gym-packages imports modules that register more)")

        confs = configuration_files(self.conf_files, {algo for algo, _ in variants.values()})
        hyperparams = {
            (variant, env): read_hyperparameters(algo, env, confs[algo]) | params | overrides
            for env in self.envs
            for variant, (algo, overrides) in variants.items()
        }
        lengths = {env: self._length(env, {variant: hyperparams[variant, env] for variant in variants}) for env in self.envs}
        env_kwargs_of = {cell: env_kwargs or values.pop("env_kwargs", {}) for cell, values in hyperparams.items()}
        alike = {name: getattr(self, name) for name in ("n_eval_episodes", "gym_packages", "device", "torch_threads")}
        return [
            Run(
                variant=variant,
                algo=algo,
                env=env,
                seed=seed,
                n_timesteps=lengths[env],
                eval_freq=self.eval_freq or max(1, lengths[env] // 20),
                hyperparams=hyperparams[variant, env],
                env_kwargs=env_kwargs_of[variant, env],
                eval_env_kwargs=eval_env_kwargs or env_kwargs_of[variant, env],
                **alike,
            )
            for seed in self.seeds
            for env in self.envs
            for variant, (algo, _) in variants.items()
        ]

    def _length(self, env: str, hyperparams: dict[str, dict[str, Any]]) -> int:
        """:return: The steps that every variant is trained for; what their configurations say of it is taken out"""
        from_zoo = {variant: values.pop("n_timesteps", None) for variant, values in hyperparams.items()}
        if self.n_timesteps is not None:
            return self.n_timesteps
        if None in from_zoo.values() or len(set(from_zoo.values())) > 1:
            found = ", ".join(f"{variant} {steps}" for variant, steps in from_zoo.items())
            raise ComparisonError(f"the configurations do not agree on n_timesteps for {env} ({found}); give --timesteps")
        return int(next(iter(from_zoo.values())))


def load_algorithms(gym_packages: list[str]) -> dict[str, Any]:
    """:return: Every algorithm that rl_zoo3 knows, ours among them; modules that register environments are imported"""
    import rl_zoo3.import_envs  # noqa: F401
    from rl_zoo3 import ALGOS

    from sb3_pathwise import zoo

    zoo.register()
    for package in gym_packages:
        try:
            importlib.import_module(package)
        except Exception as error:
            raise ComparisonError(f"--gym-packages: cannot import {package} ({one_line(error)})") from error
    return ALGOS


def configuration_files(conf_files: list[str], algos: set[str]) -> dict[str, str | None]:
    """:return: The YAML or Python file of each algorithm, given as ``file`` or ``algo=file``; ``None``: the zoo's or ours"""
    files: dict[str, str | None] = dict.fromkeys(algos)
    for item in conf_files:
        algo, equals, path = item.partition("=")
        # A path may have a "=" of its own
        if not equals or not algo.isidentifier() or Path(item).is_file():
            files = dict.fromkeys(files, item)
        elif algo in files:
            files[algo] = path
        else:
            raise ComparisonError(f"--conf-file {item}: {algo} is not among the compared algorithms")
    for file in files.values():
        if file is not None and file.endswith((".yml", ".yaml", ".py")) and not Path(file).is_file():
            raise ComparisonError(f"--conf-file: there is no file {file}")
    return files


def read_hyperparameters(algo: str, env: str, conf: str | None) -> dict[str, Any]:
    """:return: An environment's entry, or ``default``, in a file or in the zoo's, before any preprocessing"""
    from sb3_pathwise.zoo.registry import ExperimentManager

    with contextlib.redirect_stdout(io.StringIO()):
        manager = ExperimentManager(Namespace(), algo, env, log_folder="", verbose=0, config=conf)
        try:
            return dict(manager.read_hyperparameters()[0])
        except Exception as error:
            what = f"cannot read the hyperparameters of {algo} for {env} from {manager.config}"
            raise ComparisonError(f"{what} ({one_line(error)})") from error
