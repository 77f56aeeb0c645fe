"""
rl_zoo3's ``push_to_hub`` and ``load_from_hub``, made to work with the libraries that it can be installed with.

Only what they ask of huggingface_sb3 and huggingface_hub is here; the commands themselves are rl_zoo3's.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.repocard
import huggingface_sb3
from huggingface_hub.errors import HTTPError as HubError
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.repocard import metadata_save
from huggingface_sb3 import load_from_hub
from requests.exceptions import HTTPError as MissingFile

from sb3_pathwise.zoo.registry import ALGORITHMS


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
