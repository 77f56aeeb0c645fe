"""
The learner that every gradient route shares: one constructor, the loop over gradient steps, save and load.

What an update does is in ``update.py``, who executes it in ``engines/``. What differs between algorithms is one attribute,
``ActorCritic.route``.
"""

import inspect
import io
import pathlib
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.sac.policies import SACPolicy
from torch.distributions import Distribution

from sb3_pathwise.contrib import adopt
from sb3_pathwise.critics import CRITICS, Critic
from sb3_pathwise.engines import choose_engine
from sb3_pathwise.guards import CheckedSAC, alarms_explained, check_descent, warn_of_scale, warn_of_traps
from sb3_pathwise.guards.own_arguments import (
    check_batch_size,
    check_critic,
    check_early_arguments,
    check_model,
    check_own_route,
    check_surrogate,
)
from sb3_pathwise.policies import CnnPolicy, DistributionPolicy, MlpPolicy, MultiInputPolicy
from sb3_pathwise.routes import Objective

# Arguments of the algorithm that are the route's, by its name for them
ROUTE_ARGUMENTS = {"n_action_samples": "n_samples", "baseline": "baseline"}
SelfActorCritic = TypeVar("SelfActorCritic", bound="ActorCritic")


class ActorCritic(CheckedSAC):
    """
    Off-policy maximum-entropy actor-critic whose actor's gradient is estimated by an exchangeable route.

    At replayed states s every subclass climbs ``J = E_{a ~ pi(.|s)} [Q(s, a) - ent_coef * log pi(a|s)]``, Q being the
    critic's conservative value, and differs only in how it estimates the gradient of the expectation::

        class MyAC(ActorCritic):
            "A docstring and a route are a whole algorithm."
            route = my_route

    It derives from SB3's SAC rather than from ``OffPolicyAlgorithm``: setup, buffers, policies and save lists are then SAC's
    own, checkpoints interchange, and whatever upstream mends is mended here. Only ``train`` is replaced, because SAC's cannot
    be entered half way.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a SACPolicy class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate of actor, critics and entropy coefficient,
        may be a function of the remaining progress (from 1 to 0)
    :param buffer_size: size of the replay buffer, in transitions
    :param learning_starts: how many steps of the model to collect transitions for before learning starts
    :param batch_size: Minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1), of critics that have target networks
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
    :param n_action_samples: actions drawn per state for the actor's gradient, the route's ``n_samples``; ``None``: as many as
        the route draws by itself
    :param baseline: what a likelihood ratio subtracts from Q: "leave_one_out" (mean of the state's other actions),
        "mean_action" (Q at the mean of the policy, one more evaluation), or "none" (for demonstration: the variance explodes
        with the size of Q); ``None``: the route's own
    :param policy_delay: critic updates per actor and temperature update, counted over the whole training as TD3 counts: with
        3, the actor takes its first step with the third update of the critics
    :param max_grad_norm: clips the norm of the actor's gradient and of the critics'; ``None``: no clipping
    :param precision: "float32", or "bfloat16": faster matrix products where the machine has instructions for them;
        parameters, optimizers, targets and log-probabilities stay in float32
    :param engine: who computes the update, never what is computed: "eager" (plain PyTorch, SB3's SAC bit for bit), "fused"
        (by hand, for stock networks on a CPU), "cuda_graph" (recorded and replayed), or "auto": the fastest proven one that
        can follow the model as it is
    :param qf_learning_rate: learning rate of the critics, may be a function of the remaining progress; ``None``: as
        ``learning_rate``
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE;
        -1: only at the beginning of the rollout
    :param use_sde_at_warmup: Whether to use gSDE instead of uniform sampling during the warm up phase
    :param stats_window_size: Window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see ``DistributionPolicy``
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run; "auto": the GPU if possible
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range, the route cannot use the policy's distribution, or the engine cannot
        run the model
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    #: The one thing in which algorithms differ: a function of the signature of ``sb3_pathwise.routes``
    route: ClassVar[Callable[..., th.Tensor]]
    #: Policy distributions that the route can use
    supported_distributions: ClassVar[tuple[str, ...]] = DistributionPolicy.distributions
    #: Fewest actions per state from which the route can be estimated
    min_action_samples: ClassVar[int] = 1
    #: Whether a Gaussian's entropy is left to the route, see ``objective.py``
    samples_gaussian_entropy: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A function in a class body would become a method
        if inspect.isfunction(cls.__dict__.get("route")):
            cls.route = staticmethod(cls.__dict__["route"])  # type: ignore[assignment]
        # What a class leaves to its route is no matter of a parent's
        if "route" in cls.__dict__:
            cls.samples_gaussian_entropy = cls.__dict__.get("samples_gaussian_entropy", False)

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
        n_action_samples: int | None = None,
        baseline: str | None = None,
        policy_delay: int = 1,
        max_grad_norm: float | None = None,
        precision: str = "float32",
        engine: str = "auto",
        qf_learning_rate: float | Schedule | None = None,
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
        check_early_arguments(type(self), policy, device, policy_kwargs)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class,
            replay_buffer_kwargs,
            optimize_memory_usage,
            n_steps,
            ent_coef,
            target_update_interval,
            target_entropy,
            use_sde,
            sde_sample_freq,
            use_sde_at_warmup,
            stats_window_size,
            tensorboard_log,
            policy_kwargs,
            verbose,
            seed,
            device,
            _init_setup_model=False,
        )
        self.n_action_samples = n_action_samples
        self.baseline = baseline
        self.policy_delay = policy_delay
        self.max_grad_norm = max_grad_norm
        self.precision = precision
        self.engine = engine
        self.qf_learning_rate = qf_learning_rate
        self.algorithm_name = type(self).__name__

        if _init_setup_model:
            self._setup_model()

    @classmethod
    def route_arguments(cls) -> dict[str, Any]:
        """
        :return: the arguments of the route that are the algorithm's too, by the algorithm's names, with the route's defaults
        """
        parameters = inspect.signature(cls.route).parameters if callable(getattr(cls, "route", None)) else {}
        defaults = {name: parameters[of_route].default for name, of_route in ROUTE_ARGUMENTS.items() if of_route in parameters}
        return {name: None if default is inspect.Parameter.empty else default for name, default in defaults.items()}

    def actor_surrogate(self, dist: Distribution, objective: Objective) -> th.Tensor:
        """
        The route with the algorithm's arguments. To override it, rather than to set ``route``, is for estimators that need
        more of the model than the distribution and the objective; only the eager engine runs those.

        :param dist: Distribution of the pre-squash actions, batch_shape (B,), event_shape (d,)
        :param objective: maps pre-squash actions (n, B, d) to values (n, B)
        :return: surrogate, shape (B,), as ``sb3_pathwise.routes`` defines it
        """
        arguments = {ROUTE_ARGUMENTS[name]: getattr(self, name) for name in self.route_arguments()}
        return type(self).route(dist, objective, **arguments)

    @property
    def critic_rule(self) -> Critic:
        """What the critic does, see ``sb3_pathwise.critics``; SAC's for policies that are not ours."""
        return getattr(self.policy, "critic_rule", None) or CRITICS["twin"]()

    def _setup_model(self) -> None:
        self._set_route_arguments()
        adopt(self)
        check_model(self)
        super()._setup_model()
        check_critic(self)
        check_own_route(self)
        choose_engine(self, at_construction=True)

    def _set_route_arguments(self) -> None:
        load_kwargs = self.__dict__.pop("_load_kwargs", None)
        is_foreign = load_kwargs is not None and self.algorithm_name != type(self).__name__
        defaults = self.route_arguments()
        for name in ROUTE_ARGUMENTS:
            # Of another route they mean something else
            value = load_kwargs.get(name) if is_foreign else getattr(self, name)
            setattr(self, name, defaults.get(name) if value is None else value)
        self.algorithm_name = type(self).__name__

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        self.qf_lr_schedule = None if self.qf_learning_rate is None else FloatSchedule(self.qf_learning_rate)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if self.qf_lr_schedule is not None:
            qf_learning_rate = self.qf_lr_schedule(self._current_progress_remaining)
            self.logger.record("train/qf_learning_rate", qf_learning_rate)
            update_learning_rate(self.critic.optimizer, qf_learning_rate)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        check_batch_size(self, batch_size)
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers += [self.ent_coef_optimizer]
        self._update_learning_rate(optimizers)

        assert self.replay_buffer is not None
        check_surrogate(self)
        warn_of_scale(self)
        engine = choose_engine(self)
        engine.begin(self)
        metrics: dict[str, list[th.Tensor | float]] = defaultdict(list)
        seen: list[ReplayBufferSamples] = []
        with alarms_explained(self, seen):
            for gradient_step in range(gradient_steps):
                replay_data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
                seen[:] = [replay_data]
                update_actor = (self._n_updates + gradient_step + 1) % self.policy_delay == 0
                update_targets = gradient_step % self.target_update_interval == 0
                for name, value in engine.update(self, replay_data, update_actor, update_targets).items():
                    metrics[name].append(value)
            engine.end(self)

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in metrics.items():
            self.logger.record(f"train/{name}", statistics.fmean(map(float, values)))
        warn_of_traps(self, gradient_steps)

    def check_descent(
        self, optimizer: th.optim.Optimizer, name: str, loss: th.Tensor, grad_norm: th.Tensor, **causes: th.Tensor
    ) -> None:
        """
        To be called between a backward pass and the optimizer's step.

        :param optimizer: The optimizer
        :param name: Name of the loss
        :param loss: Loss, a scalar without graph
        :param grad_norm: Norm of its gradient, a scalar
        :param causes: Tensors of any shape that the loss came from, by name, earliest first
        :raises NonFiniteError: if the loss or its gradient is not finite
        """
        check_descent(self, optimizer, name, loss, grad_norm, **causes)

    def learn(
        self: SelfActorCritic,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfActorCritic:
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name or type(self).__name__, reset_num_timesteps, progress_bar
        )

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfActorCritic], path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any
    ) -> SelfActorCritic:
        """
        Load a model that SAC, sb3-contrib's TQC or CrossQ, or any algorithm of sb3_pathwise has saved, see
        ``BaseAlgorithm.load``. It keeps its critic.

        Arguments of the route (``n_action_samples``, ``baseline``) come from the file only if this class wrote it;
        otherwise they take this class's defaults, since they mean something else to another route.

        :param path: Path to the file, or an open file
        :param args: Arguments of ``BaseAlgorithm.load``
        :param kwargs: Keyword arguments of ``BaseAlgorithm.load``, and constructor arguments to change
        :return: new model
        :raises ValueError: if the file holds a model of another family, or one whose policy the route cannot use
        """
        return super().load(path, *args, **kwargs, _load_kwargs=kwargs)
