"""
The scale of what a model learns from, in numbers: networks want it to be about 1.

``traps.py`` warns of what is found here, ``causes.py`` blames it when an alarm is raised.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3 import SAC

N_TRANSITIONS = 256
LARGE, SMALL = 100.0, 0.01


def is_readable(model: SAC) -> bool:
    """
    :param model: The model in training
    :return: whether its replay buffer keeps arrays as SB3's do, which one of a user's own need not
    """
    observations = getattr(model.replay_buffer, "observations", None)
    parts = list(observations.values()) if isinstance(observations, dict) else [observations]
    parts += [getattr(model.replay_buffer, name, None) for name in ("actions", "rewards")]
    return all(isinstance(part, np.ndarray) for part in parts)


def replayed(model: SAC, array: np.ndarray) -> np.ndarray:
    """
    :param model: The model in training
    :param array: An array of its replay buffer
    :return: up to N_TRANSITIONS rows of it, evenly spread: no random number is drawn
    """
    assert model.replay_buffer is not None
    rows = np.linspace(0, model.replay_buffer.size() - 1, N_TRANSITIONS).astype(int)
    return array[rows, np.arange(N_TRANSITIONS) % model.n_envs]


def replayed_arrays(model: SAC) -> dict[str, np.ndarray]:
    """
    :param model: The model in training
    :return: rows of the replay buffer by the names of its parts, except for those that VecNormalize will scale
    """
    if not is_readable(model):
        return {}
    buffer: Any = model.replay_buffer
    normalizer = model._vec_normalize_env
    arrays: dict[str, Any] = {"actions": buffer.actions}
    if normalizer is None or not normalizer.norm_reward:
        arrays["rewards"] = buffer.rewards
    if isinstance(buffer.observations, dict):
        normalized = normalizer.norm_obs_keys or [] if normalizer is not None and normalizer.norm_obs else []
        arrays |= {f"observations {key!r}": obs for key, obs in buffer.observations.items() if key not in normalized}
    elif normalizer is None or not normalizer.norm_obs:
        arrays["observations"] = buffer.observations
    return {name: replayed(model, array) for name, array in arrays.items() if array.size > 0}


def off_scale(arrays: dict[str, np.ndarray], also_small: bool = True) -> Iterator[tuple[str, str, str]]:
    """
    :param arrays: Rows by name; of integers, which are images or categories, nothing is said
    :param also_small: Whether what is much smaller than 1 counts too
    :return: name, finding and remedy, of each that is far from unit scale
    """
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        values = np.abs(array.astype(np.float64)).reshape(len(array), -1)
        largest = values.max()
        with np.errstate(over="ignore"):
            largest_rms = np.sqrt(np.square(values).mean(axis=0).max())
        if name == "actions":
            if largest > 1 + 1e-4:
                yield (
                    name,
                    f"actions in the replay buffer go up to {largest:.3g}, where SB3 keeps them scaled to [-1, 1]",
                    "Whoever puts actions there must put in model.policy.scale_action(actions).",
                )
        elif largest_rms > LARGE or (also_small and 0 < largest < SMALL):
            yield (
                name,
                f"{name} are far from unit scale (largest root mean square {largest_rms:.3g}, largest absolute value "
                f"{largest:.3g})",
                "Networks learn badly from them: wrap the environment in VecNormalize, or rescale them.",
            )
