"""
The algorithms as members of RL Baselines3 Zoo: their keys, configuration files and Optuna search spaces.

Importing this module imports rl_zoo3, which changes gymnasium's ``TimeLimit`` and registers environments; nothing else in
the package does so unasked. The command line is in ``cli.py``, grids of runs are in ``compare.py``.

What rl_zoo3 2.9 does not do for an algorithm from outside, and who does it:

- The ``--algo`` choices, and a search space and a converter for ``-optimize`` and ``--trial-id``: ``register``.
- A configuration file without ``--conf-file``: ``register``, through ``ExperimentManager``.
- ``--trial-id 0``, which it takes for no trial, and the empty folder that ``-optimize`` or a mistake leaves, which it takes
  for the latest run when it looks for a model: ``ExperimentManager``.
- A replay buffer of full size for a model that only plays, since it knows the off-policy algorithms by name:
  ``register(replay_buffer=False)``.
- ``push_to_hub`` and ``load_from_hub`` with the libraries that it can be installed with: ``mended_hub``.
- Scores of MuJoCo tasks and of Pendulum-v1 enter ``plot_from_file --rliable`` as they are, with a warning: nobody's
  reference scores are shipped. ``sb3-pathwise report`` makes its statistics per environment.
- ``-optimize`` replaces the ``policy_kwargs`` of the configuration file by those that it samples, as for SAC: a policy's
  distribution cannot be held fixed by the file.
- ``rl_zoo3.benchmark`` is not supported: it starts scripts that an installed rl_zoo3 does not have.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.repocard
import huggingface_sb3
import optuna
import rl_zoo3.exp_manager
import rl_zoo3.train
import yaml
from huggingface_hub.errors import HTTPError as HubError
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.repocard import metadata_save
from huggingface_sb3 import load_from_hub
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from requests.exceptions import HTTPError as MissingFile
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_offpolicy_params, sample_sac_params
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import BASELINES

ALGORITHMS: dict[str, type[ActorCritic]] = {
    "pathwise_ac": PathwiseAC,
    "likelihood_ratio_ac": LikelihoodRatioAC,
    "measure_valued_ac": MeasureValuedAC,
    "mixed_ac": MixedAC,
}
# What ``-optimize`` tries, besides what it tries for SAC
ACTION_SAMPLES: dict[str, list[int]] = {
    "pathwise_ac": [1, 2, 4],
    "likelihood_ratio_ac": [2, 4, 8, 16],
    "measure_valued_ac": [1, 2],
    "mixed_ac": [4, 8, 16],
}
MAX_POLICY_DELAY = 4


def register(replay_buffer: bool = True) -> None:
    """
    Make the four algorithms known to rl_zoo3, in this process: call it before rl_zoo3 parses its arguments.

    A script of your own is then as short as::

        from rl_zoo3.train import train
        from sb3_pathwise.zoo import register

        register()
        train()

    :param replay_buffer: whether a loaded model gets a replay buffer of the size that it was trained with; ``False``: one
        transition, enough for a model that only plays
    """
    for algo, algorithm in ALGORITHMS.items():
        ALGOS[algo] = algorithm if replay_buffer else without_replay_buffer(algorithm)
        HYPERPARAMS_SAMPLER[algo] = partial(sample_params, algo)
        HYPERPARAMS_CONVERTER[algo] = convert_offpolicy_params
    rl_zoo3.train.ExperimentManager = ExperimentManager  # type: ignore[misc]


def config_path(algo: str) -> Path:
    """
    :param algo: one of our keys
    :return: the algorithm's configuration file
    :raises KeyError: if the key is not one of ours
    """
    if algo not in ALGORITHMS:
        raise KeyError(f"{algo} is not an algorithm of sb3_pathwise; they are {', '.join(ALGORITHMS)}")
    package = Path(__file__).resolve().parent
    # A wheel has the folder inside the package, a checkout beside it
    folder = package if (package / "zoo_configs").is_dir() else package.parent
    return folder / "zoo_configs" / f"{algo}.yml"


def sample_params(
    algo: str, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw hyperparameters for a trial: SAC's search space, and the arguments that SAC does not have.

    :param algo: one of our keys
    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: whether HER is used, and its arguments, as rl_zoo3 passes them
    :return: arguments of the algorithm's constructor
    """
    hyperparams = sample_sac_params(trial, n_actions, n_envs, additional_args)
    hyperparams["n_action_samples"] = trial.suggest_categorical("n_action_samples", ACTION_SAMPLES[algo])
    if "baseline" in ALGORITHMS[algo].route_arguments():
        hyperparams["baseline"] = trial.suggest_categorical("baseline", list(BASELINES))
    hyperparams["policy_delay"] = trial.suggest_int("policy_delay", 1, MAX_POLICY_DELAY)
    return hyperparams


class TrialNumber(int):
    """The number of a trial: true even if it is the first one, 0, because rl_zoo3 asks for its truth."""

    def __bool__(self) -> bool:
        return True


class ExperimentManager(rl_zoo3.exp_manager.ExperimentManager):
    """
    rl_zoo3's experiment, which finds our configuration files and leaves no empty run behind.

    :param args: command-line arguments
    :param algo: algorithm's key
    :param positional: other arguments of rl_zoo3's class
    :param config: configuration file; ``None``: the one that comes with the algorithm
    :param trial_id: number of the trial whose hyperparameters to use
    :param kwargs: other keyword arguments of rl_zoo3's class
    """

    def __init__(
        self, args: Any, algo: str, *positional: Any, config: str | None = None, trial_id: int | None = None, **kwargs: Any
    ) -> None:
        if config is None and algo in ALGORITHMS:
            config = str(config_path(algo))
        if trial_id is not None:
            trial_id = TrialNumber(trial_id)
        super().__init__(args, algo, *positional, config=config, trial_id=trial_id, **kwargs)  # type: ignore[misc]

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        :return: model and hyperparameters, or ``None`` if they are to be searched for
        """
        try:
            return super().setup_experiment()
        except BaseException:
            self._remove_empty_run()
            raise

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: hyperparameters, before they are processed, twice
        :raises ValueError: if the configuration file is no YAML, or lacks the number of timesteps
        """
        try:
            hyperparams, saved_hyperparams = super().read_hyperparameters()
        except yaml.YAMLError as error:
            raise ValueError(f"{self.config} is not valid YAML: {error}") from error
        if "n_timesteps" not in hyperparams:
            raise ValueError(f"{self.config} has no n_timesteps for {self.env_name.gym_id}")
        return hyperparams, saved_hyperparams

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        """
        :param storage: journal file, or URL of a database
        :param study_name: name of the study
        :param trial_id: number of the trial; ``None``: the best one
        :param convert: whether to return arguments of the algorithm's constructor rather than Optuna's parameters
        :return: hyperparameters
        :raises ValueError: if there is no such study, or no such trial
        """
        try:
            return super().load_trial(storage, study_name, trial_id, convert)
        except (IndexError, KeyError) as error:
            raise ValueError(f"{storage} has no study {study_name} with a trial {trial_id}") from error

    def hyperparameters_optimization(self) -> None:
        """Search, then remove the folder that was made for a run that nobody asked for, and say how to use the result."""
        try:
            super().hyperparameters_optimization()
        finally:
            self._remove_empty_run()
        if self.storage and self.study_name:
            best = self._study().best_trial.number
            print(
                f"To train with the best trial, {best}: sb3-pathwise train --algo {self.algo} --env {self.env_name.gym_id} "
                f"--storage {self.storage} --study-name {self.study_name} --trial-id {best}"
            )

    def _study(self) -> optuna.Study:
        storage: Any = self.storage
        if storage.endswith(".log"):
            storage = JournalStorage(JournalFileBackend(storage))
        return optuna.load_study(study_name=self.study_name, storage=storage)

    def _remove_empty_run(self) -> None:
        run = Path(self.save_path)
        if not run.exists():
            return
        monitors = list(run.glob("*.monitor.csv"))
        folders = [Path(self.params_path), run]
        if set(run.iterdir()) <= {*monitors, *folders} and not any(Path(self.params_path).iterdir()):
            for monitor in monitors:
                monitor.unlink()
            for folder in folders:
                folder.rmdir()


def without_replay_buffer(algorithm: type[ActorCritic]) -> type[ActorCritic]:
    """
    :param algorithm: an algorithm
    :return: the same, except that ``load`` makes room for one transition only, as rl_zoo3 does for SAC by name
    """

    class Player(algorithm):  # type: ignore[misc, valid-type]
        @classmethod
        def load(cls, *args: Any, **kwargs: Any) -> ActorCritic:
            return super().load(*args, **kwargs | {"buffer_size": 1})

    # By its name a model knows whose route arguments a file holds; the hub shows it
    Player.__name__ = algorithm.__name__
    return Player


@contextmanager
def mended_hub() -> Iterator[None]:
    """
    Let rl_zoo3's ``push_to_hub`` and ``load_from_hub`` work with sb3-team-hf-integration 3.2 and huggingface_hub 2.

    They import a function that has been renamed and returns another type, and take a missing file for an error of requests,
    which huggingface_hub no longer uses. The model card names commands of rl_zoo3, which does not know our keys.
    To be entered before either is imported.

    :raises ConnectionError: if the hub refuses or cannot be reached
    """
    # Not huggingface_sb3.push_to_hub, which is the function of that name
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(hub, "generate_metadata"):
        hub.generate_metadata = lambda *args: hub._generate_metadata(*args).to_dict()
    huggingface_hub.repocard.metadata_save = save_card
    huggingface_sb3.load_from_hub = load_file
    try:
        yield
    except HubError as error:
        raise ConnectionError(f"the Hugging Face hub: {error}") from error


def save_card(local_path: str | Path, data: dict[str, Any]) -> None:
    """
    Save a model card whose commands work.

    :param local_path: the card, already written
    :param data: what to put at its head
    """
    path = Path(local_path)
    card = path.read_text(encoding="utf-8")
    if any(f"--algo {algo} " in card for algo in ALGORITHMS):
        card = card.replace("python -m rl_zoo3.", "python -m sb3_pathwise ")
        card = card.replace("pip install rl_zoo3", 'pip install "sb3-pathwise[zoo]"')
        path.write_text(card, encoding="utf-8")
    metadata_save(local_path, data)


def load_file(repo_id: str, filename: str) -> str:
    """
    :param repo_id: repository
    :param filename: file in it
    :return: path to the local copy
    :raises MissingFile: if there is no such file, which rl_zoo3 expects of a model without normalization
    """
    try:
        return load_from_hub(repo_id, filename)
    except RemoteEntryNotFoundError as error:
        raise MissingFile(str(error)) from error
