"""
SB3's callbacks: evaluate while training, keep the best model, stop once it is good enough, save checkpoints on the way.

    python examples/evaluation_callbacks.py
"""

import argparse
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_pathwise import PathwiseAC

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=10_000, help="at most")
parser.add_argument("--eval-freq", type=int, default=500, help="steps between evaluations, and between checkpoints")
parser.add_argument("--threshold", type=float, default=-200.0, help="mean return to stop at")
parser.add_argument("--output", type=Path, default=Path("runs/evaluation_callbacks"), help="folder to write to")
args = parser.parse_args()

evaluation = EvalCallback(
    make_vec_env("Pendulum-v1", seed=1_000),
    n_eval_episodes=10,
    eval_freq=args.eval_freq,
    best_model_save_path=str(args.output),
    log_path=str(args.output),
    callback_on_new_best=StopTrainingOnRewardThreshold(args.threshold),
)
checkpoints = CheckpointCallback(args.eval_freq, save_path=str(args.output / "checkpoints"))
model = PathwiseAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, learning_starts=1_000, seed=0)
model.learn(args.timesteps, callback=[evaluation, checkpoints])

history = np.load(args.output / "evaluations.npz")
for steps, returns in zip(history["timesteps"], history["results"].mean(axis=1), strict=True):
    print(f"step {steps}: mean return {returns:.0f}")
print(f"ended at step {model.num_timesteps}")

best = PathwiseAC.load(args.output / "best_model.zip")
mean_return, std = evaluate_policy(best, make_vec_env("Pendulum-v1", seed=2_000), n_eval_episodes=20)
print(f"best model: {mean_return:.0f} +/- {std:.0f}")
