"""
Trainings that are killed by SIGKILL, in processes of their own, end with the bits of trainings that are left alone.

    python tests/kill_test.py random --kills 20     # at random moments, in twenty settings
    python tests/kill_test.py writing --kills 20    # each while a checkpoint is being written

It prints one line for each kill and ends with how many came out right; the exit status is 0 if all did.
"""

import argparse
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_pathwise import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.persistence import ExactCheckpointCallback, resume, storage

ALGORITHMS = {cls.__name__: cls for cls in (PathwiseAC, LikelihoodRatioAC, MeasureValuedAC, MixedAC)}
EPISODE = 25


def pendulum(n_envs: int = 1) -> VecEnv:
    return make_vec_env("Pendulum-v1", n_envs, env_kwargs={"max_episode_steps": EPISODE})


SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (
        lambda: gym.make("Pendulum-v1", max_episode_steps=EPISODE),
        {
            "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
            "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.1)),
        },
    ),
    "her": (
        lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=10),
        {"policy": "MultiInputPolicy", "replay_buffer_class": HerReplayBuffer, "learning_starts": 60},
    ),
    "n_steps": (lambda: gym.make("Pendulum-v1", max_episode_steps=EPISODE), {"n_steps": 3, "buffer_size": 300}),
    "four_envs": (lambda: pendulum(4), {"gradient_steps": -1, "use_sde": True}),
    "vec_normalize": (lambda: VecNormalize(pendulum(2)), {"gradient_steps": 2, "policy_delay": 2}),
}


def digest(model: ActorCritic) -> str:
    """
    Of every bit of networks, optimizers, temperature, replay buffer and counters.
    """
    sha256 = hashlib.sha256()

    def update(obj: Any) -> None:
        if isinstance(obj, dict):
            for key in sorted(obj, key=str):
                sha256.update(str(key).encode())
                update(obj[key])
        elif isinstance(obj, (list, tuple)):
            for item in obj:
                update(item)
        elif isinstance(obj, (th.Tensor, np.ndarray)):
            sha256.update((obj.detach().cpu().numpy() if isinstance(obj, th.Tensor) else obj).tobytes())
        else:
            sha256.update(repr(obj).encode())

    update(model.get_parameters())
    update([model.log_ent_coef, model.num_timesteps, model._n_updates])
    buffer = model.replay_buffer
    assert buffer is not None
    update([buffer.observations, buffer.actions, buffer.rewards, buffer.dones, buffer.pos, buffer.full])
    if model.get_vec_normalize_env() is not None:
        update([vars(model.get_vec_normalize_env().obs_rms)])
    return sha256.hexdigest()


def work(arguments: argparse.Namespace) -> None:
    """One process of a training: go on with it or start it, and end it unless killed."""
    th.set_num_threads(1)
    make_env, kwargs = SETTINGS[arguments.setting]
    try:
        model = resume(arguments.folder, make_env())
        print("resumed", model.num_timesteps, flush=True)
    except FileNotFoundError:
        tiny = {"policy": "MlpPolicy", "learning_starts": 40, "batch_size": 32, "buffer_size": 5_000, "seed": 0}
        policy_kwargs = {"net_arch": [arguments.width]}
        model = ALGORITHMS[arguments.algorithm](env=make_env(), policy_kwargs=policy_kwargs, **tiny | kwargs)
        print("started", flush=True)
    model.learn(arguments.total, callback=ExactCheckpointCallback(arguments.folder, every=arguments.every, keep=2))
    print("digest", digest(model), flush=True)


class Training:
    """
    Processes of one training.

    :param arguments: Of the worker, as on the command line
    """

    def __init__(self, **arguments: Any) -> None:
        self.command = [sys.executable, __file__, "work"]
        self.command += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        self.folder = Path(arguments["folder"])

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert process.stdout is not None
        line = ""
        while "started" not in line and "resumed" not in line:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("The worker ended before it began.")
        self.first_line = line.strip()
        return process

    def finish(self) -> str:
        """
        :return: the digest of the model in the end
        """
        output, _ = self.start().communicate()
        if "digest" not in output:
            raise RuntimeError(output)
        return str(output.split()[-1])


def kill_at_random_moments(n_kills: int, seed: int) -> int:
    """
    :param n_kills: Trainings to kill, each once
    :param seed: Of the moments
    :return: how many ended like the training that was left alone
    """
    rng = random.Random(seed)
    pairs = [(algorithm, setting) for algorithm in ALGORITHMS for setting in SETTINGS]
    rng.shuffle(pairs)
    n_right = 0
    for i in range(n_kills):
        algorithm, setting = pairs[i % len(pairs)]
        with tempfile.TemporaryDirectory() as folder:
            arguments = {"algorithm": algorithm, "setting": setting, "total": 800, "every": 75, "width": 16}
            alone = Training(folder=Path(folder) / "alone", **arguments)
            process, begin = alone.start(), time.perf_counter()
            expected = process.communicate()[0].split()[-1]
            duration = time.perf_counter() - begin

            killed = Training(folder=Path(folder) / "killed", **arguments)
            process, moment = killed.start(), rng.uniform(0.0, duration)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            was_killed = process.wait() == -signal.SIGKILL
            right = killed.finish() == expected
            n_right += right
            when = f"killed after {moment:.2f} s of {duration:.2f} s" if was_killed else "ended before it was killed"
            print(
                f"{algorithm:18} {setting:14} {when}, then {killed.first_line}: {'same' if right else 'OTHER'} bits",
                flush=True,
            )
    return n_right


def kill_while_writing(n_kills: int, seed: int) -> int:
    """
    One training, killed again and again while a checkpoint is half written.

    :param n_kills: How often
    :param seed: Of the moments
    :return: after how many kills there was a valid checkpoint to resume from; 0 if the end was another than that of a training
        that was left alone
    """
    rng = random.Random(seed)
    n_right = n_done = 0
    with tempfile.TemporaryDirectory() as folder:
        # Large networks, to be writing for a while
        arguments = {"algorithm": "PathwiseAC", "setting": "plain", "total": 75 * (n_kills + 6), "every": 25, "width": 512}
        expected = Training(folder=Path(folder) / "alone", **arguments).finish()
        killed = Training(folder=Path(folder) / "killed", **arguments)
        longest_wait = 0.02
        while n_done < n_kills:
            process = killed.start()
            # The first writes nothing that could be lost
            n_before, skip = 0, rng.randint(1, 2)
            seen: set[str] = set()
            while process.poll() is None:
                unfinished = [path.name for path in killed.folder.glob(".unfinished_*")]
                if unfinished and unfinished[0] not in seen:
                    seen.add(unfinished[0])
                    n_before += 1
                    if n_before > skip:
                        time.sleep(rng.uniform(0.0, longest_wait))
                        process.send_signal(signal.SIGKILL)
                        break
            process.wait()
            unfinished = list(killed.folder.glob(".unfinished_*"))
            if not unfinished:
                if "digest" in (process.stdout.read() if process.stdout else ""):
                    raise RuntimeError("The training was over before it was killed often enough.")
                # The checkpoint was whole by then: this machine writes faster than thought
                longest_wait /= 2
                continue
            n_done += 1
            written = sorted(path.name for path in unfinished[0].iterdir())
            valid = _is_valid(killed.folder)
            n_right += valid
            name = unfinished[0].name.removeprefix(".unfinished_")
            print(f"killed with {len(written)} files of {name} written: {'a' if valid else 'NO'} valid one before it")
        if killed.finish() != expected:
            print("OTHER bits in the end")
            return 0
        print("same bits in the end")
    return n_right


def _is_valid(folder: Path) -> bool:
    try:
        latest = storage.checkpoints(folder)[0]
        storage.verify(latest)
        pickle.loads((latest / "state.pkl").read_bytes())
        json.loads((latest / storage.MANIFEST).read_text())
    except (IndexError, ValueError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("random", "writing"):
        command = commands.add_parser(name)
        command.add_argument("--kills", type=int, default=20)
        command.add_argument("--seed", type=int, default=0)
    worker = commands.add_parser("work")
    for name in ("folder", "algorithm", "setting"):
        worker.add_argument(f"--{name}")
    for name in ("total", "every", "width"):
        worker.add_argument(f"--{name}", type=int)
    arguments = parser.parse_args()
    if arguments.command == "work":
        work(arguments)
        return
    kill = {"random": kill_at_random_moments, "writing": kill_while_writing}[arguments.command]
    n_right = kill(arguments.kills, arguments.seed)
    print(f"{n_right} of {arguments.kills}")
    sys.exit(n_right != arguments.kills)


if __name__ == "__main__":
    main()
