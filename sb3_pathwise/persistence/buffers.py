"""
Replay buffers, of any kind: how the filled part is written, and read into a new buffer of the same kind.

Arrays go to disk as they are, one file each, since they are most of a checkpoint; the rest is small.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pathwise.persistence.storage import Writer
from sb3_pathwise.persistence.streams import get_attributes

Address = tuple[str, str | None]


def _arrays(buffer: ReplayBuffer) -> Iterator[tuple[Address, np.ndarray]]:
    """
    The arrays of numbers of a buffer: by attribute, and by key for those of Dict observations.
    """
    for name, value in vars(buffer).items():
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            yield (name, None), value
        elif isinstance(value, dict):
            yield from (
                ((name, key), array)
                for key, array in value.items()
                if isinstance(array, np.ndarray) and array.dtype.kind != "O"
            )


def _filled(buffer: ReplayBuffer, array: np.ndarray) -> np.ndarray:
    if array.ndim == 0 or len(array) != buffer.buffer_size:
        return array
    # With optimize_memory_usage, the row to write next holds the last observation already
    return array[: buffer.buffer_size if buffer.full else buffer.pos + 1]


def get_buffer_state(buffer: ReplayBuffer) -> tuple[dict[str, Any], dict[str, Writer]]:
    """
    :param buffer: Replay buffer
    :return: what ``set_buffer_state`` needs, and the writers of the files that it reads
    """
    files, writers = {}, {}
    for i, (address, array) in enumerate(_arrays(buffer)):
        files[address] = f"replay_buffer_{i:02d}.npy"
        writers[files[address]] = _writer(_filled(buffer, array))
    written = {name for name, _ in files}
    rest = get_attributes(buffer, skip=("env", "device", *written))
    for name, value in rest.items():
        if isinstance(value, np.ndarray):
            rest[name] = _filled(buffer, value)
    return {"type": type(buffer).__name__, "files": files, "rest": rest}, writers


def _writer(array: np.ndarray) -> Writer:
    return lambda file: np.lib.format.write_array(file, array, allow_pickle=False)


def set_buffer_state(buffer: ReplayBuffer, state: dict[str, Any], checkpoint: Path) -> None:
    """
    :param buffer: Newly made replay buffer, changed in place
    :param state: What ``get_buffer_state`` returned
    :param checkpoint: Folder of the files that its writers wrote
    :raises ValueError: if it is another kind of buffer, or of another size
    """
    arrays = dict(_arrays(buffer))
    if type(buffer).__name__ != state["type"] or arrays.keys() != state["files"].keys():
        raise ValueError(f"replay_buffer_class: the checkpoint needs a {state['type']}, got a {type(buffer).__name__}.")
    for name, value in state["rest"].items():
        if isinstance(value, np.ndarray):
            _fill(vars(buffer)[name], value)
        else:
            setattr(buffer, name, value)
    for address, file_name in state["files"].items():
        _fill(arrays[address], np.load(checkpoint / file_name, mmap_mode="r", allow_pickle=False))


def _fill(array: np.ndarray, values: np.ndarray) -> None:
    if values.shape[1:] != array.shape[1:] or len(values) > len(array) or values.dtype != array.dtype:
        raise ValueError(
            f"buffer_size: the checkpoint holds {values.dtype} {values.shape}, the buffer takes {array.dtype} {array.shape}."
        )
    array[: len(values)] = values
