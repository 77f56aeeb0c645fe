"""
The algorithms as members of RL Baselines3 Zoo: their keys, configuration files and Optuna search spaces, and its experiment.

Importing this module imports rl_zoo3, which changes gymnasium's ``TimeLimit`` and registers environments; nothing else in
the package does so unasked. The command line is in ``cli.py``, what the Hugging Face hub needs in ``hub.py``.
"""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import rl_zoo3.exp_manager
import rl_zoo3.train
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_offpolicy_params, sample_sac_params
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.critics import CRITICS
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import BASELINES

ALGORITHMS: dict[str, type[ActorCritic]] = {
    "pathwise_ac": PathwiseAC,
    "likelihood_ratio_ac": LikelihoodRatioAC,
    "measure_valued_ac": MeasureValuedAC,
    "mixed_ac": MixedAC,
    "pathwise_tqc": PathwiseAC,
    "likelihood_ratio_tqc": LikelihoodRatioAC,
    "pathwise_crossq": PathwiseAC,
    "likelihood_ratio_crossq": LikelihoodRatioAC,
}
# The critic of a key that names one; the others have what ``policy_kwargs`` say, or SAC's
CRITIC_OF = {
    "pathwise_tqc": "quantile",
    "likelihood_ratio_tqc": "quantile",
    "pathwise_crossq": "batch_renorm",
    "likelihood_ratio_crossq": "batch_renorm",
}
# What ``-optimize`` tries, besides what it tries for SAC
ACTION_SAMPLES: dict[type[ActorCritic], list[int]] = {
    PathwiseAC: [1, 2, 4],
    LikelihoodRatioAC: [2, 4, 8, 16],
    MeasureValuedAC: [1, 2],
    MixedAC: [4, 8, 16],
}
MAX_POLICY_DELAY = 4
# CrossQ's and Adam's own
ADAM_BETAS_1 = [0.5, 0.9]


def register(replay_buffer: bool = True) -> None:
    """
    ``sb3_pathwise.zoo.register``, which says what it is for.

    :param replay_buffer: whether a loaded model gets a replay buffer of the size that it was trained with
    """
    for algo, algorithm in ALGORITHMS.items():
        ALGOS[algo] = algorithm if replay_buffer else without_replay_buffer(algorithm)
        HYPERPARAMS_SAMPLER[algo] = partial(sample_params, algo)
        HYPERPARAMS_CONVERTER[algo] = partial(convert_params, algo)
    rl_zoo3.train.ExperimentManager = ExperimentManager  # type: ignore[misc]


def config_path(algo: str) -> Path:
    """
    :param algo: one of our keys
    :return: the algorithm's configuration file
    :raises KeyError: if the key is not one of ours
    """
    if algo not in ALGORITHMS:
        raise KeyError(f"{algo} is not an algorithm of sb3_pathwise; they are {', '.join(ALGORITHMS)}")
    package = Path(__file__).resolve().parents[1]
    # A wheel has the folder inside the package, a checkout beside it
    folder = package if (package / "zoo_configs").is_dir() else package.parent
    return folder / "zoo_configs" / f"{algo}.yml"


def sample_params(
    algo: str, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw hyperparameters for a trial: SAC's search space, or TQC's, and the arguments that these do not have.

    :param algo: one of our keys
    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: whether HER is used, and its arguments, as rl_zoo3 passes them
    :return: arguments of the algorithm's constructor
    """
    critic = CRITIC_OF.get(algo)
    if critic == "quantile":
        additional_args = additional_args | {"sample_tqc": True}
    hyperparams = sample_sac_params(trial, n_actions, n_envs, additional_args)
    hyperparams["n_action_samples"] = trial.suggest_categorical("n_action_samples", ACTION_SAMPLES[ALGORITHMS[algo]])
    if "baseline" in ALGORITHMS[algo].route_arguments():
        hyperparams["baseline"] = trial.suggest_categorical("baseline", list(BASELINES))
    hyperparams["policy_delay"] = trial.suggest_int("policy_delay", 1, MAX_POLICY_DELAY)
    if critic == "batch_renorm":
        hyperparams["adam_beta_1"] = trial.suggest_categorical("adam_beta_1", ADAM_BETAS_1)
    return _convert_critic_params(algo, hyperparams)


def convert_params(algo: str, sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param algo: one of our keys
    :param sampled_params: parameters of a trial, by Optuna's names
    :return: arguments of the algorithm's constructor
    """
    return _convert_critic_params(algo, convert_offpolicy_params(sampled_params))


def _convert_critic_params(algo: str, hyperparams: dict[str, Any]) -> dict[str, Any]:
    policy_kwargs = hyperparams["policy_kwargs"]
    # For TQC itself they are the algorithm's arguments
    if "top_quantiles_to_drop_per_net" in hyperparams:
        policy_kwargs["top_quantiles_to_drop_per_net"] = hyperparams.pop("top_quantiles_to_drop_per_net")
    if "adam_beta_1" in hyperparams:
        policy_kwargs["optimizer_kwargs"] = {"betas": (hyperparams.pop("adam_beta_1"), 0.999)}
    if not CRITICS[CRITIC_OF.get(algo, "twin")].has_target:
        # SAC's space has it
        del hyperparams["tau"]
    return with_critic(algo, hyperparams)


def with_critic(algo: str, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Whatever else the policy's arguments are, from a file, the command line or a search: a key's critic is among them.

    :param algo: any key
    :param hyperparams: arguments of the algorithm's constructor
    :return: the same, with the key's critic
    :raises ValueError: if they name another critic
    """
    if algo not in CRITIC_OF:
        return hyperparams
    critic = CRITIC_OF[algo]
    policy_kwargs = {"critic": critic, **(hyperparams.get("policy_kwargs") or {})}
    if policy_kwargs["critic"] != critic:
        raise ValueError(
            f"policy_kwargs: {algo} has critic={critic!r}, not {policy_kwargs['critic']!r}. Leave critic out, or use "
            f"{algo.rpartition('_')[0]}_ac, which may have any."
        )
    return hyperparams | {"policy_kwargs": policy_kwargs}


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

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[Any, ...]:
        hyperparams, *others = super()._preprocess_hyperparams(hyperparams)
        return with_critic(self.algo, hyperparams), *others

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
        monitors = list(run.glob("*.monitor.csv"))
        folders = [Path(self.params_path), run]
        # Processes that tune one study share the folder: another may be removing it, or have done so
        with contextlib.suppress(OSError):
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
