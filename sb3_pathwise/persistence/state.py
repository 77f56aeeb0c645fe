"""
All that a training depends on: taken at the start of a rollout, put back at the start of a rollout.

At that point the last update is complete, no transition is under way, and gSDE has drawn its matrices.
"""

import io
import pickle
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pathwise.persistence.buffers import get_buffer_state, set_buffer_state
from sb3_pathwise.persistence.environments import (
    get_env_state,
    get_side_env_state,
    make_restorable,
    offers_state,
    set_env_state,
)
from sb3_pathwise.persistence.storage import Writer
from sb3_pathwise.persistence.streams import (
    dumps,
    get_attributes,
    get_global_streams,
    get_space_streams,
    get_text,
    set_global_streams,
    set_space_streams,
    set_text,
)

# Attributes that learn() sets before the first rollout
_SET_BY_LEARN = (
    "num_timesteps",
    "_num_timesteps_at_start",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
    "ep_info_buffer",
    "ep_success_buffer",
)
# Of a callback: the process's, not the training's
_OF_THE_PROCESS = ("model", "locals", "globals", "parent")


def get_state(model: OffPolicyAlgorithm, callback: BaseCallback, baseline: "Baseline") -> dict[str, Writer]:
    """
    :param model: The model in training, at the start of a rollout
    :param callback: The callback that learn() was called with
    :param baseline: The callbacks at the start of learn()
    :return: what writes each file
    """
    assert model.env is not None and model.replay_buffer is not None
    zip_file = io.BytesIO()
    model.save(zip_file)
    buffer_state, writers = get_buffer_state(model.replay_buffer)
    state = {
        "class": type(model),
        "model": {name: vars(model)[name] for name in _SET_BY_LEARN},
        "total_timesteps": model._total_timesteps,
        "time_elapsed": time.time_ns() - model.start_time,
        "action_noise": model.action_noise,
        "exploration_matrices": _get_exploration_matrices(model),
        "shares_spaces": model.action_space is model.env.action_space,
        "spaces": [get_space_streams(space) for space in (model.action_space, model.observation_space)],
        "env": get_env_state(model.env),
        "replay_buffer": buffer_state,
        "callbacks": _get_callbacks(model, callback, baseline),
        "logger": _get_logger(model.logger),
        # The last to be put back
        "streams": get_global_streams(cuda=True),
    }
    pickled = pickle.dumps(state, protocol=pickle.HIGHEST_PROTOCOL)
    return {
        "model.zip": lambda file: file.write(zip_file.getbuffer()),
        "state.pkl": lambda file: file.write(pickled),
        **writers,
    }


def load_state(checkpoint: Path) -> dict[str, Any]:
    """
    :param checkpoint: A checkpoint that was verified, and that we wrote: it is unpickled
    :return: what ``set_state`` needs
    """
    return dict(pickle.loads((checkpoint / "state.pkl").read_bytes()))


def fill_replay_buffer(model: OffPolicyAlgorithm, state: dict[str, Any], checkpoint: Path) -> None:
    """
    :param model: The model to put it back into
    :param state: What ``load_state`` returned
    :param checkpoint: The checkpoint
    """
    assert model.replay_buffer is not None
    set_buffer_state(model.replay_buffer, state["replay_buffer"], checkpoint)


def set_state(model: OffPolicyAlgorithm, state: dict[str, Any], callback: BaseCallback) -> None:
    """
    Put everything back, but networks, optimizers and replay buffer, which were loaded already.

    :param model: The model, at the start of its first rollout
    :param state: What ``load_state`` returned
    :param callback: The callback that learn() was called with
    :raises ValueError: if the environment is wrapped otherwise than it was
    :raises NotRestorableError: if an environment does not come back
    """
    assert model.env is not None
    if model._total_timesteps != state["total_timesteps"]:
        warnings.warn(
            f"The checkpoint is of a training of {state['total_timesteps']} steps, learn() now goes for "
            f"{model._total_timesteps}: with a learning rate schedule it will not end where it would have ended. Pass the "
            "same total_timesteps as before, or, with reset_num_timesteps=False, what is left of it."
        )
    share_spaces(model, state)
    set_env_state(model.env, state["env"])
    for space, streams in zip((model.action_space, model.observation_space), state["spaces"], strict=True):
        set_space_streams(space, streams)
    vars(model).update(state["model"])
    model.start_time = time.time_ns() - state["time_elapsed"]
    _set_action_noise(model.action_noise, state["action_noise"])
    _set_exploration_matrices(model, state["exploration_matrices"])
    _set_callbacks(callback, state["callbacks"])
    _set_logger(model.logger, state["logger"])
    set_global_streams(state["streams"])


def share_spaces(model: OffPolicyAlgorithm, state: dict[str, Any]) -> None:
    """
    Let the model share its spaces, and with them their generators, with the environment, if it did.

    :param model: The model, changed in place
    :param state: What ``load_state`` returned
    """
    if state["shares_spaces"]:
        assert model.env is not None
        model.action_space, model.observation_space = model.env.action_space, model.env.observation_space


def _set_action_noise(noise: ActionNoise | None, noise_then: ActionNoise | None) -> None:
    # In place: the rollout holds it already
    if noise is not None and noise_then is not None:
        vars(noise).update(vars(noise_then))


def _get_exploration_matrices(model: OffPolicyAlgorithm) -> list[th.Tensor] | None:
    action_dist = getattr(model.actor, "action_dist", None)
    if not isinstance(action_dist, StateDependentNoiseDistribution):
        return None
    return [action_dist.exploration_mat.detach().cpu(), action_dist.exploration_matrices.detach().cpu()]


def _set_exploration_matrices(model: OffPolicyAlgorithm, matrices: list[th.Tensor] | None) -> None:
    if matrices is not None:
        action_dist = model.actor.action_dist
        assert isinstance(action_dist, StateDependentNoiseDistribution)
        action_dist.exploration_mat, action_dist.exploration_matrices = (matrix.to(model.device) for matrix in matrices)


def _get_logger(logger: Logger) -> dict[str, Any]:
    return {
        "values": get_attributes(logger, skip=("dir", "output_formats", "level")),
        "files": [
            (type(output).__name__, getattr(output, "keys", None), get_text(getattr(output, "file", None)))
            for output in logger.output_formats
        ],
    }


def _set_logger(logger: Logger, state: dict[str, Any]) -> None:
    vars(logger).update(state["values"])
    # A new logger has emptied its files
    for output, (name, keys, text) in zip(logger.output_formats, state["files"], strict=False):
        if type(output).__name__ == name and text is not None:
            set_text(getattr(output, "file", None), text)
            if keys is not None:
                output.keys = keys  # type: ignore[attr-defined]


def _walk(callback: BaseCallback, seen: set[int]) -> Iterator[BaseCallback]:
    """
    A callback and all that it holds, in a fixed order.
    """
    if id(callback) in seen:
        return
    seen.add(id(callback))
    yield callback
    for name, value in vars(callback).items():
        if name not in _OF_THE_PROCESS:
            for child in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(child, BaseCallback):
                    yield from _walk(child, seen)


class Baseline:
    """
    The attributes of callbacks at the start of learn(). Only those that have changed since are state: the others, such as
    paths and frequencies, are what the user says they are.

    :param callback: The callback that learn() was called with
    """

    def __init__(self, callback: BaseCallback) -> None:
        self._attributes = {id(child): self._dump(child) for child in _walk(callback, set())}
        # Keeps the ids unique
        self._callback = callback

    @staticmethod
    def _dump(callback: BaseCallback) -> dict[str, bytes | None]:
        return {name: dumps(value) for name, value in vars(callback).items() if name not in _OF_THE_PROCESS}

    def changed(self, callback: BaseCallback) -> dict[str, bytes]:
        """
        :param callback: One of the callbacks
        :return: pickles of its attributes that have changed
        """
        before = self._attributes.get(id(callback), {})
        now = self._dump(callback)
        return {name: value for name, value in now.items() if value is not None and value != before.get(name)}


def _get_callbacks(model: OffPolicyAlgorithm, callback: BaseCallback, baseline: Baseline) -> list[dict[str, Any]]:
    states = []
    for child in _walk(callback, set()):
        state: dict[str, Any] = {"type": type(child).__name__}
        if offers_state(child):
            state["state"] = child.get_exact_state()  # type: ignore[attr-defined]
        else:
            state["attributes"] = baseline.changed(child)
        if isinstance(child, EvalCallback) and child.eval_env is not model.env:
            state["eval_env"] = get_side_env_state(child.eval_env)
        states.append(state)
    return states


def _set_callbacks(callback: BaseCallback, states: list[dict[str, Any]]) -> None:
    callbacks = list(_walk(callback, set()))
    for state in states:
        # The k-th of its type, then and now: those that do not matter, like progress bars, may come and go
        child = next((child for child in callbacks if type(child).__name__ == state["type"]), None)
        if child is None:
            warnings.warn(f"The checkpoint holds the state of a {state['type']}, which learn() was not given this time.")
            continue
        callbacks.remove(child)
        if "state" in state:
            child.set_exact_state(state["state"])  # type: ignore[attr-defined]
        else:
            vars(child).update({name: pickle.loads(pickled) for name, pickled in state["attributes"].items()})
        if state.get("eval_env") is not None:
            assert isinstance(child, EvalCallback)
            make_restorable(child.eval_env)
            set_env_state(child.eval_env, state["eval_env"], replay_reset=False)
