"""
Action spaces that SAC cannot use are refused; those that it explores badly are warned of, once.

SAC squashes its actions into the box and so explores all of it, whatever part of it the environment needs.
"""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from sb3_pathwise.guards.rollouts import CheckedSAC

# Half the width from which on a box is wide, and how much farther from 0 one end may be than the other
WIDE, ASYMMETRIC = 10.0, 10.0
_LIMIT = (
    "env = gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high)), or, of a VecEnv, "
    "venv.action_space = gymnasium.spaces.Box(low, high)"
)


class ActionBoundsError(ValueError, AssertionError):
    """Bounds between which no action can be computed. SB3 raises an AssertionError where they are infinite."""


def check_bounds(space: Any) -> None:
    """
    :param space: Action space
    :raises ActionBoundsError: if it is a box, and infinite or wider than its numbers can be
    """
    if not isinstance(space, spaces.Box):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(space.high - space.low).all():
            return
    found = "so far apart that high - low overflows" if np.isfinite([space.low, space.high]).all() else "infinite"
    raise ActionBoundsError(
        f"The action space must have finite bounds, since actions are squashed between them; those of {space} are {found}. "
        f"Limit them to what the environment can use, -1 and 1 for instance: {_LIMIT}. (RescaleAction comes after that, if at "
        "all: it maps finite bounds to others.)"
    )


def check_action_space(model: "CheckedSAC") -> None:
    """
    :param model: The model, before its networks are made
    :raises ValueError: if its actions are no vectors of floats between bounds, or its noise has another shape
    """
    space = model.action_space
    assert isinstance(space, spaces.Box)
    if space.dtype is None or space.dtype.kind != "f":
        raise ValueError(f"The action space must be of floats, got {space}. Round the actions in the environment.")
    check_bounds(space)
    if not (space.low < space.high).all():
        raise ValueError(f"The action space must have low < high in every dimension, got {space}. Leave the others out.")
    noise: Any = model.action_noise
    # Of SB3's kinds of noise, vectorized or not
    mean: Any = getattr(getattr(noise, "base_noise", noise), "_mu", None)
    try:
        fits = mean is None or np.broadcast_shapes(np.shape(mean), space.shape) == space.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"action_noise must have the shape of an action, {space.shape}, got {np.shape(mean)}.")
    _warn_of_bounds(model, space)


def _warn_of_bounds(model: "CheckedSAC", space: spaces.Box) -> None:
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    wide = high - low > 2 * WIDE
    asymmetric = (low < 0) & (high > 0) & (np.maximum(-low, high) > ASYMMETRIC * np.minimum(-low, high))
    if "action bounds" in model._warned_of or not (wide | asymmetric).any():
        return
    model._warned_of.append("action bounds")
    what, which = ("wide", int(wide.argmax())) if wide.any() else ("very asymmetric", int(asymmetric.argmax()))
    warnings.warn(
        f"The action space is {what} ({low[which]:g} to {high[which]:g} in dimension {which}), and SAC explores all of it: "
        f"first actions are uniform over the box, an untrained policy acts around {(low + high)[which] / 2:g}, the middle, "
        "and its entropy is held relative to the width. If the environment needs a small part of the box, hardly any action "
        "tried is of use; if it clips to one, nearly all are as extreme as can be. Then give it bounds that fit: limits of "
        "the actuators, or the 2.5 and 97.5 percentiles of the actions of something that works, such as PPO, a controller or "
        f"demonstrations (see https://araffin.github.io/post/tune-sac-isaac-sim), by {_LIMIT}. RescaleAction alone changes "
        "the numbers, not what is explored."
    )
