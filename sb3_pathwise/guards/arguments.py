"""
Arguments that cannot work are refused by name, when a model is made rather than when it learns.

These are the arguments of SB3's SAC and its policies, which upstream mostly leaves to whatever fails on them later. What is
ours is checked where it is used (``learner.py``, ``policies.py``).
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import CnnPolicy, MultiInputPolicy

from sb3_pathwise.guards.action_space import check_action_space
from sb3_pathwise.guards.rollouts import CheckedSAC

Rule = tuple[Callable[[Any], bool], str]


def _is_int(value: Any, at_least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= at_least)


def _is_number(value: Any, at_least: float = -math.inf, at_most: float = math.inf) -> bool:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and at_least <= value <= at_most


def _integer(at_least: int) -> Rule:
    return lambda value: _is_int(value, at_least), f"an integer of at least {at_least}"


def _is_text_of_number(value: Any, at_least: float = -math.inf) -> bool:
    # From a command line, as in SAC
    try:
        return isinstance(value, str) and math.isfinite(float(value)) and float(value) >= at_least
    except ValueError:
        return False


def _is_ent_coef(value: Any) -> bool:
    if not isinstance(value, str) or not value.startswith("auto"):
        return _is_number(value, at_least=0) or _is_text_of_number(value, at_least=0)
    initial = value.removeprefix("auto_")
    return value == "auto" or (_is_text_of_number(initial) and float(initial) > 0)


def _is_target_entropy(value: Any) -> bool:
    return value == "auto" or _is_number(value) or _is_text_of_number(value)


def _is_train_freq(value: Any) -> bool:
    if not isinstance(value, tuple):
        return _is_int(value, at_least=1)
    return len(value) == 2 and _is_int(value[0], at_least=1) and getattr(value[1], "value", value[1]) in ("step", "episode")


def _is_net_arch(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == {"pi", "qf"} and all(
            isinstance(sizes, (list, tuple)) and _is_net_arch(list(sizes)) for sizes in value.values()
        )
    return isinstance(value, list) and all(_is_int(size, at_least=1) for size in value)


def _is_class_of(base: type) -> Callable[[Any], bool]:
    return lambda value: issubclass(value, base) if inspect.isclass(value) else callable(value)


_FRACTION: Rule = (lambda value: _is_number(value, at_least=0, at_most=1), "a number from 0 to 1")
LEARNING_RATE: Rule = (
    lambda value: callable(value) or _is_number(value, at_least=0),
    "a non-negative number, or a function of the remaining progress",
)
_RULES: dict[str, Rule] = {
    "learning_rate": LEARNING_RATE,
    "buffer_size": _integer(1),
    "learning_starts": _integer(0),
    "batch_size": _integer(1),
    "tau": _FRACTION,
    "gamma": _FRACTION,
    "train_freq": (_is_train_freq, 'an integer of at least 1, or a tuple such as (1, "step") or (2, "episode")'),
    "gradient_steps": (lambda value: _is_int(value, at_least=-1), "an integer of at least 0, or -1: one for each transition"),
    "n_steps": _integer(1),
    "ent_coef": (_is_ent_coef, '"auto", "auto_" and a positive number, such as "auto_0.1", or a non-negative number'),
    "target_update_interval": _integer(1),
    "target_entropy": (_is_target_entropy, '"auto" or a number'),
    "sde_sample_freq": (lambda value: _is_int(value, at_least=-1), "an integer of at least 1, or -1: at each rollout"),
    "stats_window_size": _integer(1),
    "seed": (lambda value: value is None or (_is_int(value, at_least=0) and value < 2**32), "an integer from 0 to 2**32 - 1"),
    "action_noise": (lambda value: value is None or isinstance(value, ActionNoise), "an ActionNoise, or None"),
    "replay_buffer_class": (
        lambda value: value is None or (inspect.isclass(value) and issubclass(value, ReplayBuffer)),
        "a subclass of ReplayBuffer, or None",
    ),
    "replay_buffer_kwargs": (lambda value: isinstance(value, dict), "a dictionary"),
}
_POLICY_RULES: dict[str, Rule] = {
    "net_arch": (
        lambda value: value is None or _is_net_arch(value),
        "a list of layer sizes, such as [256, 256], or a dictionary of two, dict(pi=[256], qf=[256])",
    ),
    "activation_fn": (_is_class_of(th.nn.Module), "a class of torch.nn modules, such as torch.nn.ReLU"),
    "n_critics": _integer(1),
    "optimizer_class": (_is_class_of(th.optim.Optimizer), "a class of torch.optim optimizers"),
    "optimizer_kwargs": (lambda value: value is None or isinstance(value, dict), "a dictionary"),
    "features_extractor_class": (_is_class_of(BaseFeaturesExtractor), "a subclass of BaseFeaturesExtractor"),
    "features_extractor_kwargs": (lambda value: value is None or isinstance(value, dict), "a dictionary"),
}


def check_early_arguments(device: Any, policy_kwargs: Any) -> None:
    """
    Those that the constructors of SB3 use at once.

    :param device: Device on which the code should run
    :param policy_kwargs: Arguments of the policy, or ``None``
    :raises ValueError: if one of them is of no use
    """
    try:
        if device != "auto":
            th.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or another one that torch knows, got {device!r}.") from error
    if policy_kwargs is not None and not isinstance(policy_kwargs, dict):
        raise ValueError(f"policy_kwargs must be a dictionary, got {policy_kwargs!r}.")


def check_arguments(model: CheckedSAC) -> None:
    """
    :param model: The model, before its networks are made; a number such as 1e6 becomes the integer that is meant
    :raises ValueError: if one of SAC's arguments is out of range, or two of them exclude each other
    """
    for name, rule in _RULES.items():
        attribute = "_stats_window_size" if name == "stats_window_size" else name
        value, (suits, _) = getattr(model, attribute), rule
        if isinstance(value, (float, np.floating)) and value.is_integer() and not suits(value) and suits(int(value)):
            # 1e6 is an integer to whoever writes it
            setattr(model, attribute, int(value))
            continue
        check(name, value, rule)
    for name, rule in _POLICY_RULES.items():
        if name in model.policy_kwargs:
            check(name, model.policy_kwargs[name], rule)
    _check_observation_space(model)
    check_action_space(model)
    _check_replay_buffer(model)


def check(name: str, value: Any, rule: Rule) -> None:
    """
    :param name: Name of the argument
    :param value: Its value
    :param rule: What it must be
    :raises ValueError: if it is not
    """
    suits, description = rule
    if not suits(value):
        raise ValueError(f"{name} must be {description}, got {value!r}.")


def _check_observation_space(model: SAC) -> None:
    space, policy = model.observation_space, model.policy_class
    has_own_extractor = policy in model.policy_aliases.values() and "features_extractor_class" not in model.policy_kwargs
    if has_own_extractor and issubclass(policy, CnnPolicy) and not isinstance(space, spaces.Box):
        raise ValueError(f"policy: CnnPolicy needs images, got {space}; use MlpPolicy, or MultiInputPolicy for Dict spaces.")
    normalized_image = not model.policy_kwargs.get("normalize_images", True)
    sees_images = has_own_extractor and issubclass(policy, MultiInputPolicy if isinstance(space, spaces.Dict) else CnnPolicy)
    # What SB3's buffers and its preprocessing cannot take
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        if isinstance(part, spaces.Box) and part.shape == ():
            raise ValueError(f"The observation space must have a dimension, got {part} of shape (). Use shape (1,).")
        if isinstance(part, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(part.start != 0):
            raise ValueError(f"The observation space must count from 0, got {part}. Subtract its start in the environment.")
        if isinstance(part, spaces.MultiDiscrete) and part.nvec.ndim > 1:
            raise ValueError(f"The observation space must be a vector, got {part}. Flatten it in the environment.")
        is_image = isinstance(part, spaces.Box) and is_image_space(part, normalized_image=normalized_image)
        if sees_images and is_image and min(part.shape[1:]) < 36:  # type: ignore[index]
            raise ValueError(
                f"policy: {policy.__name__} needs images of at least 36 x 36 pixels, got {part}. Enlarge them, or give a "
                "features_extractor_class. With normalize_images=False, whatever has three dimensions is an image."
            )


def _check_replay_buffer(model: SAC) -> None:
    buffer_class, space = model.replay_buffer_class, model.observation_space
    if buffer_class is not None:
        is_dict = isinstance(space, spaces.Dict)
        if issubclass(buffer_class, DictReplayBuffer) != is_dict:
            raise ValueError(f"replay_buffer_class={buffer_class.__name__} cannot hold observations of {space}.")
        goal_keys = {"observation", "achieved_goal", "desired_goal"}
        if issubclass(buffer_class, HerReplayBuffer) and not (
            isinstance(space, spaces.Dict) and goal_keys <= space.spaces.keys()
        ):
            raise ValueError(f"replay_buffer_class=HerReplayBuffer needs observations with {sorted(goal_keys)}, got {space}.")
    if model.optimize_memory_usage and model.n_steps > 1 and buffer_class is None:
        raise ValueError("optimize_memory_usage=True cannot be combined with n_steps > 1. Leave out one of the two.")
    if model.optimize_memory_usage and model.buffer_size // model.n_envs < 2:
        raise ValueError(
            f"buffer_size must be at least twice the number of environments with optimize_memory_usage=True, got "
            f"{model.buffer_size} for {model.n_envs}."
        )
