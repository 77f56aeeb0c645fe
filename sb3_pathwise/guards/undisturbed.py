"""Evaluating a model in training without a trace: random streams, statistics and modes are as they were afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3 import SAC


@contextmanager
def undisturbed(model: SAC) -> Iterator[None]:
    """
    A context in which a model may be evaluated at will: when it ends, all that evaluation changes is as it was. Within it,
    random streams start from the model's seed and time step.

    :param model: Model whose actor and critics are evaluated; parameters are not covered
    """
    modules = {module: module.training for module in model.policy.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.policy.buffers()]
    # SB3's actor keeps its last distribution, and that of gSDE its exploration noise
    action_dist = vars(model.actor.action_dist).copy()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    seed = int(np.random.SeedSequence([model.seed or 0, model.num_timesteps]).generate_state(1)[0])
    devices = [] if model.device.type == "cpu" else [model.device]
    # Without devices any type will do, but for None, which PyTorch 2.11 does not know
    with th.random.fork_rng(devices, device_type=model.device.type if devices else "cuda"):
        try:
            random.seed(seed)
            np.random.seed(seed)
            # th.manual_seed() would reach devices that are not restored
            th.set_rng_state(th.Generator().manual_seed(seed).get_state())
            for device in devices:
                generator = th.Generator(device).manual_seed(seed)
                th.get_device_module(device).set_rng_state(generator.get_state(), device)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            vars(model.actor.action_dist).clear()
            vars(model.actor.action_dist).update(action_dist)
            with th.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for module, training in modules.items():
                module.training = training
