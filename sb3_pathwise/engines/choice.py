"""Which engine runs a model: chosen by reasons, and chosen again when the model has changed."""

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sb3_pathwise.engines.base import Engine
from sb3_pathwise.engines.cuda_graph import CudaGraphEngine
from sb3_pathwise.engines.eager import EagerEngine
from sb3_pathwise.engines.fingerprint import fingerprint
from sb3_pathwise.engines.fused import FusedEngine

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

#: By name, the fastest first
ENGINES: dict[str, type[Engine]] = {"cuda_graph": CudaGraphEngine, "fused": FusedEngine, "eager": EagerEngine}
# Not chosen by itself
OPT_IN = ("cuda_graph",)

_log = logging.getLogger(__name__)


@dataclass
class _Choice:
    engine: Engine
    fingerprint: tuple[Any, ...]


# Beside the models, so that none of it is in a copy, a checkpoint or a pickle
_CHOICES: "WeakKeyDictionary[ActorCritic, _Choice]" = WeakKeyDictionary()


def choose_engine(model: "ActorCritic", at_construction: bool = False) -> Engine:
    """
    The engine of ``model.engine``; for "auto" the fastest that has no reason against the model as it is now. The choice is
    remembered until the model changes.

    :param model: The model, its networks and optimizers being made
    :param at_construction: Whether an engine for ``model.precision`` is to be insisted on: later, after a change that none can
        follow, the plain update runs
    :return: the engine; at construction none is made
    :raises ValueError: if there is no such engine; if a named one cannot run the model, with the reason; at construction, if
        none can in the precision
    """
    if model.engine not in ("auto", *ENGINES):
        raise ValueError(f"engine must be 'auto' or one of {', '.join(ENGINES)}, got {model.engine!r}.")
    prints = fingerprint(model)
    choice = _CHOICES.get(model)
    if choice is not None and choice.fingerprint == prints:
        return choice.engine
    names = [name for name in ENGINES if name not in OPT_IN] if model.engine == "auto" else [model.engine]
    reasons = {}
    for name in names:
        reason = _reason_not(model, name)
        if reason is None:
            break
        reasons[name] = reason
        _log.info("%s is not run by the %s engine: %s", type(model).__name__, name, reason)
    else:
        text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        if model.engine != "auto":
            raise ValueError(
                f"engine={model.engine!r} cannot run this model: {text}. Use engine='auto', which takes the fastest that can."
            )
        if at_construction:
            raise ValueError(
                f"precision={model.precision!r}: no engine can run this model in it ({text}). Use precision='float32'."
            )
        warnings.warn(f"precision={model.precision!r}: no engine can run this model in it any more, float32 is used ({text}).")
        name = "eager"
    # An untrained model stays as it is: engines may create the state of its optimizers
    engine = EagerEngine(model) if at_construction else ENGINES[name](model)
    # Taken anew: an engine may have created the state of an optimizer
    if not at_construction:
        _CHOICES[model] = _Choice(engine, fingerprint(model))
    return engine


def _reason_not(model: "ActorCritic", name: str) -> str | None:
    engine = ENGINES[name]
    if model.precision not in engine.precisions:
        return f"it computes in {' or '.join(engine.precisions)} only"
    return engine.reason_not(model)
