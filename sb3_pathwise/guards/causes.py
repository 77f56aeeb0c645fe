"""
What is behind an alarm: the batch, the weights and the scale of what is learned from are looked at, in this order, so that the
message names what was found rather than what is often found.

This runs once, when training stops anyway. What raises alarms is in ``finite.py``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3 import SAC

from sb3_pathwise.guards.finite import NonFiniteError, first_not_finite
from sb3_pathwise.guards.scale import is_readable, off_scale, replayed_arrays

# Parts of a batch, and how alarms call what they hold
_QUANTITIES = {
    "observations": "observation",
    "next_observations": "observation",
    "actions": "action",
    "rewards": "reward",
    "dones": "done",
    "discounts": "discount",
}


@contextmanager
def alarms_explained(model: SAC, seen: Sequence[Any] = (), may_blame_scale: bool = True) -> Iterator[None]:
    """
    A context in which an alarm gets the cause that is found.

    :param model: The model in training
    :param seen: The batches that it has learned from, the last one last
    :param may_blame_scale: Whether numbers far from unit scale are a cause of what may happen
    """
    try:
        yield
    except (NonFiniteError, ValueError) as error:
        # Torch's distributions refuse parameters that are not finite
        if not isinstance(error, NonFiniteError) and "found invalid values" not in str(error):
            raise
        alarm = error if isinstance(error, NonFiniteError) else NonFiniteError("action", model)
        batch = {name: getattr(seen[-1], name, None) for name in _QUANTITIES} if seen else {}
        explained = _explained(model, alarm, dict(_arrays(batch)), may_blame_scale)
        raise explained.with_traceback(error.__traceback__) from None


def _explained(model: SAC, alarm: NonFiniteError, batch: dict[str, np.ndarray], may_blame_scale: bool) -> NonFiniteError:
    for name, array in batch.items():
        if not np.isfinite(array).all():
            field = name.split(" ")[0]
            stored = _stored(model, field)
            where = f" (in the batch's {name}{_place(stored)}; seen in {alarm.quantity})"
            # A checkpoint may hold the same replay buffer
            return NonFiniteError(_QUANTITIES[field], model, where, _cause_of_batch(stored), trust_checkpoint=False)
    parameter = first_not_finite(model.policy.named_parameters())
    if parameter is not None:
        return NonFiniteError("parameter", model, f" ({parameter}; seen in {alarm.quantity})", spared="Load another model.")
    # The batch may have what the rows of the buffer that are looked at lack
    for arrays in (batch, replayed_arrays(model)) if may_blame_scale else ():
        found = [entry for entry in off_scale(arrays, also_small=False) if not entry[0].startswith("next_")]
        if found:
            findings = "; ".join(finding for _, finding, _ in found)
            remedies = " ".join(dict.fromkeys(remedy for *_, remedy in found))
            return NonFiniteError(
                alarm.quantity, model, alarm.where, f"{findings}. {remedies} If that is not it: {alarm.cause}", alarm.spared
            )
    return alarm


def _arrays(parts: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, part in parts.items():
        if isinstance(part, dict):
            yield from _arrays({f"{name} {key!r}": value for key, value in part.items()})
        elif part is not None:
            yield name, part.detach().cpu().numpy()


def _stored(model: SAC, field: str) -> np.ndarray | None:
    """
    Whether each transition of the replay buffer, of each environment, is finite in a field; ``None`` if that is not known.
    """
    if not is_readable(model):
        return None
    buffer: Any = model.replay_buffer
    # With optimize_memory_usage, next observations are the observations of the next row
    arrays: Any = getattr(buffer, field, buffer.observations if field == "next_observations" else None)
    if arrays is None:
        return None
    size = buffer.size()
    parts = arrays.values() if isinstance(arrays, dict) else [arrays]
    return np.logical_and.reduce([np.isfinite(part[:size]).reshape(size, model.n_envs, -1).all(axis=2) for part in parts])


def _place(finite: np.ndarray | None) -> str:
    if finite is None or finite.all():
        return ""
    row, env = np.argwhere(~finite)[0]
    return f": in {np.sum(~finite)} of {finite.size} transitions of the replay buffer, the first at [{row}, {env}]"


def _cause_of_batch(finite: np.ndarray | None) -> str:
    if finite is not None and not finite.all():
        return (
            "somebody else than this training has put it into the replay buffer, demonstrations for instance: alarms look at "
            "what a training stores. Check those numbers, and fill the buffer again."
        )
    return (
        "the replay buffer has made it of what it holds. Look at the statistics of VecNormalize, at compute_reward() if there "
        "are goals, or at a sample() of your own."
    )
