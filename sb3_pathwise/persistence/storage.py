"""
Folders of checkpoints on disk: written whole or not at all, verified before they are read, the oldest removed.

What the files hold is decided elsewhere, how they are written so is in ``atomic.py``; here they are names and bytes.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from sb3_pathwise.persistence.atomic import remove_folder, synced_file, whole_folder

MANIFEST = "manifest.json"
FORMAT = 2
_NAME = re.compile(r"checkpoint_(\d+)_(\d+)_steps")
# Of folders that are being written or removed: no reader looks at them
_UNFINISHED, _DOOMED = ".unfinished_", ".doomed_"

Writer = Callable[[BinaryIO], Any]


class CorruptCheckpointError(ValueError):
    """A checkpoint is not what was written."""


class _HashingFile:
    """A binary file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += memoryview(data).nbytes
        self.sha256.update(data)
        return self.file.write(data)


def _write_file(path: Path, writer: Writer) -> dict[str, Any]:
    with synced_file(path) as file:
        hashing_file = _HashingFile(file)
        writer(hashing_file)  # type: ignore[arg-type]
    return {"size": hashing_file.size, "sha256": hashing_file.sha256.hexdigest()}


def write(folder: Path, sequence: int, num_timesteps: int, writers: dict[str, Writer], info: dict[str, Any]) -> Path:
    """
    Write a checkpoint so that at any moment it is there as a whole or not at all.

    :param folder: Folder of checkpoints
    :param sequence: Number of the checkpoint: the highest is the latest
    :param num_timesteps: Steps taken, for the name
    :param writers: For each file, what writes it
    :param info: What else the manifest says, plain JSON
    :return: The checkpoint
    :raises OSError: if the disk is full, or for another reason; nothing is left behind then, as far as the disk allows
    """
    name = f"checkpoint_{sequence:06d}_{num_timesteps}_steps"
    unfinished, final = folder / (_UNFINISHED + name), folder / name
    # A corrupt one may have the name
    with whole_folder(final, unfinished, _doomed(final)):
        files = {file_name: _write_file(unfinished / file_name, writer) for file_name, writer in writers.items()}
        manifest: dict[str, Any] = {"format": FORMAT, "files": files, "info": info}
        text = json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1).encode()
        _write_file(unfinished / MANIFEST, lambda file: file.write(text))
    return final


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """
    :param folder: Folder of checkpoints, may be missing
    :return: its checkpoints, the latest first
    """
    matches = [(match, path) for path in folder.glob("checkpoint_*") if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(matches, key=lambda item: int(item[0][1]), reverse=True)]


def sequence_of(checkpoint: Path) -> int:
    """
    :param checkpoint: A checkpoint
    :return: its number
    """
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def verify(checkpoint: Path) -> dict[str, Any]:
    """
    Read every byte of a checkpoint and compare it with what was written.

    :param checkpoint: A checkpoint
    :return: what ``info`` was when it was written
    :raises CorruptCheckpointError: if anything is missing or different
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CorruptCheckpointError(f"{checkpoint}: format {manifest['format']}, this version reads {FORMAT}")
        if manifest.pop("sha256") != _digest(manifest):
            raise CorruptCheckpointError(f"{checkpoint}: {MANIFEST} is not what was written")
        for name, expected in manifest["files"].items():
            sha256 = hashlib.sha256()
            with open(checkpoint / name, "rb") as file:
                while chunk := file.read(1 << 20):
                    sha256.update(chunk)
            if sha256.hexdigest() != expected["sha256"]:
                raise CorruptCheckpointError(f"{checkpoint}: {name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CorruptCheckpointError):
            raise
        raise CorruptCheckpointError(f"{checkpoint}: {error!r}") from error
    return dict(manifest["info"])


def _doomed(checkpoint: Path) -> Path:
    return checkpoint.with_name(_DOOMED + checkpoint.name)


def prune(folder: Path, keep: int) -> None:
    """
    Remove all but the latest checkpoints.

    :param folder: Folder of checkpoints
    :param keep: How many stay
    :raises OSError: if the file system does not let us
    """
    for path in checkpoints(folder)[keep:]:
        remove_folder(path, _doomed(path))


def remove_unfinished(folder: Path) -> None:
    """
    Remove what writers that were killed have left behind.

    :param folder: Folder of checkpoints, may be missing
    """
    for prefix in (_UNFINISHED, _DOOMED):
        for path in folder.glob(prefix + "*"):
            shutil.rmtree(path, ignore_errors=True)
