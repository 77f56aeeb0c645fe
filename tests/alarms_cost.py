"""
What the alarms cost: CPU time of a thousand steps with them, and without them, in turn, in one process.

    python tests/alarms_cost.py                 # HalfCheetah-v5, PathwiseAC, all arguments as by default
    python tests/alarms_cost.py --env Pendulum-v1

Each thousand updates contain one look for traps. Prints the median of the ratios of neighbours; the exit status is 1 if it is
more than 1.02.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import torch as th
from stable_baselines3 import SAC

from sb3_pathwise import PathwiseAC, learner
from sb3_pathwise.guards import CheckedSAC, traps
from sb3_pathwise.learner import ActorCritic

STEPS = traps.UPDATES_BETWEEN_LOOKS
BOUND = 1.02


@contextmanager
def without_alarms() -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("check_descent", "warn_of_scale", "warn_of_traps"):
            stack.enter_context(patch.object(learner, name, lambda *_, **__: None))
        stack.enter_context(patch.object(learner, "alarms_explained", lambda *_: nullcontext()))
        for name in ("_setup_learn", "_sample_action", "_store_transition"):
            stack.enter_context(patch.object(CheckedSAC, name, getattr(SAC, name)))
        yield


def seconds(model: ActorCritic) -> float:
    begin = time.process_time()
    model.learn(STEPS, reset_num_timesteps=False)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--repetitions", type=int, default=12)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    model = PathwiseAC("MlpPolicy", arguments.env, seed=0, device="cpu")
    seconds(model)

    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(arguments.repetitions):
        # Each comes first as often as the other
        for with_alarms in (i % 2 == 0, i % 2 == 1):
            with ExitStack() as stack:
                if not with_alarms:
                    stack.enter_context(without_alarms())
                times[with_alarms].append(seconds(model))
    ratios = np.array(times[True]) / np.array(times[False])
    for with_alarms, durations in times.items():
        print(f"{'with' if with_alarms else 'without'} alarms: {1e3 * np.median(durations) / STEPS:.3f} ms of CPU time a step")
    low, high = np.quantile(ratios, (0.25, 0.75))
    print(f"{arguments.env}, {len(ratios)} pairs: median ratio {np.median(ratios):.4f}, quartiles {low:.4f} and {high:.4f}")
    sys.exit(bool(np.median(ratios) > BOUND))


if __name__ == "__main__":
    main()
