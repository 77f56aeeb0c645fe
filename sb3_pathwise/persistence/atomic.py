"""
Files and folders that come into being whole or not at all, whether the process is killed or the machine loses power.

The one place for that: checkpoints (``storage.py``) and comparisons (``experiments/store.py``) are written with it. What the
files hold, and what is done about leftovers of a killed process, is for those who write them.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """
    A file to write to, which is on the disk in the end, under its own name from the beginning: for unfinished folders.

    :param path: Where to
    """
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: str | bytes) -> None:
    """
    Write a file so that a reader, and a machine that loses power, sees the old content or the new, never a part.

    :param path: Where to
    :param data: Its content
    :raises OSError: if the disk is full, or for another reason; the old content is there then
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with synced_file(temporary) as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def whole_folder(final: Path, unfinished: Path, doomed: Path) -> Iterator[None]:
    """
    A folder to fill, with ``synced_file``, which takes its name in the end, in place of an old one.

    :param final: Where it is then
    :param unfinished: Where it is filled, on the same file system
    :param doomed: Where an old one is while it is removed, on the same file system
    :raises OSError: if the disk is full, or for another reason; nothing is left behind then, as far as the disk allows
    """
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield
        _sync_folder(unfinished)
        remove_folder(final, doomed)
        os.rename(unfinished, final)
        _sync_folder(final.parent)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def remove_folder(folder: Path, doomed: Path) -> None:
    """
    :param folder: What to remove, may be missing
    :param doomed: Where it is meanwhile: half a folder must not look like a whole one
    :raises OSError: if the file system does not let us
    """
    if folder.exists():
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    # Windows cannot open folders; its renames are journalled
    if os.name == "posix":
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
