"""
One training run, from its hyperparameters to its evaluations. It may be executed in any process, on any machine.

Which runs there are, where they are executed and where their results are kept is not known here.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import io
import math
import os
import platform
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_pathwise.experiments.grid import Run, eval_steps, load_algorithms
from sb3_pathwise.zoo.registry import ExperimentManager

# Told the number of steps so far, answers whether to go on
Notify = Callable[[int], bool]

PACKAGES = ("sb3-pathwise", "stable_baselines3", "sb3_contrib", "rl_zoo3", "gymnasium", "mujoco", "box2d", "torch", "numpy")


class EvaluateAtSteps(BaseCallback):
    """
    Evaluate the deterministic policy at given steps, always on the same episodes.

    SB3's ``EvalCallback`` counts calls rather than steps, goes on drawing new episodes and keeps no times; here curves
    share their abscissae whatever the number of environments, and are compared on common episodes.

    :param run: What is trained
    :param eval_env: Environments apart from those that are trained on; each plays its share of the episodes
    :param notify: Told the steps so far
    """

    def __init__(self, run: Run, eval_env: VecEnv, notify: Notify) -> None:
        super().__init__()
        self.eval_env = eval_env
        self.notify = notify
        self.pending = eval_steps(run.n_timesteps, run.eval_freq)
        self.n_eval_episodes = run.n_eval_episodes
        # Apart from the training environments' seeds, which are small numbers from ``run.seed`` on
        self.eval_seed = int(np.random.SeedSequence([run.seed, 1]).generate_state(1)[0])
        self.episodes: list[tuple[int, float, int, float, int]] = []
        self.seconds_evaluating = 0.0

    def _on_training_start(self) -> None:
        self.start = time.perf_counter()
        self._evaluate_if_due()

    def _on_step(self) -> bool:
        self._evaluate_if_due()
        return self.notify(self.num_timesteps)

    def _on_training_end(self) -> None:
        # An algorithm whose last step came without a call
        self._evaluate_if_due()

    def _evaluate_if_due(self) -> None:
        while self.pending and self.model.num_timesteps >= self.pending[0]:
            self._evaluate(self.pending.pop(0))

    def _evaluate(self, step: int) -> None:
        begun = time.perf_counter()
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        self.eval_env.seed(self.eval_seed)
        returns, lengths = evaluate_policy(
            self.model, self.eval_env, self.n_eval_episodes, deterministic=True, return_episode_rewards=True
        )
        assert isinstance(returns, list) and isinstance(lengths, list)
        if not all(map(math.isfinite, returns)):
            raise FloatingPointError(f"the evaluation after {step} steps gave the returns {returns}")
        seconds = begun - self.start - self.seconds_evaluating
        for episode, (value, length) in enumerate(zip(returns, lengths, strict=True)):
            self.episodes.append((step, seconds, episode, float(value), int(length)))
        self.seconds_evaluating += time.perf_counter() - begun


class RunManager(ExperimentManager):
    """
    rl_zoo3's manager, given its hyperparameters by hand, which writes nothing and evaluates at given steps.

    :param run: What to train
    :param notify: Told the steps so far
    """

    def __init__(self, run: Run, notify: Notify) -> None:
        super().__init__(
            argparse.Namespace(),
            run.algo,
            run.env,
            log_folder=os.devnull,
            n_timesteps=run.n_timesteps,
            eval_freq=-1,
            env_kwargs=dict(run.env_kwargs),
            eval_env_kwargs=dict(run.eval_env_kwargs),
            seed=run.seed,
            # No record in the logger
            log_interval=-2,
            verbose=0,
            device=run.device,
        )
        self.run = run
        self.notify = notify
        self.evaluate: EvaluateAtSteps

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """:return: Those of the run, twice, since preprocessing changes the first in place"""
        hyperparams = {"n_timesteps": self.run.n_timesteps} | self.run.hyperparams
        return hyperparams, dict(hyperparams)

    def create_log_folder(self) -> None:
        """Nothing is written."""

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """Nothing is written."""

    def create_callbacks(self) -> None:
        """Append the evaluation to the YAML's own callbacks."""
        eval_env = self.create_envs(min(self.run.n_eval_episodes, 16), eval_env=True)
        self.evaluate = EvaluateAtSteps(self.run, eval_env, self.notify)
        self.callbacks.append(self.evaluate)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = True) -> VecEnv:
        """:return: The wrapped environments; no monitor file is written, whatever ``no_log`` says"""
        return super().create_envs(n_envs, eval_env=eval_env, no_log=True)


def build(run: Run, notify: Notify = lambda steps: True) -> tuple[RunManager, BaseAlgorithm]:
    """:return: The manager, whose environments are the caller's to close, and the untrained model"""
    manager = RunManager(run, notify)
    set_random_seed(run.seed)
    experiment = manager.setup_experiment()
    assert experiment is not None
    return manager, experiment[0]


def check(run: Run) -> None:
    """Build the model of a run and throw it away, so that what cannot work fails before anything is trained."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        manager, model = build(run)
        manager.evaluate.eval_env.close()
        assert model.env is not None
        model.env.close()


def execute(run: Run, notify: Notify) -> dict[str, Any]:
    """
    Train and evaluate, alone in this process: numpy's and torch's global generators belong to the process.

    :param run: What to train
    :param notify: Told the steps so far; the run stops early when it answers ``False``
    :return: ``episodes`` of evaluations (each its step, seconds of training so far, number, return and length), ``versions``,
        ``started``, ``wall_seconds`` and ``error`` (what was printed and a traceback, or ``None``); plain data, so that it can
        come back from another machine
    """
    log = io.StringIO()
    started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    outcome: dict[str, Any] = {"episodes": [], "error": None, "started": started}
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            notify(0)
            outcome["episodes"] = _train(run, notify)
    # A library's sys.exit() must not take the worker down
    except (Exception, SystemExit):
        outcome["error"] = log.getvalue() + traceback.format_exc()
    finally:
        # Replay buffers are large, and held by reference cycles
        gc.collect()
    return outcome | {"wall_seconds": time.perf_counter() - clock, "versions": versions()}


def _train(run: Run, notify: Notify) -> list[tuple[int, float, int, float, int]]:
    load_algorithms(run.gym_packages)
    th.set_num_threads(run.torch_threads)
    manager, model = build(run, notify)
    # Nobody reads the records, and SB3's own logger leaves a folder in the temporary directory for every run
    model.set_logger(Logger(folder=None, output_formats=[]))
    try:
        manager.learn(model)
    finally:
        manager.evaluate.eval_env.close()
    if manager.evaluate.pending:
        raise RuntimeError(f"training ended after {model.num_timesteps} of {run.n_timesteps} steps")
    return manager.evaluate.episodes


def versions() -> dict[str, str]:
    """:return: What returns may depend on: the machine, and the versions of packages"""
    found = {"platform": f"{platform.system()} {platform.machine()}", "processors": str(os.cpu_count())}
    found["python"] = platform.python_version()
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
