"""
Random streams and attributes of objects: how they are taken, and put back into the same object or its successor.

Generators are put back in place, since several objects may share one. What refers to something alive (an environment, a
model, an open file) is not state, and stays with the new process.
"""

import io
import os
import pickle
import random
from collections.abc import Iterator
from io import IOBase
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv

Generator = np.random.Generator | np.random.RandomState | random.Random | th.Generator
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, th.Generator)
# Objects of the process, not of the training. Copies of connections would close them
_ALIVE = (
    *(BaseAlgorithm, BaseCallback, gym.Env, VecEnv, Logger, KVWriter, th.nn.Module, th.optim.Optimizer),
    *(Connection, BaseProcess, IOBase),
)


def get_stream(generator: Generator) -> Any:
    """
    :param generator: Any of Python's, NumPy's or torch's generators
    :return: its state
    """
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, th.Generator):
        return generator.get_state().numpy()
    return generator.get_state()


def set_stream(generator: Generator, state: Any) -> None:
    """
    :param generator: Any of Python's, NumPy's or torch's generators, changed in place
    :param state: What ``get_stream`` returned
    """
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, th.Generator):
        generator.set_state(th.tensor(state))
    else:
        generator.set_state(state)


def get_global_streams(cuda: bool = False) -> dict[str, Any]:
    """
    :param cuda: Whether to include those of CUDA devices, if any is in use
    :return: state of the global streams of Python, NumPy and torch, tensors as arrays
    """
    streams: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": th.get_rng_state().numpy(),
    }
    if cuda and th.cuda.is_available() and th.cuda.is_initialized():
        streams["cuda"] = [state.numpy() for state in th.cuda.get_rng_state_all()]
    return streams


def set_global_streams(streams: dict[str, Any]) -> None:
    """
    :param streams: What ``get_global_streams`` returned
    """
    random.setstate(streams["python"])
    np.random.set_state(streams["numpy"])
    th.set_rng_state(th.tensor(streams["torch"]))
    if "cuda" in streams and th.cuda.device_count() == len(streams["cuda"]):
        th.cuda.set_rng_state_all([th.tensor(state) for state in streams["cuda"]])


def get_space_streams(space: spaces.Space) -> list[Any]:
    """
    :param space: A space
    :return: the state of its generator and of those of the spaces in it; ``None`` for one that was never used
    """
    return [None if part._np_random is None else get_stream(part._np_random) for part in _parts(space)]


def set_space_streams(space: spaces.Space, streams: list[Any]) -> None:
    """
    :param space: A space of the same structure, its generators changed in place
    :param streams: What ``get_space_streams`` returned
    """
    for part, stream in zip(_parts(space), streams, strict=True):
        if stream is not None:
            set_stream(part.np_random, stream)


def _parts(space: spaces.Space) -> Iterator[spaces.Space]:
    yield space
    children = getattr(space, "spaces", ())
    for child in children.values() if isinstance(children, dict) else children:
        yield from _parts(child)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> None:
        if isinstance(obj, _ALIVE):
            raise pickle.PicklingError(f"{type(obj).__name__} belongs to the process, it is not state")


def dumps(obj: Any) -> bytes | None:
    """
    :param obj: Anything
    :return: its pickle; ``None`` if it has none, or refers to something alive
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(obj)
    # Pickling runs the code of strangers' classes, which may raise anything
    except Exception:
        return None
    return buffer.getvalue()


def get_attributes(obj: object, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """
    :param obj: Any object with a ``__dict__``
    :param skip: Names to leave out
    :return: those of its attributes that are state: no spaces, no generators, nothing alive or that cannot be pickled
    """
    return {
        name: value
        for name, value in vars(obj).items()
        if name not in skip and not isinstance(value, (spaces.Space, *GENERATORS)) and dumps(value) is not None
    }


def get_text(file: Any) -> str | None:
    """
    :param file: A text file that is open for writing, or anything else
    :return: what has been written to it; ``None`` if it is no file on disk
    """
    name = getattr(file, "name", None)
    if not isinstance(name, str) or not os.path.isfile(name) or file.closed:
        return None
    file.flush()
    with open(name, newline="") as written:
        return written.read()


def set_text(file: Any, text: str | None) -> None:
    """
    :param file: A text file that is open for writing, or anything else
    :param text: What it shall hold; writing goes on after it. ``None`` changes nothing
    """
    name = getattr(file, "name", None)
    if text is None or not isinstance(name, str) or not os.path.isfile(name) or file.closed:
        return
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
