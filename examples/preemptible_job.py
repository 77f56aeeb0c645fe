"""
A job that a cluster may stop at any time, and that ends, whatever happens to it, with the same bits in every parameter.

    python examples/preemptible_job.py checkpoints                             # to be started as often as it takes

Run it, kill it (`kill -9`, too), run it again. Told to go by SIGTERM, it saves at the end of the episode and goes: in Slurm,
`#SBATCH --requeue` and `#SBATCH --signal=TERM@120` give it two minutes for that. The last line is a checksum of all
parameters: however often the job was stopped, it is that of a job that never was.
"""

import argparse
import hashlib
import signal

from stable_baselines3.common.callbacks import BaseCallback

from sb3_pathwise import ExactCheckpointCallback, PathwiseAC, resume


class PrintEpisodes(BaseCallback):
    """Say how far we are at the end of every episode."""

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            print(f"step {self.num_timesteps}: an episode ends", flush=True)
        return True


def checksum(model: PathwiseAC) -> str:
    """
    :param model: A model
    :return: SHA-256 of all its networks' parameters
    """
    sha256 = hashlib.sha256()
    for parameter in model.policy.state_dict().values():
        sha256.update(parameter.cpu().numpy().tobytes())
    return sha256.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder for the checkpoints of this job")
    parser.add_argument("--total-timesteps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=2_000, help="steps between two checkpoints")
    arguments = parser.parse_args()

    checkpoint = ExactCheckpointCallback(arguments.folder, every=arguments.every)
    signal.signal(signal.SIGTERM, lambda *_: checkpoint.request_stop())

    try:
        model = resume(arguments.folder, "Pendulum-v1")
        print(f"goes on from step {model.num_timesteps}", flush=True)
    except FileNotFoundError:
        model = PathwiseAC("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs={"net_arch": [64, 64]})
    model.learn(arguments.total_timesteps, callback=[checkpoint, PrintEpisodes()])

    if model.num_timesteps < arguments.total_timesteps:
        print(f"saved, and stops before step {arguments.total_timesteps}: start it again")
    else:
        print(f"sha256 of the parameters: {checksum(model)}")


if __name__ == "__main__":
    main()
