"""``MixedAC``: a docstring, a signature and the route. Everything else is in ``learner.py``."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.sac.policies import SACPolicy
from torch.distributions import Distribution

from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import Objective, mixed


class MixedAC(ActorCritic):
    """
    Maximum-entropy actor-critic whose gradient mixes the pathwise and the likelihood-ratio estimate of the same actions,
    each weighed by the inverse of its variance.

    Weights are estimated for each state and each parameter of the policy, on actions other than those they weigh, so that the
    mixture stays unbiased (after Parmas et al., 2018, https://arxiv.org/abs/1902.01240). It gains where Q is rough at the
    scale of the policy; where Q is smooth the pathwise route alone is as good and cheaper, see ``sb3_pathwise.routes.mixed``.
    Same objective as ``PathwiseAC``, same everything else.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a SACPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate of actor, critics and entropy coefficient,
        may be a function of the remaining progress (from 1 to 0)
    :param buffer_size: size of the replay buffer, in transitions
    :param learning_starts: how many steps of the model to collect transitions for before learning starts
    :param batch_size: Minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1)
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps, or as a tuple: ``(5, "step")``, ``(2, "episode")``
    :param gradient_steps: How many gradient steps after each rollout; ``-1``: as many as transitions were collected
    :param action_noise: the action noise type (None by default), added for hard exploration problems
    :param replay_buffer_class: Replay buffer class (for instance ``HerReplayBuffer``), chosen by itself if ``None``
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer at a cost of more complexity
    :param n_steps: When n_steps > 1, uses n-step return (with the NStepReplayBuffer) when updating the Q-value network
    :param ent_coef: Entropy regularization coefficient: "auto" to learn it, "auto_0.1" to start at 0.1, or fixed
    :param target_update_interval: update the target networks every ``target_update_interval`` gradient steps
    :param target_entropy: target entropy when learning ``ent_coef``; "auto": minus the number of action dimensions
    :param n_action_samples: actions drawn per state for the actor's gradient, at least 4
    :param baseline: what the likelihood ratio subtracts from Q: "leave_one_out" (mean of the other actions),
        "mean_action" (Q at the mean of the policy, one more evaluation), or "none"
    :param policy_delay: critic updates per actor and temperature update, counted over the whole training
    :param max_grad_norm: clips the norm of the actor's gradient and of the critics'; ``None``: no clipping
    :param precision: "float32", or "bfloat16": faster matrix products where the machine has instructions for them;
        parameters, optimizers, targets and log-probabilities stay in float32
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE;
        -1: only at the beginning of the rollout
    :param use_sde_at_warmup: Whether to use gSDE instead of uniform sampling during the warm up phase
    :param stats_window_size: Window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run; "auto": the GPU if possible
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range, or the policy's distribution has no ``rsample``
    """

    needs_rsample = True
    min_action_samples = 4
    supported_distributions = ("squashed_gaussian", "beta")
    route_arguments = ("n_action_samples", "baseline")

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        n_action_samples: int = 8,
        baseline: str = "leave_one_out",
        policy_delay: int = 1,
        max_grad_norm: float | None = None,
        precision: str = "float32",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})

    def actor_surrogate(self, dist: Distribution, objective: Objective) -> th.Tensor:
        return mixed(dist, objective, self.n_action_samples, self.baseline)
