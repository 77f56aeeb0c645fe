"""
The grid of a comparison: what the user asked for (``Comparison``), and the runs that follow from it (``Run``).

Everything that can be wrong with a request is found here, before any training. Executing runs is ``run.py``'s task.
"""

import ast
import contextlib
import difflib
import hashlib
import importlib
import inspect
import io
import re
import shlex
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Fewer runs than this leave a bootstrap nothing to resample
MIN_SEEDS = 3

# What rl_zoo3 takes out of a YAML entry before the rest goes to the algorithm's constructor
ZOO_KEYS = frozenset(
    "n_envs normalize env_wrapper vec_env_wrapper frame_stack callback monitor_kwargs noise_type noise_std".split()
)
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
    """
    :param error: Any exception
    :return: Its type and message on one line
    """
    return " ".join(f"{type(error).__name__}: {error}".split())


def slug(text: str) -> str:
    """
    :param text: Any name
    :return: A name for a file or folder; different texts give different names
    """
    safe = re.sub(r"[^\w.=-]+", "_", text)[:80]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse_value(text: str) -> Any:
    """
    Read a value as Python does, or else leave it as the string it is, which rl_zoo3 evaluates where it expects code.

    :param text: Such as ``0.01``, ``[64, 64]``, ``lin_7e-4`` or ``dict(net_arch=[16])``
    :return: The value
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_assignments(items: list[str], separator: str, argument: str) -> dict[str, Any]:
    """
    :param items: Such as ``["learning_rate:0.01"]``
    :param separator: What stands between key and value
    :param argument: What the user gave, for the error's text
    :return: The same as a dictionary
    :raises ComparisonError: if an item has no separator or no name before it, or names a key twice
    """
    assignments: dict[str, Any] = {}
    for item in items:
        key, found, value = item.partition(separator)
        if not found or not key.strip().isidentifier():
            raise ComparisonError(f"{argument}: '{item}' is not of the form name{separator}value")
        if key.strip() in assignments:
            raise ComparisonError(f"{argument}: '{key.strip()}' is given twice")
        assignments[key.strip()] = parse_value(value.strip())
    return assignments


def parse_variant(variant: str) -> tuple[str, dict[str, Any]]:
    """
    :param variant: ``algo`` or ``algo:key=value,key=value``; commas inside brackets belong to the value
    :return: The algorithm's zoo key and the hyperparameters that differ
    :raises ComparisonError: if the text has another form
    """
    algo, colon, text = variant.partition(":")
    if not colon:
        return algo, {}
    items, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return algo, parse_assignments(items, "=", f"algorithm '{variant}'")


def closest(name: str, names: Any) -> str:
    """
    :param name: An unknown name
    :param names: The known ones
    :return: A suggestion to append to an error's text
    """
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


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
    def folder(self) -> str:
        """Where its results lie inside the comparison's ``runs`` folder."""
        return f"{slug(self.variant)}/{slug(self.env)}/seed_{self.seed}"

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.variant} on {self.env}, seed {self.seed}"

    @property
    def eval_steps(self) -> list[int]:
        """The steps after which the policy is evaluated: before training, every ``eval_freq`` steps, and at the end."""
        return [*range(0, self.n_timesteps, self.eval_freq), self.n_timesteps]


@dataclass(frozen=True)
class Comparison:
    """
    What the user asked for, as the command line gives it.

    :param algos: Zoo keys or variants (``parse_variant``)
    :param envs: Environment ids
    :param n_seeds: Seeds per algorithm and environment
    :param first_seed: The smallest of them
    :param n_timesteps: Steps of every run; ``None``: what the zoo's YAML says, if it says the same for every algorithm
    :param eval_freq: Steps between evaluations; ``None``: a twentieth of the run
    :param n_eval_episodes: Episodes of every evaluation
    :param params: Hyperparameters of every algorithm that overwrite the YAML's, as ``key:value``
    :param conf_files: YAML files in place of the zoo's, as ``file`` or ``algo=file``
    :param env_kwargs: Arguments of the environments, as ``key:value``
    :param eval_env_kwargs: Arguments of the evaluation environments, if they differ
    :param gym_packages: Modules that register environments when they are imported
    :param device: torch device
    :param torch_threads: torch threads of every run
    """

    algos: list[str]
    envs: list[str]
    n_seeds: int
    first_seed: int = 0
    n_timesteps: int | None = None
    eval_freq: int | None = None
    n_eval_episodes: int = 10
    params: list[str] = field(default_factory=list)
    conf_files: list[str] = field(default_factory=list)
    env_kwargs: list[str] = field(default_factory=list)
    eval_env_kwargs: list[str] = field(default_factory=list)
    gym_packages: list[str] = field(default_factory=list)
    device: str = "auto"
    torch_threads: int = 1

    @property
    def seeds(self) -> list[int]:
        """The seeds of every algorithm on every environment."""
        return list(range(self.first_seed, self.first_seed + self.n_seeds))

    def command(self, output: str) -> str:
        """
        :param output: The folder to write to
        :return: The command that asks for this comparison
        """
        flags: dict[str, list[Any]] = {
            "--algos": self.algos,
            "--envs": self.envs,
            "--seeds": [self.n_seeds],
            "--first-seed": [self.first_seed] if self.first_seed else [],
            "--timesteps": [] if self.n_timesteps is None else [self.n_timesteps],
            "--eval-freq": [] if self.eval_freq is None else [self.eval_freq],
            "--eval-episodes": [self.n_eval_episodes],
            "-params": self.params,
            "--conf-file": self.conf_files,
            "--env-kwargs": self.env_kwargs,
            "--eval-env-kwargs": self.eval_env_kwargs,
            "--gym-packages": self.gym_packages,
            "--device": [self.device],
            "--torch-threads": [self.torch_threads],
            "--output": [output],
        }
        words = ["sb3-pathwise", "compare"]
        for flag, values in flags.items():
            words += [flag, *map(str, values)] if values else []
        return shlex.join(words)

    def check(self, for_report: bool) -> None:
        """
        Find what is wrong with the request itself, without importing anything.

        :param for_report: Whether a report, and so intervals, will be made of the results
        :raises ComparisonError: if something is
        """
        for name in ("algos", "envs"):
            values = getattr(self, name)
            if duplicate := [value for value in values if values.count(value) > 1]:
                raise ComparisonError(f"--{name}: {duplicate[0]} is named twice")
        for name, smallest in {
            "n_seeds": 1,
            "first_seed": 0,
            "n_timesteps": 1,
            "eval_freq": 1,
            "n_eval_episodes": 1,
            "torch_threads": 1,
        }.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                flag = {"n_seeds": "seeds", "n_timesteps": "timesteps", "n_eval_episodes": "eval-episodes"}.get(name, name)
                raise ComparisonError(f"--{flag.replace('_', '-')} must be at least {smallest}, not {value}")
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
        algos = load_algorithms(self.gym_packages)
        env_kwargs = parse_assignments(self.env_kwargs, ":", "--env-kwargs")
        eval_env_kwargs = parse_assignments(self.eval_env_kwargs, ":", "--eval-env-kwargs")
        params = parse_assignments(self.params, ":", "-params")
        variants = {variant: parse_variant(variant) for variant in self.algos}
        for variant, (algo, overrides) in variants.items():
            if algo not in algos:
                raise ComparisonError(f"unknown algorithm '{algo}'{closest(algo, algos)} (known: {', '.join(sorted(algos))})")
            check_overrides(algos[algo], algo, params, "-params")
            check_overrides(algos[algo], algo, overrides, f"algorithm '{variant}'")
        for env in self.envs:
            check_environment(env)

        confs = configuration_files(self.conf_files, {algo for algo, _ in variants.values()})
        hyperparams: dict[tuple[str, str], dict[str, Any]] = {}
        for env in self.envs:
            for variant, (algo, overrides) in variants.items():
                hyperparams[variant, env] = read_hyperparameters(algo, env, confs[algo]) | params | overrides
        lengths = {env: self._length(env, {variant: hyperparams[variant, env] for variant in variants}) for env in self.envs}
        env_kwargs_of = {cell: env_kwargs or values.pop("env_kwargs", {}) for cell, values in hyperparams.items()}
        return [
            Run(
                variant=variant,
                algo=algo,
                env=env,
                seed=seed,
                n_timesteps=lengths[env],
                eval_freq=self.eval_freq or max(1, lengths[env] // 20),
                n_eval_episodes=self.n_eval_episodes,
                hyperparams=hyperparams[variant, env],
                env_kwargs=env_kwargs_of[variant, env],
                eval_env_kwargs=eval_env_kwargs or env_kwargs_of[variant, env],
                gym_packages=self.gym_packages,
                device=self.device,
                torch_threads=self.torch_threads,
            )
            for seed in self.seeds
            for env in self.envs
            for variant, (algo, _) in variants.items()
        ]

    def _length(self, env: str, hyperparams: dict[str, dict[str, Any]]) -> int:
        """
        :param env: Environment id
        :param hyperparams: Of every variant, whose ``n_timesteps`` is taken out
        :return: The steps that every variant is trained for on this environment
        """
        from_zoo = {variant: values.pop("n_timesteps", None) for variant, values in hyperparams.items()}
        if self.n_timesteps is not None:
            return self.n_timesteps
        if None in from_zoo.values() or len(set(from_zoo.values())) > 1:
            found = ", ".join(f"{variant} {steps}" for variant, steps in from_zoo.items())
            raise ComparisonError(f"the configurations do not agree on n_timesteps for {env} ({found}); give --timesteps")
        return int(next(iter(from_zoo.values())))

    def as_dict(self) -> dict[str, Any]:
        """The request as plain data; ``Comparison(**data)`` reads it back."""
        return asdict(self)


def load_algorithms(gym_packages: list[str]) -> dict[str, Any]:
    """
    :param gym_packages: Modules that register environments when they are imported
    :return: Every algorithm that rl_zoo3 knows, ours among them
    :raises ComparisonError: if a module cannot be imported
    """
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


def check_environment(env: str) -> None:
    """
    :param env: Environment id
    :raises ComparisonError: if it is not registered
    """
    import gymnasium as gym

    if env not in gym.registry:
        hint = closest(env, gym.registry)
        raise ComparisonError(f"unknown environment '{env}'{hint} (--gym-packages imports modules that register more)")


def check_overrides(algo_class: type, algo: str, overrides: dict[str, Any], argument: str) -> None:
    """
    :param algo_class: The algorithm
    :param algo: Its zoo key
    :param overrides: Hyperparameters the user gave
    :param argument: Where the user gave them, for the error's text
    :raises ComparisonError: if one is unknown to the algorithm and to the zoo, or is compare's own
    """
    parameters = inspect.signature(algo_class).parameters
    known = (ZOO_KEYS | parameters.keys()) - OWN_KEYS.keys() - {"verbose", "tensorboard_log", "_init_setup_model"}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in overrides:
        if key in OWN_KEYS:
            raise ComparisonError(f"{argument}: '{key}' is set by {OWN_KEYS[key]}, for all runs alike")
        if key not in known and not open_ended:
            raise ComparisonError(f"{argument}: {algo} has no argument '{key}'{closest(key, known)}")


def configuration_files(conf_files: list[str], algos: set[str]) -> dict[str, str | None]:
    """
    :param conf_files: ``file`` for all algorithms, or ``algo=file``
    :param algos: Zoo keys in use
    :return: The file or module that the hyperparameters of each are read from; ``None``: the zoo's or ours
    :raises ComparisonError: if an algorithm is not in use, or a file does not exist
    """
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
    """
    :param algo: Zoo key
    :param env: Environment id
    :param conf: YAML file, Python file or module, as rl_zoo3 reads them; ``None``: the zoo's or ours
    :return: The entry of the environment, or ``default``, before any preprocessing
    :raises ComparisonError: if it cannot be read
    """
    from sb3_pathwise.zoo.registry import ExperimentManager

    with contextlib.redirect_stdout(io.StringIO()):
        manager = ExperimentManager(Namespace(), algo, env, log_folder="", verbose=0, config=conf)
        try:
            hyperparams, _ = manager.read_hyperparameters()
        except Exception as error:
            raise ComparisonError(
                f"cannot read the hyperparameters of {algo} for {env} from {manager.config} ({one_line(error)})"
            ) from error
    return dict(hyperparams)
