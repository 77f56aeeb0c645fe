"""
Environments: how their state is taken at the beginning of an episode, and put back.

Few environments can say what their state is. Most are, at the first observation of an episode, whatever their random
generators made of them: so ``RestorableEnv`` notes the generators before each reset, and resets again from there. An
environment that has more to it than that, such as levels that it unlocks, or that shall be restored in the middle of
episodes, offers two methods, which its wrappers or its VecEnv may offer in its stead::

    def get_exact_state(self) -> Any: ...             # all that later steps depend on; anything that pickle takes
    def set_exact_state(self, state: Any) -> None: ...

Generators, spaces and the attributes of wrappers outside of it (time limits, statistics) need not be in it.
"""

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.utils.env_checker import data_equivalence
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_pathwise.persistence.streams import (
    GENERATORS,
    dumps,
    get_attributes,
    get_global_streams,
    get_space_streams,
    get_stream,
    get_text,
    set_global_streams,
    set_space_streams,
    set_stream,
    set_text,
)

_REMEDY = "Let it offer get_exact_state() and set_exact_state(state), see sb3_pathwise/persistence/environments.py."


class NotRestorableError(RuntimeError):
    """An environment does not come back to the state that it was in."""


def offers_state(obj: object) -> bool:
    """
    :param obj: An environment, a wrapper, a VecEnv or a callback
    :return: whether it offers the two methods
    """
    return callable(getattr(obj, "get_exact_state", None)) and callable(getattr(obj, "set_exact_state", None))


class RestorableEnv(gym.Wrapper):
    """
    Wrapper that can bring its environment back to where it was.

    ``ExactCheckpointCallback`` puts it around the environments of a ``DummyVecEnv`` by itself. Workers of a
    ``SubprocVecEnv`` are out of its reach: ``make_vec_env(..., vec_env_cls=SubprocVecEnv, wrapper_class=RestorableEnv)``.

    :param env: The environment, with all its other wrappers
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._layers: list[gym.Env] = []
        while isinstance(env, gym.Wrapper):
            self._layers.append(env)
            env = env.env
        self._layers.append(env)
        # The outermost speaks for everything inside it
        self._speaker = next((i for i, layer in enumerate(self._layers) if offers_state(layer)), None)
        self._before_reset: dict[str, Any] | None = None
        self._first_obs: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._before_reset = {
            "kwargs": copy.deepcopy(kwargs),
            "streams": self._streams(),
            "wrappers": [self._pickled(wrapper) for wrapper in self._layers[:-1]],
        }
        obs, info = self.env.reset(**kwargs)
        self._first_obs = copy.deepcopy(obs)
        return obs, info

    def knows_whole_state(self) -> bool:
        """
        :return: whether the environment offers its state, so that it can be restored in the middle of an episode
        """
        return self._speaker is not None

    def get_snapshot(self) -> dict[str, Any]:
        """
        :return: what ``set_snapshot`` needs
        """
        wrappers = self._layers[: len(self._layers) - 1 if self._speaker is None else self._speaker]
        return {
            "state": None if self._speaker is None else self._layers[self._speaker].get_exact_state(),  # type: ignore[attr-defined]
            "before_reset": self._before_reset,
            "first_obs": self._first_obs,
            "streams": self._streams(),
            "wrappers": [(type(wrapper).__name__, get_attributes(wrapper, skip=("env",))) for wrapper in wrappers],
            "monitor_files": [get_text(file) for file in self._monitor_files()],
        }

    def set_snapshot(self, snapshot: dict[str, Any], replay_reset: bool = True) -> None:
        """
        :param snapshot: What ``get_snapshot`` returned, at the beginning of an episode unless the environment offers its state
        :param replay_reset: Whether to reset it as it was reset then; not needed before a reset anyway
        :raises NotRestorableError: if it is not where it was then
        """
        if self._speaker is not None:
            self._layers[self._speaker].set_exact_state(snapshot["state"])  # type: ignore[attr-defined]
        elif replay_reset and snapshot["before_reset"] is not None:
            self._replay_reset(snapshot)
        self._before_reset, self._first_obs = snapshot["before_reset"], snapshot["first_obs"]
        for wrapper, (name, attributes) in zip(self._layers, snapshot["wrappers"], strict=False):
            if type(wrapper).__name__ != name:
                raise NotRestorableError(f"The environment had a {name} where it now has a {type(wrapper).__name__}.")
            vars(wrapper).update(copy.deepcopy(attributes))
        for file, text in zip(self._monitor_files(), snapshot["monitor_files"], strict=False):
            set_text(file, text)
        self._set_streams(snapshot["streams"])

    def check_restorable(self) -> None:
        """
        Restore it to where it is, to find out now whether that will be possible.

        :raises NotRestorableError: if it is not
        """
        snapshot = copy.deepcopy(self.get_snapshot())
        self.set_snapshot(snapshot)

    @staticmethod
    def _pickled(wrapper: gym.Env) -> dict[str, bytes]:
        # A monitor does not change what it sees, and its lists grow
        attributes = {} if isinstance(wrapper, Monitor) else vars(wrapper)
        pickled = {name: dumps(value) for name, value in attributes.items() if not isinstance(value, (gym.Env, gym.Space))}
        return {name: value for name, value in pickled.items() if value is not None}

    def _replay_reset(self, snapshot: dict[str, Any]) -> None:
        before = snapshot["before_reset"]
        for wrapper, pickled in zip(self._layers, before["wrappers"], strict=False):
            vars(wrapper).update({name: pickle.loads(value) for name, value in pickled.items()})
        self._set_streams(before["streams"])
        obs, _ = self.env.reset(**before["kwargs"])
        name = str(self.env.unwrapped)
        if not data_equivalence(obs, snapshot["first_obs"], exact=True):
            raise NotRestorableError(
                f"{name} gave another first observation when reset again from the same random generators: its state goes "
                f"beyond them. {_REMEDY}"
            )
        if not data_equivalence(self._streams()["own"], snapshot["streams"]["own"], exact=True):
            raise NotRestorableError(
                f"The random generators of {name} have moved on since its reset: it cannot be restored here. {_REMEDY}"
            )

    def _streams(self) -> dict[str, Any]:
        # An environment may draw from the global streams, too
        return {
            "own": [(i, name, get_stream(generator)) for i, name, generator in self._generators()],
            "spaces": [(i, name, get_space_streams(space)) for i, name, space in self._spaces()],
            "global": get_global_streams(),
        }

    def _set_streams(self, streams: dict[str, Any]) -> None:
        for i, name, stream in streams["own"]:
            layer = self._layers[i]
            # Made at its first use
            generator = layer.np_random if name == "_np_random" else getattr(layer, name, None)
            if not isinstance(generator, GENERATORS):
                raise NotRestorableError(f"{layer} has no random generator {name!r}, as it had when its state was saved.")
            set_stream(generator, stream)
        spaces = {(i, name): space for i, name, space in self._spaces()}
        for i, name, stream in streams["spaces"]:
            if (i, name) in spaces:
                set_space_streams(spaces[i, name], stream)
        set_global_streams(streams["global"])

    def _generators(self) -> Iterator[tuple[int, str, Any]]:
        for i, layer in enumerate(self._layers):
            yield from ((i, name, value) for name, value in vars(layer).items() if isinstance(value, GENERATORS))

    def _spaces(self) -> Iterator[tuple[int, str, gym.Space]]:
        for i, layer in enumerate(self._layers):
            yield from ((i, name, value) for name, value in vars(layer).items() if isinstance(value, gym.Space))
        # They may be attributes of the class
        for name in ("action_space", "observation_space"):
            yield len(self._layers) - 1, name, getattr(self._layers[-1], name)

    def _monitor_files(self) -> list[Any]:
        monitors = [layer for layer in self._layers if isinstance(layer, Monitor)]
        return [monitor.results_writer and monitor.results_writer.file_handler for monitor in monitors]


def make_restorable(venv: VecEnv) -> None:
    """
    Put a ``RestorableEnv`` around each environment of a VecEnv that needs and admits it.

    :param venv: Vectorized environment, changed in place
    :raises ValueError: if it needs it and does not admit it
    """
    base = venv.unwrapped
    if offers_state(base) or all(base.env_is_wrapped(RestorableEnv)):
        return
    if not isinstance(base, DummyVecEnv):
        raise ValueError(
            f"env: the environments of a {type(base).__name__} cannot be wrapped from outside. Wrap each in RestorableEnv: "
            "make_vec_env(..., wrapper_class=RestorableEnv); or let the VecEnv offer get_exact_state() and "
            "set_exact_state(state)."
        )
    base.envs = [RestorableEnv(env) for env in base.envs]


def knows_whole_state(venv: VecEnv) -> bool:
    """
    :param venv: Vectorized environment that is restorable
    :return: whether it can be restored in the middle of episodes
    """
    return offers_state(venv.unwrapped) or all(venv.unwrapped.env_method("knows_whole_state"))


def check_restorable(venv: VecEnv) -> None:
    """
    Find out at the beginning of all episodes whether they can be restored to it.

    :param venv: Vectorized environment that is restorable
    :raises NotRestorableError: if an environment cannot
    """
    if not offers_state(venv.unwrapped):
        venv.unwrapped.env_method("check_restorable")


def get_env_state(venv: VecEnv) -> dict[str, Any]:
    """
    :param venv: Vectorized environment that is restorable
    :return: what ``set_env_state`` needs
    """
    base: Any = venv.unwrapped
    return {
        "layers": [(type(layer).__name__, _attributes(layer)) for layer in _layers(venv)],
        "state": base.get_exact_state() if offers_state(base) else None,
        "snapshots": None if offers_state(base) else base.env_method("get_snapshot"),
    }


def set_env_state(venv: VecEnv, env_state: dict[str, Any], replay_reset: bool = True) -> None:
    """
    :param venv: Vectorized environment that is restorable, changed in place
    :param env_state: What ``get_env_state`` returned
    :param replay_reset: Whether an episode goes on
    :raises ValueError: if it is wrapped otherwise than it was then
    :raises NotRestorableError: if an environment is not where it was then
    """
    layers = list(_layers(venv))
    names, names_then = [type(layer).__name__ for layer in layers], [name for name, _ in env_state["layers"]]
    if names != names_then:
        raise ValueError(f"env: the checkpoint needs {' in '.join(reversed(names_then))}, got {' in '.join(reversed(names))}.")
    base: Any = venv.unwrapped
    if offers_state(base):
        base.set_exact_state(env_state["state"])
    else:
        if len(env_state["snapshots"]) != venv.num_envs:
            raise ValueError(f"env: the checkpoint needs {len(env_state['snapshots'])} environments, got {venv.num_envs}.")
        for i, snapshot in enumerate(env_state["snapshots"]):
            base.env_method("set_snapshot", snapshot, replay_reset, indices=[i])
    for layer, (_, attributes) in zip(layers, env_state["layers"], strict=True):
        vars(layer).update(copy.deepcopy(attributes))


def get_side_env_state(venv: VecEnv) -> dict[str, Any] | None:
    """
    The same of an environment that is reset before it is used, such as one for evaluation.

    :param venv: Vectorized environment
    :return: what ``set_env_state(..., replay_reset=False)`` needs, ``None`` if it cannot be restored
    """
    try:
        make_restorable(venv)
    except ValueError as error:
        warnings.warn(f"The random generators of an evaluation environment are not saved. {error}")
        return None
    return get_env_state(venv)


def _attributes(layer: VecEnv) -> dict[str, Any]:
    if isinstance(layer, VecEnvWrapper):
        return get_attributes(layer, skip=("class_attributes",))
    # The rest is buffers, which the next step fills, and connections
    return {name: getattr(layer, name) for name in ("_seeds", "_options", "reset_infos")}


def _layers(venv: VecEnv) -> Iterator[VecEnv]:
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv
    yield venv
