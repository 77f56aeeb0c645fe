"""
When a checkpoint is taken, and how a training goes on from it. What is in a checkpoint is in ``state.py``.
"""

import os
import platform
import warnings
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_pathwise.engines import choose_engine
from sb3_pathwise.engines.kernels.linear import products
from sb3_pathwise.guards.finite import CHECKPOINTS, NonFiniteError, first_not_finite
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.persistence import storage
from sb3_pathwise.persistence.environments import check_restorable, knows_whole_state, make_restorable
from sb3_pathwise.persistence.state import Baseline, fill_replay_buffer, get_state, load_state, set_state, share_spaces


class _Resumed:
    """
    What is left to be put back when learn() starts.

    :param folder: Folder of checkpoints
    :param sequence: Number of the checkpoint
    :param state: State of the training
    :param dones: The replay buffer's: learn() may change them
    """

    def __init__(self, folder: Path, sequence: int, state: dict[str, Any], dones: np.ndarray) -> None:
        self.folder = folder
        self.sequence = sequence
        self.state = state
        self.dones = dones


_RESUMED: "WeakKeyDictionary[OffPolicyAlgorithm, _Resumed]" = WeakKeyDictionary()


class ExactCheckpointCallback(BaseCallback):
    """
    Saves, every so often, all that training depends on. After ``model = resume(save_path, env)``, ``model.learn()`` with the
    same arguments, this callback among them, ends with the parameters that it would have ended with, to the last bit (on the
    CPU, with the same software and a deterministic environment). Training without the callback ends with them as well.

    A checkpoint is taken at the start of a rollout, at which the episodes of all environments have just ended, or, if the
    environments offer ``get_exact_state()`` and ``set_exact_state(state)``, at any. The same two methods serve a callback
    whose attributes are not all there is to save.

    A checkpoint is whole or not there: it can be killed while it writes. If it cannot write, for instance because the disk is
    full, it warns, and tries again after ``every`` steps.

    :param save_path: Folder for the checkpoints, of this training only
    :param every: Steps, counted over all environments, after which to take the next
    :param keep: Checkpoints to keep, the older ones being removed
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when a checkpoint is saved
    :raises NonFiniteError: in the place of saving a parameter that is not finite
    :raises NotRestorableError: at the first checkpoint, if an environment does not come back to where it is
    :raises ValueError: if an argument is out of range; when learn() starts: if it was put into another callback, the folder
        holds another training, or the environment cannot be restored
    """

    def __init__(self, save_path: str | os.PathLike[str], every: int, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, value in (("every", every), ("keep", keep)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
        self.save_path = Path(save_path)
        self.every = every
        self.keep = keep
        self._sequence = 0
        self._last_save: int | None = None
        self._between_episodes = False
        self._checked = False
        self._warned = False
        self._stop_requested = False
        self._stop = False
        self._baseline: Baseline | None = None

    def request_stop(self) -> None:
        """Take a checkpoint as soon as possible, then let learn() return. May be called by a signal handler."""
        self._stop_requested = True

    def get_exact_state(self) -> dict[str, Any]:
        """
        :return: what the callback itself has to be given back
        """
        return {name: getattr(self, name) for name in ("n_calls", "_sequence", "_last_save")}

    def set_exact_state(self, state: dict[str, Any]) -> None:
        """
        :param state: What ``get_exact_state`` returned
        """
        vars(self).update(state)

    def _init_callback(self) -> None:
        if self.parent is not None:
            raise ValueError("ExactCheckpointCallback must be given to learn() itself, alone or in a list, not to a callback.")
        if not isinstance(self.model, OffPolicyAlgorithm):
            raise ValueError(f"ExactCheckpointCallback is for off-policy algorithms, not {type(self.model).__name__}.")
        make_restorable(self.training_env)
        self._stop_requested = self._stop = False
        resumed = _RESUMED.get(self.model)
        if resumed is not None:
            self._sequence = resumed.sequence
        is_ours = self._last_save is not None or (resumed is not None and resumed.folder == self.save_path.resolve())
        if not is_ours and storage.checkpoints(self.save_path):
            raise ValueError(
                f"save_path: {self.save_path} holds checkpoints of another training. Go on with it by resume(save_path, env), "
                "or choose another folder."
            )
        storage.remove_unfinished(self.save_path)

    def _on_training_start(self) -> None:
        if self._last_save is None or self._last_save > self.model.num_timesteps:
            self._last_save = self.model.num_timesteps
        self._baseline = None

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, OffPolicyAlgorithm)
        callback = self.locals["callback"]
        if self._baseline is None:
            self._baseline = Baseline(callback)
        resumed = _RESUMED.pop(self.model, None)
        if resumed is not None:
            assert self.model.replay_buffer is not None
            del self.model.replay_buffer.sample
            self.model.replay_buffer.dones[: len(resumed.dones)] = resumed.dones
            set_state(self.model, resumed.state, callback)
            return
        assert self._last_save is not None
        steps = self.model.num_timesteps - self._last_save
        if steps == 0:
            self._stop = self._stop_requested
        elif steps >= self.every or self._stop_requested:
            if self._between_episodes or knows_whole_state(self.training_env):
                self._save(callback)
                self._stop = self._stop_requested
            elif steps >= 3 * self.every and not self._warned:
                self._warned = True
                warnings.warn(
                    f"No checkpoint for {steps} steps, though one is due every {self.every}: the episodes of all environments "
                    "have not ended together at the end of a rollout. Use one environment or episodes of equal length, a "
                    "train_freq that divides them, or environments with get_exact_state() and set_exact_state(state)."
                )

    def _on_step(self) -> bool:
        self._between_episodes = bool(np.all(self.locals["dones"]))
        return not self._stop

    def _save(self, callback: BaseCallback) -> None:
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm) and self._baseline is not None
        if not self._checked and not knows_whole_state(self.training_env):
            check_restorable(self.training_env)
        self._checked = True
        name = first_not_finite(model.policy.state_dict().items())
        if name is not None:
            raise NonFiniteError("parameter", model, f" ({name})", spared="It is not saved.")
        self._sequence += 1
        self._last_save = model.num_timesteps
        try:
            writers = get_state(model, callback, self._baseline)
            checkpoint = storage.write(self.save_path, self._sequence, model.num_timesteps, writers, _system(model))
            storage.prune(self.save_path, self.keep)
        except OSError as error:
            warnings.warn(
                f"No checkpoint at step {model.num_timesteps}: {error}. Training goes on, earlier checkpoints are good, "
                f"the next attempt is due in {self.every} steps."
            )
        else:
            CHECKPOINTS[model] = model.num_timesteps
            if self.verbose >= 2:
                print(f"Saving exact checkpoint to {checkpoint}")


def resume(save_path: str | os.PathLike[str], env: GymEnv | str, device: th.device | str = "auto") -> OffPolicyAlgorithm:
    """
    The model of the latest checkpoint that is as it was written. Call its ``learn()`` with the arguments that the training
    was started with, callbacks included, to go on with it. (Or, to stay in the same tensorboard folder, with
    ``total_timesteps=total_timesteps - model.num_timesteps, reset_num_timesteps=False``.)

    It unpickles the checkpoint: only resume what you have saved yourself.

    :param save_path: The folder given to ``ExactCheckpointCallback``
    :param env: The environment, made and wrapped as it was for the training
    :param device: Device on which the code should run
    :return: The model
    :raises FileNotFoundError: if there is no checkpoint yet: start the training
    :raises ValueError: if none of the checkpoints is as it was written, or the environment is not as it was
    """
    folder = Path(save_path).resolve()
    checkpoint, system = _latest_valid(folder)
    state = load_state(checkpoint)
    env = maybe_make_env(env, verbose=0)
    model: OffPolicyAlgorithm = state["class"].load(checkpoint / "model.zip", env=env, device=device, force_reset=False)
    assert model.env is not None and model.replay_buffer is not None
    n_envs = state["replay_buffer"]["rest"]["n_envs"]
    if model.env.num_envs != n_envs:
        raise ValueError(f"env: the checkpoint needs {n_envs} environments, got {model.env.num_envs}.")
    make_restorable(model.env)
    share_spaces(model, state)
    fill_replay_buffer(model, state, checkpoint)
    _warn_of_other_system(system, _system(model))
    # Until learn() has put back the rest
    model.replay_buffer.sample = _forbid_sampling  # type: ignore[method-assign]
    dones = model.replay_buffer.dones[: model.replay_buffer.size()].copy()
    CHECKPOINTS[model] = model.num_timesteps
    _RESUMED[model] = _Resumed(folder, storage.sequence_of(checkpoint), state, dones)
    return model


def _latest_valid(folder: Path) -> tuple[Path, dict[str, Any]]:
    candidates = storage.checkpoints(folder)
    if not candidates:
        raise FileNotFoundError(f"save_path: there is no checkpoint in {folder}.")
    problems = []
    for checkpoint in candidates:
        try:
            system = storage.verify(checkpoint)
        except storage.CorruptCheckpointError as error:
            warnings.warn(f"A checkpoint is damaged, the one before it is taken: {error}")
            problems.append(str(error))
        else:
            return checkpoint, system
    raise ValueError(f"save_path: every checkpoint in {folder} is damaged: {'; '.join(problems)}")


def _forbid_sampling(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError(
        "This model comes from resume(), and learn() was not given the ExactCheckpointCallback that puts back the rest of its "
        "state. Give it the callbacks that it had; to train on without them, load the model.zip in the checkpoint instead."
    )


def _system(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """
    What the last bits depend on.
    """
    return {
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "capability": th.backends.cpu.get_cpu_capability(),
        "threads": th.get_num_threads(),
        "device": model.device.type,
        "engine": type(choose_engine(model)).__name__ if isinstance(model, ActorCritic) else None,
        "products": products(),
    }


def _warn_of_other_system(then: dict[str, Any], now: dict[str, Any]) -> None:
    differences = [f"{name}: {then.get(name)} then, {value} now" for name, value in now.items() if then.get(name) != value]
    if differences:
        warnings.warn(f"The checkpoint comes from another system, so the last bits may differ ({'; '.join(differences)}).")
