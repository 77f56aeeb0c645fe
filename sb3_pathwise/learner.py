"""
The learner that every gradient route shares: temperature, TD targets, critics, target networks, logging, checkpoints.

What differs between the algorithms is one method, ``ActorCritic.actor_surrogate``, which names a route of ``routes.py``.
"""

import inspect
import io
import itertools
import logging
import pathlib
import statistics
from abc import abstractmethod
from collections import defaultdict
from typing import Any, ClassVar, TypeVar, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.sac.policies import MultiInputPolicy as SACMultiInputPolicy
from stable_baselines3.sac.policies import SACPolicy
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from sb3_pathwise.cuda_graph import CapturableAdam, GraphedUpdate, reason_not_to_capture, sample_on_host
from sb3_pathwise.distributions import PolicyDistribution, policy_distribution, squashed_gaussian
from sb3_pathwise.fast import (
    PRECISIONS,
    FusedMLP,
    GaussianNetwork,
    LeanAdam,
    autocast_module,
    fuse_mlps,
    fused_q_networks,
    scalar,
    warn_if_slow,
)
from sb3_pathwise.guards import (
    CheckedSAC,
    DeferredChecks,
    check_arguments,
    check_descent,
    check_early_arguments,
    warn_of_traps,
)
from sb3_pathwise.policies import (
    CnnPolicy,
    DistributionPolicy,
    MlpPolicy,
    MultiInputPolicy,
    extract_features,
    min_q_function,
)
from sb3_pathwise.routes import BASELINES, Objective

# Inputs of the layers of the actor's network, and its outputs
Trace = tuple[list[th.Tensor], list[th.Tensor]]
SelfActorCritic = TypeVar("SelfActorCritic", bound="ActorCritic")


class ActorCritic(CheckedSAC):
    """
    Off-policy maximum-entropy actor-critic whose actor's gradient is estimated by an exchangeable route.

    At replayed states s every subclass climbs ``J = E_{a ~ pi(.|s)} [Q(s, a) - ent_coef * log pi(a|s)]``, Q being the
    smallest of the critics, and differs only in how it estimates the gradient of the expectation.

    It derives from SB3's SAC rather than from ``OffPolicyAlgorithm``: constructor, setup, buffers, policies and save
    lists are then SAC's own, checkpoints interchange, and whatever upstream mends is mended here. Only ``train`` is
    replaced, because SAC's cannot be entered half way.

    :param n_action_samples: Actions drawn per state for the actor's gradient and the temperature's
    :param baseline: Baseline of the likelihood ratio, see ``sb3_pathwise.routes.likelihood_ratio``;
        ``None`` for routes without one
    :param policy_delay: Critic updates per actor and temperature update, counted over the whole training
    :param max_grad_norm: Largest norm of the actor's and of the critics' gradient, each clipped on its own;
        ``None`` does not clip
    :param precision: "float32" or "bfloat16", of the matrix products between hidden layers and of feature extractors
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    :param kwargs: SAC's arguments, by name
    :raises ValueError: if an argument is out of range, or the policy or its distribution does not suit the algorithm
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    # Policy distributions that the route can use
    supported_distributions: ClassVar[tuple[str, ...]] = DistributionPolicy.distributions
    # Fewest actions per state from which the route can be estimated
    min_action_samples: ClassVar[int] = 1
    # Whether the route differentiates through the sampled action
    needs_rsample: ClassVar[bool]
    # Whether a Gaussian's entropy is left to the route: the pathwise derivative of its sampled log-probability is that of
    # the closed form already, and SAC's to the last bit
    samples_gaussian_entropy: ClassVar[bool] = False
    # Arguments of the route: meaningless to another one, so they do not travel with a checkpoint of another class
    route_arguments: ClassVar[tuple[str, ...]] = ("n_action_samples",)

    def __init__(
        self,
        *,
        n_action_samples: int,
        baseline: str | None = None,
        policy_delay: int = 1,
        max_grad_norm: float | None = None,
        precision: str = "float32",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        self._check_policy_class(kwargs["policy"])
        check_early_arguments(kwargs["device"], kwargs["policy_kwargs"])
        super().__init__(**kwargs | {"_init_setup_model": False})
        self.n_action_samples = n_action_samples
        if baseline is not None:
            self.baseline = baseline
        self.policy_delay = policy_delay
        self.max_grad_norm = max_grad_norm
        self.precision = precision
        self.algorithm_name = type(self).__name__

        if _init_setup_model:
            self._setup_model()

    @abstractmethod
    def actor_surrogate(self, dist: Distribution, objective: Objective) -> th.Tensor:
        """
        The one thing in which algorithms differ: the route to the gradient of ``E_dist[objective]``.

        :param dist: Distribution of the pre-squash actions, batch_shape (B,), event_shape (d,)
        :param objective: maps pre-squash actions (n, B, d) to values (n, B)
        :return: surrogate, shape (B,), as ``sb3_pathwise.routes`` defines it
        """

    def _setup_model(self) -> None:
        self._reset_foreign_route_arguments()
        self._check_arguments()
        super()._setup_model()
        self._make_fast()

    def _make_fast(self) -> None:
        """Replace networks and optimizers by faster ones with the same parameters, state dictionaries and arithmetic."""
        dtype = PRECISIONS[self.precision]
        self._fused_mlps = fuse_mlps(self.policy, dtype)
        if dtype != th.float32:
            warn_if_slow(dtype, self.device)
            extractors = {self.actor.features_extractor, self.critic.features_extractor, self.critic_target.features_extractor}
            for extractor in extractors:
                autocast_module(extractor, dtype)
        reason = reason_not_to_capture(self)
        if reason is not None and self.device.type == "cuda":
            logging.getLogger(__name__).info("The update is not replayed as a CUDA graph: %s", reason)
        adam = CapturableAdam if reason is None else LeanAdam
        self.actor.optimizer = adam.of(self.actor.optimizer)
        self.critic.optimizer = adam.of(self.critic.optimizer)
        if self.ent_coef_optimizer is not None:
            self.ent_coef_optimizer = adam.of(self.ent_coef_optimizer)
        self._graphed_update: GraphedUpdate | None = None
        if reason is None:
            self._graphed_update = GraphedUpdate(self, self._update, DeferredChecks(self.device))
        # What is differentiated by hand: networks whose inputs need no gradient
        self._q_networks = fused_q_networks(self.critic)
        self._gaussian_network = GaussianNetwork(self.actor) if GaussianNetwork.supports(self.actor) else None
        # Walking through the modules at every step would cost more than the average itself
        self._params: list[th.Tensor] = list(self.critic.parameters())
        self._target_params: list[th.Tensor] = list(self.critic_target.parameters())

    def _check_policy_class(self, policy: str | type) -> None:
        if not isinstance(policy, str) and not (isinstance(policy, type) and issubclass(policy, SACPolicy)):
            raise ValueError(
                f"policy: {getattr(policy, '__name__', repr(policy))} is not a SACPolicy. {type(self).__name__} takes SAC's "
                "policies, and loads models saved by SAC or by another algorithm of sb3_pathwise; load other models with "
                "their own class."
            )

    def _check_arguments(self) -> None:
        self._check_policy_class(self.policy_class)
        check_arguments(self)
        if issubclass(self.policy_class, SACMultiInputPolicy) and not isinstance(self.observation_space, spaces.Dict):
            raise ValueError(
                f"policy: MultiInputPolicy needs a Dict observation space, not {self.observation_space}; "
                "use MlpPolicy (vectors) or CnnPolicy (images)."
            )
        distribution = self.policy_kwargs.get("distribution", "squashed_gaussian")
        if distribution in DistributionPolicy.distributions and distribution not in self.supported_distributions:
            others = [cls.__name__ for cls in ActorCritic.__subclasses__() if distribution in cls.supported_distributions]
            raise ValueError(
                f"distribution={distribution!r} cannot be used by {type(self).__name__}, whose gradient needs one of "
                f"{', '.join(self.supported_distributions)}. Use {' or '.join(others)} with it."
            )
        for name, at_least in (("n_action_samples", self.min_action_samples), ("policy_delay", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < at_least:
                raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}.")
        if "baseline" in self.route_arguments:
            if self.baseline not in BASELINES:
                raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {self.baseline!r}.")
            if self.baseline == "leave_one_out" and self.n_action_samples == 1:
                raise ValueError(
                    "baseline='leave_one_out' compares an action with the others of its state and needs "
                    "n_action_samples of at least 2, got 1. Draw more, or use baseline='mean_action'."
                )
        if self.max_grad_norm is not None and not (isinstance(self.max_grad_norm, (int, float)) and self.max_grad_norm > 0):
            raise ValueError(f"max_grad_norm must be positive, or None not to clip, got {self.max_grad_norm!r}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {' or '.join(map(repr, PRECISIONS))}, got {self.precision!r}.")

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers += [self.ent_coef_optimizer]
        self._update_learning_rate(optimizers)
        for network in self._fused_mlps:
            network.forget_casts()
        if self._graphed_update is not None:
            self._graphed_update.follow_schedules()

        metrics: dict[str, list[th.Tensor]] = defaultdict(list)
        for gradient_step in range(gradient_steps):
            replay_data = self._sample(batch_size)
            update_actor = (self._n_updates + gradient_step) % self.policy_delay == 0
            update_targets = gradient_step % self.target_update_interval == 0
            update = self._graphed_update or self._update
            for name, value in update(replay_data, update_actor, update_targets).items():
                metrics[name].append(value)

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        flat = iter(th.stack(list(itertools.chain(*metrics.values()))).tolist())
        for name, values in metrics.items():
            self.logger.record(f"train/{name}", statistics.fmean(itertools.islice(flat, len(values))))
        if self._graphed_update is not None:
            self._graphed_update.checks.raise_if_any(self)
        warn_of_traps(self, gradient_steps)

    def _sample(self, batch_size: int) -> ReplayBufferSamples:
        assert self.replay_buffer is not None
        if self._graphed_update is None:
            samples = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        else:
            samples = sample_on_host(self.replay_buffer, batch_size, self._vec_normalize_env)
        if isinstance(samples.observations, th.Tensor) and samples.observations.dtype == th.float64:
            # Once, instead of at each of five uses
            return samples._replace(
                observations=samples.observations.float(), next_observations=samples.next_observations.float()
            )
        return samples

    def _update(self, replay_data: ReplayBufferSamples, update_actor: bool, update_targets: bool) -> dict[str, th.Tensor]:
        """
        One gradient step.

        :param replay_data: Batch of transitions
        :param update_actor: Whether the actor and the temperature take a step too
        :param update_targets: Whether the target networks follow
        :return: what to log, scalars without gradient that stay on the device
        """
        if self.use_sde:
            self.actor.reset_noise()
        ent_coef = self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp().squeeze()
        metrics = {"ent_coef": ent_coef}
        policy_dist, next_dist, trace = self._policies(replay_data, update_actor)
        if policy_dist is not None:
            # Drawn here, before the target's actions, to take the random numbers in SAC's order
            x = self._draw(policy_dist, self.n_action_samples)
        metrics |= self._update_critic(replay_data, next_dist, ent_coef)
        if policy_dist is not None:
            metrics |= self._update_actor(replay_data.observations, policy_dist, x, ent_coef, trace)
        if update_targets:
            self._update_targets()
        return metrics

    def _policies(
        self, replay_data: ReplayBufferSamples, update_actor: bool
    ) -> tuple[PolicyDistribution | None, PolicyDistribution, Trace | None]:
        """
        The policy at the states that the actor learns from, and at those that follow.

        :param replay_data: Batch of transitions, size B
        :param update_actor: Whether the former is needed
        :return: The policy at the observations, or ``None``; at the next observations, without graph; the actor's trace if its
            network is kept out of the graph because it can be differentiated by hand
        """
        if self._gaussian_network is None:
            policy_dist = policy_distribution(self.actor, replay_data.observations) if update_actor else None
            with th.no_grad():
                return policy_dist, policy_distribution(self.actor, replay_data.next_observations), None
        features = extract_features(self.actor, replay_data.next_observations)
        if update_actor:
            # At once: products are rounded row by row
            features = th.cat([extract_features(self.actor, replay_data.observations), features])
        activations, outputs = self._gaussian_network.evaluate(features, use="actor")
        n_rows = len(replay_data.actions)
        next_mean_actions, next_log_std = (output[-n_rows:] for output in outputs)
        next_dist = squashed_gaussian(next_mean_actions, next_log_std)
        if not update_actor:
            return None, next_dist, None
        leaves = [output[:n_rows].requires_grad_() for output in outputs]
        mean_actions, log_std = leaves
        policy_dist = squashed_gaussian(mean_actions, log_std)
        return policy_dist, next_dist, ([activation[:n_rows] for activation in activations], leaves)

    def _draw(self, policy_dist: PolicyDistribution, n_samples: int) -> th.Tensor:
        draw = policy_dist.base.rsample if self.needs_rsample else policy_dist.base.sample
        return draw(th.Size((n_samples,)))

    def _update_critic(
        self, replay_data: ReplayBufferSamples, next_dist: PolicyDistribution, ent_coef: th.Tensor
    ) -> dict[str, th.Tensor]:
        # For n-step replay, discount factor is gamma**n_steps (when no early termination)
        discounts = replay_data.discounts if replay_data.discounts is not None else self.gamma
        with th.no_grad():
            next_x = next_dist.base.rsample() if next_dist.base.has_rsample else next_dist.base.sample()
            next_actions, next_log_prob = next_dist.squash_with_log_prob(next_x)
            next_q_values = self._target_critics(replay_data.next_observations, next_actions)
            next_v_values = next_q_values.min(dim=1, keepdim=True).values - ent_coef * next_log_prob.unsqueeze(1)
            target_q_values = replay_data.rewards + (1 - replay_data.dones) * discounts * next_v_values

        if self._q_networks is None:
            current_q_values = self.critic(replay_data.observations, replay_data.actions)
            critic_loss = 0.5 * th.stack([F.mse_loss(current_q, target_q_values) for current_q in current_q_values]).sum()
            self._backward(critic_loss, self.critic.optimizer)
        else:
            critic_loss = self._backward_by_hand(replay_data, target_q_values, self._q_networks)
        critic_loss = critic_loss.detach()
        critic_grad_norm = self._step(self.critic.optimizer, "critic_loss", critic_loss, target=target_q_values)
        return {"critic_loss": critic_loss, "critic_grad_norm": critic_grad_norm}

    def _target_critics(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        if self._q_networks is None:
            return th.cat(self.critic_target(obs, actions), dim=1)
        features = extract_features(self.critic_target, obs)
        qvalue_input = th.cat([features, actions], dim=1)
        q_networks = cast(list[FusedMLP], self.critic_target.q_networks)
        return th.cat([q_net.evaluate(qvalue_input, use=0)[-1] for q_net in q_networks], dim=1)

    @th.no_grad()
    def _backward_by_hand(
        self, replay_data: ReplayBufferSamples, target_q_values: th.Tensor, q_networks: list[FusedMLP]
    ) -> th.Tensor:
        """
        The critics' loss and its gradient, one network after the other: each then finds its activations in the cache.

        :param replay_data: Batch of transitions, size B
        :param target_q_values: shape (B, 1)
        :param q_networks: The critics' networks
        :return: Loss, a scalar
        """
        features = extract_features(self.critic, replay_data.observations)
        qvalue_input = th.cat([features, replay_data.actions], dim=1)
        losses = []
        for q_net in q_networks:
            activations = q_net.evaluate(qvalue_input, use=0)
            current_q = activations[-1]
            td_error = current_q - target_q_values
            losses.append((td_error * td_error).mean())
            # Of half the squared error, averaged over the batch
            q_net.backward(td_error * (1 / len(td_error)), activations, weights=True, inputs=False)
        return 0.5 * th.stack(losses).sum()

    def _update_actor(
        self,
        obs: PyTorchObs,
        policy_dist: PolicyDistribution,
        x: th.Tensor,
        ent_coef: th.Tensor,
        trace: Trace | None,
    ) -> dict[str, th.Tensor]:
        entropy_base = self._entropy_base(policy_dist.base)
        # At this draw it is needed for the temperature, and by the pathwise route again, with its graph
        with th.set_grad_enabled(self.needs_rsample and entropy_base is None):
            actions_pi, log_prob_with_graph = policy_dist.squash_with_log_prob(x)
        log_prob = log_prob_with_graph.detach()
        metrics = {"entropy": -log_prob.mean()}
        objective = self._objective(
            obs, policy_dist, ent_coef, with_base=entropy_base is None, known=(x, actions_pi, log_prob_with_graph)
        )
        surrogate = self.actor_surrogate(policy_dist.with_draw(x), objective)
        # Logged with the sampled entropy on every route, as SAC does: minus the Monte Carlo estimate of J
        metrics["actor_loss"] = -surrogate.detach().mean()
        if entropy_base is not None:
            surrogate = surrogate + ent_coef * entropy_base
            metrics["actor_loss"] += ent_coef * policy_dist.base.log_prob(x).detach().mean()
        self._backward(-surrogate.mean(), self.actor.optimizer, trace)
        metrics["actor_grad_norm"] = self._step(self.actor.optimizer, "actor_loss", surrogate.detach().mean())

        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            # The log of the coefficient, as in SAC, see https://github.com/rail-berkeley/softlearning/issues/37.
            # The loss is linear in it, so its gradient needs no graph
            assert isinstance(self.target_entropy, float)
            self.log_ent_coef.grad = -(log_prob + self.target_entropy).mean().reshape(1)
            metrics["ent_coef_loss"] = (self.log_ent_coef.detach() * self.log_ent_coef.grad).squeeze()
            self._check(self.ent_coef_optimizer, "ent_coef_loss", metrics["ent_coef_loss"], self.log_ent_coef.grad)
            self.ent_coef_optimizer.step()
        return metrics

    def _entropy_base(self, base: Distribution) -> th.Tensor | None:
        """
        The entropy before squashing, where it is known in closed form and the route would have to estimate it.

        ``H[pi] = H[base] + E[log |d actions / d x|]``: adding the first term in closed form leaves the route less to
        estimate, without bias (Rao-Blackwell).

        :param base: Distribution of the pre-squash actions
        :return: shape (B,), or ``None`` if it stays in the objective
        """
        if self.samples_gaussian_entropy and isinstance(base, Independent) and isinstance(base.base_dist, Normal):
            return None
        try:
            return base.entropy()
        except NotImplementedError:
            return None

    def _objective(
        self,
        obs: PyTorchObs,
        policy_dist: PolicyDistribution,
        ent_coef: th.Tensor,
        with_base: bool,
        known: tuple[th.Tensor, th.Tensor, th.Tensor] | None = None,
    ) -> Objective:
        """
        The integrand of J as a function of pre-squash actions.

        :param obs: Observations, batch size B
        :param policy_dist: The policy at ``obs``
        :param ent_coef: Entropy coefficient, a scalar
        :param with_base: Whether it includes ``-ent_coef * log base(x)``
        :param known: Pre-squash actions for which actions and log-probabilities are known, and these
        :return: maps pre-squash actions (n, B, d) to values (n, B)
        """
        min_qf = min_q_function(self.critic, obs)

        def objective(x: th.Tensor) -> th.Tensor:
            if with_base and known is not None and x is known[0]:
                _, actions_pi, log_prob = known
                return min_qf(actions_pi) - ent_coef * log_prob
            actions_pi = policy_dist.squash(x)
            if with_base:
                return min_qf(actions_pi) - ent_coef * policy_dist.log_prob(x, actions_pi)
            return min_qf(actions_pi) + ent_coef * policy_dist.log_abs_det_jacobian(x, actions_pi)

        return objective

    def _backward(self, loss: th.Tensor, optimizer: th.optim.Optimizer, trace: Trace | None = None) -> None:
        """
        Gradients for one step of an optimizer. Only its own parameters receive them: the actor's step spends no backward pass
        on the critics' weights.

        :param loss: Loss, a scalar
        :param optimizer: Optimizer of the parameters to change
        :param trace: What ``_policies`` returned with the actor's policy
        """
        if trace is None or self._gaussian_network is None:
            optimizer.zero_grad()
            loss.backward(inputs=self._trainable(optimizer))
        else:
            activations, outputs = trace
            self._gaussian_network.backward(th.autograd.grad(loss, outputs), activations)

    def _step(self, optimizer: th.optim.Optimizer, name: str, loss: th.Tensor, **causes: th.Tensor) -> th.Tensor:
        """
        One step of an optimizer.

        :param optimizer: Optimizer, its parameters having gradients
        :param name: Name of the loss
        :param loss: Loss, a scalar
        :param causes: Tensors that the loss came from, by name, earliest first: one of them may be to blame
        :return: norm of the gradient, before clipping
        :raises NonFiniteError: if the loss or its gradient is not finite; nothing has changed then
        """
        params = self._trainable(optimizer)
        if isinstance(optimizer, LeanAdam):
            grads = optimizer.gather_grads()
        else:
            grads = [param.grad for param in params if param.grad is not None]
        grad_norm = th.linalg.vector_norm(grads[0]) if len(grads) == 1 else th.nn.utils.get_total_norm(grads)
        self._check(optimizer, name, loss, grad_norm, **causes)
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grads_with_norm_(params, self.max_grad_norm, grad_norm)
        optimizer.step()
        return grad_norm

    def _check(
        self, optimizer: th.optim.Optimizer, name: str, loss: th.Tensor, grad_norm: th.Tensor, **causes: th.Tensor
    ) -> None:
        if self._graphed_update is None:
            check_descent(self, name, loss, grad_norm, **causes)
        else:
            self._graphed_update.checks.check(optimizer, name, loss, grad_norm, **causes)

    @staticmethod
    def _trainable(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
        return [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]

    def _update_targets(self) -> None:
        with th.no_grad():
            # polyak_update() with one call for all tensors, rounded alike
            th._foreach_mul_(self._target_params, scalar(1 - self.tau, self._target_params[0].dtype, self.device))
            th._foreach_add_(self._target_params, self._params, alpha=self.tau)
        # Running statistics of batch norm are copied, see SB3 #996
        polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

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

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_params",
            "_target_params",
            "_q_networks",
            "_gaussian_network",
            "_fused_mlps",
            "_graphed_update",
        ]

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfActorCritic], path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any
    ) -> SelfActorCritic:
        """
        Load a model that SAC or any algorithm of sb3_pathwise has saved, see ``BaseAlgorithm.load``.

        Arguments of the route (``n_action_samples``, ``baseline``) come from the file only if this class wrote it;
        otherwise they take this class's defaults, since they mean something else to another route.

        :param path: Path to the file, or an open file
        :param args: Arguments of ``BaseAlgorithm.load``
        :param kwargs: Keyword arguments of ``BaseAlgorithm.load``, and constructor arguments to change
        :return: new model
        :raises ValueError: if the file holds a model of another family, or one whose policy the route cannot use
        """
        return super().load(path, *args, **kwargs, _load_kwargs=kwargs)

    def _reset_foreign_route_arguments(self) -> None:
        load_kwargs = self.__dict__.pop("_load_kwargs", None)
        if load_kwargs is not None and self.algorithm_name != type(self).__name__:
            parameters = inspect.signature(type(self)).parameters
            for name in self.route_arguments:
                setattr(self, name, load_kwargs.get(name, parameters[name].default))
        self.algorithm_name = type(self).__name__
