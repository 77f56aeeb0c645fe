"""
Diagnostics that watch a training from the outside. Nothing here changes what is learned.

The routes that are measured live in ``routes.py``, the objective that they climb in ``learner.py``.
"""

import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

from sb3_pathwise.distributions import PolicyDistribution, policy_distribution
from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.likelihood_ratio_ac import LikelihoodRatioAC
from sb3_pathwise.measure_valued_ac import MeasureValuedAC
from sb3_pathwise.mixed_ac import MixedAC
from sb3_pathwise.pathwise_ac import PathwiseAC


class GradientProbeCallback(BaseCallback):
    """
    Measure, while a model trains, how noisy the actor's gradient is, and how noisy it would be along other routes.

    What is measured is the gradient that would be *applied* (before any clipping): that of the mean surrogate over a batch,
    with respect to all parameters that the actor's optimizer holds, and not a proxy in the space of actions, which can
    mislead (Tucker et al., 2018, https://arxiv.org/abs/1802.10031). A measurement takes one batch of replayed states, the
    current actor, critics and entropy coefficient, and draws n independent gradients g_1, ..., g_n for every route, as one
    update after the other would draw them. Writing g for their mean, it logs

    - ``gradient/<route>/variance``: the unbiased estimate of ``E |g_1 - E g_1|^2``, the trace of the covariance of *one*
      gradient. The states being fixed, it is the noise of the sampled actions alone;
    - ``gradient/<route>/norm``: ``sqrt(max(0, |g|^2 - variance / n))``, the length of the expected gradient. ``|g|^2`` alone
      would count the noise that is left in g as signal;
    - ``gradient/<route>/snr``: ``norm^2 / variance``, the signal-to-noise ratio of *one* gradient. An SNR of 1 / k says that
      k gradients must be averaged until signal and noise are level;

    and for the first two routes, g and h,

    - ``gradient/cosine``: the cosine of the angle between g and h. The noise that is left in them turns them apart: expect
      ``1 / sqrt((1 + 1 / (n snr_1)) (1 + 1 / (n snr_2)))`` of routes that agree;
    - ``gradient/consistency_z``: whether the two have the same expectation. The first half of the draws gives the direction
      ``u = g - h`` in which they differ most; the second half, which is independent of u, tests it: z is the mean of
      ``u.(g_i - h_i)`` over its standard error. If the routes agree, z follows N(0, 1), but for the slightly longer tails of
      Student's t with about ``n_probes / 2`` degrees of freedom; if one of them is biased, z grows with ``sqrt(n)``.
      Suspect a bias where it keeps exceeding 3.

    The gradient is a sum over the states, and what one state's actions add to it is independent of the others'. It is
    therefore drawn ``n = n_probes / 4`` times, each time in 4 parts of the batch, whose variances add up: the variance has
    about as many degrees of freedom as that of ``n_probes`` undivided gradients, at a quarter of the price. With gSDE, which
    shares its noise among the states, gradients are undivided and ``n = n_probes``.

    Where a figure is undefined (all gradients zero, say) it is nan. Values go to the logger, which writes what it has last
    been given, every ``log_interval`` episodes; ``history`` keeps them all.

    A route takes ``n_action_samples`` and ``baseline`` from the model if it is the model's own, otherwise their defaults.
    It changes nothing: random streams (Python's, NumPy's, torch's), the statistics of batch norm, gradients, exploration
    noise are left as they were found, and training with the callback is bitwise what it is without. Measurements are
    reproducible: they draw from streams of their own, seeded by the model's seed and the time step.

    It works with all algorithms of this package and with SB3's SAC, whichever their policy and buffer.

    :param every: Environment steps between two measurements, each at the end of the rollout in which it falls due and
        before the update that follows; before learning starts there are none
    :param routes: Routes to measure: "pathwise", "likelihood_ratio", "measure_valued", "mixed"
    :param n_probes: Parts of gradients per route and measurement. At least 16 are drawn (4 with gSDE)
    :param batch_size: Replayed states per gradient; the variance shrinks with it as in training
    :raises ValueError: if an argument is out of range; at the start of training, if the model has no such gradient
    """

    algorithms: ClassVar[dict[str, type[ActorCritic]]] = {
        "pathwise": PathwiseAC,
        "likelihood_ratio": LikelihoodRatioAC,
        "measure_valued": MeasureValuedAC,
        "mixed": MixedAC,
    }

    model: SAC

    def __init__(
        self,
        every: int = 1_000,
        routes: Sequence[str] = ("pathwise", "likelihood_ratio"),
        n_probes: int = 64,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        for name, value, at_least in (("every", every, 1), ("n_probes", n_probes, 1), ("batch_size", batch_size, 1)):
            if not isinstance(value, int) or value < at_least:
                raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}.")
        routes = (routes,) if isinstance(routes, str) else tuple(routes)
        if not routes or len(set(routes)) < len(routes) or not set(routes) <= self.algorithms.keys():
            raise ValueError(f"routes must be some of {', '.join(self.algorithms)}, each at most once, got {routes!r}.")
        self.every = every
        self.routes = routes
        self.n_probes = n_probes
        self.batch_size = batch_size
        #: One dictionary per measurement: what was logged, and the ``timesteps`` at which
        self.history: list[dict[str, float]] = []

    def _init_callback(self) -> None:
        if not isinstance(self.model, SAC):
            raise ValueError(
                "GradientProbeCallback measures the gradient of SAC's actor: use it with an algorithm of sb3_pathwise or "
                f"with SB3's SAC, not with {type(self.model).__name__}."
            )
        for route in self.routes:
            self._algorithm(route)

    def _on_training_start(self) -> None:
        self._next = self._multiple_after(self.model.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        num_timesteps = self.model.num_timesteps
        if num_timesteps < self._next:
            return
        self._next = self._multiple_after(num_timesteps)
        if num_timesteps > self.model.learning_starts and self.model._n_updates > 0:
            figures = self.measure()
            self.history.append({"timesteps": num_timesteps} | figures)
            for name, value in figures.items():
                self.logger.record(name, value)

    def _multiple_after(self, num_timesteps: int) -> int:
        return (num_timesteps // self.every + 1) * self.every

    def _algorithm(self, route: str) -> ActorCritic:
        """
        The model as the algorithm of a route sees it: itself if the route is its own, otherwise the same networks, buffer
        and temperature under that algorithm, which is what loading its checkpoint there would give.

        :param route: Name of the route
        :return: view on the model, not to be trained
        :raises ValueError: if the route cannot use the model's distribution
        """
        cls = self.algorithms[route]
        if isinstance(self.model, cls):
            return self.model
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(cls).parameters.items()
            if name in cls.route_arguments or not hasattr(self.model, name)
        }
        view = cls.__new__(cls)
        vars(view).update(vars(self.model) | defaults)
        try:
            view._check_arguments()
        except ValueError as error:
            raise ValueError(f"routes: {route!r} cannot be measured on this model, leave it out. {error}") from error
        return view

    def measure(self) -> dict[str, float]:
        """
        Measure the current model on a batch of its replay buffer, now. The callback must know its model, as it does while it
        trains; otherwise call ``init_callback(model)`` first.

        :return: what is logged, by name
        """
        n_parts = 1 if self.model.use_sde else min(4, self.batch_size)
        n_gradients = max(4, self.n_probes // n_parts)
        moments = {route: _Moments() for route in self.routes}
        first, second = self.routes[0], self.routes[-1] if len(self.routes) == 1 else self.routes[1]
        differences = []
        with _undisturbed(self.model):
            for i, gradients in enumerate(self._gradients(n_gradients, n_parts)):
                if i == n_gradients // 2:
                    direction = (moments[first].mean - moments[second].mean).sum(0)
                if i >= n_gradients // 2:
                    differences.append((gradients[first] - gradients[second]) @ direction)
                for route in self.routes:
                    moments[route].add(gradients[route])

        figures = {}
        # Parts add up to the gradient, and being independent their variances to its variance
        for route in self.routes:
            variance = moments[route].variance.sum()
            squared_norm = (moments[route].mean.sum(0).square().sum() - variance / n_gradients).clamp_min(0)
            figures[f"gradient/{route}/variance"] = variance
            figures[f"gradient/{route}/snr"] = squared_norm / variance
            figures[f"gradient/{route}/norm"] = squared_norm.sqrt()
        if len(self.routes) > 1:
            g, h = (moments[route].mean.sum(0) for route in (first, second))
            figures["gradient/cosine"] = F.cosine_similarity(g, h, dim=0)
            d = th.stack(differences)
            figures["gradient/consistency_z"] = d.mean(0).sum() / (d.var(0).sum() / len(d)).sqrt()
        return {name: value.item() for name, value in figures.items()}

    def _gradients(self, n_gradients: int, n_parts: int) -> Iterator[dict[str, th.Tensor]]:
        """
        :param n_gradients: How many to draw
        :param n_parts: How many parts of the batch to tell apart
        :return: yields gradients of J along every route, all at the same states, as ``_actor_gradient`` returns them
        """
        model = self.model
        assert model.replay_buffer is not None
        # Updates use the batch's statistics, and dropout
        model.policy.set_training_mode(True)
        obs = model.replay_buffer.sample(self.batch_size, env=model._vec_normalize_env).observations
        ent_coef = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp().squeeze()
        algorithms = {route: self._algorithm(route) for route in self.routes}
        for _ in range(n_gradients):
            # Anew each time, as in each update: noise matrices of gSDE, masks of dropout
            if model.use_sde:
                model.actor.reset_noise()
            policy_dist = policy_distribution(model.actor, obs)
            yield {
                route: _actor_gradient(algorithm, obs, policy_dist, ent_coef, n_parts)
                for route, algorithm in algorithms.items()
            }


def _actor_gradient(
    algorithm: ActorCritic, obs: PyTorchObs, policy_dist: PolicyDistribution, ent_coef: th.Tensor, n_parts: int
) -> th.Tensor:
    """
    One draw of the gradient that an algorithm's update of the actor ascends.

    :param algorithm: The algorithm
    :param obs: Observations, batch size B
    :param policy_dist: The policy at ``obs``
    :param ent_coef: Entropy coefficient, a scalar
    :param n_parts: How many parts of the batch to tell apart
    :return: what each part adds to the gradient with respect to the parameters that the actor's optimizer holds,
        shape (n_parts, number of parameters)
    """
    entropy_base = algorithm._entropy_base(policy_dist.base)
    objective = algorithm._objective(obs, policy_dist, ent_coef, with_base=entropy_base is None)
    surrogate = algorithm.actor_surrogate(policy_dist.base, objective)
    if entropy_base is not None:
        surrogate = surrogate + ent_coef * entropy_base
    groups = algorithm.actor.optimizer.param_groups
    params = [param for group in groups for param in group["params"] if param.requires_grad]
    parts = []
    for part in (surrogate / len(surrogate)).tensor_split(n_parts):
        grads = th.autograd.grad(part.sum(), params, retain_graph=True, materialize_grads=True)
        parts.append(th.cat([grad.flatten() for grad in grads]))
    return th.stack(parts)


class _Moments:
    """
    Means and total variances of streams of vectors, by Welford's (1962) recurrence: all gradients of a convolutional network
    need not be in memory at once.
    """

    def __init__(self) -> None:
        self.n = 0

    def add(self, vectors: th.Tensor) -> None:
        """
        :param vectors: The next vector of every stream, shape (n_streams, n_dims)
        """
        if self.n == 0:
            self.mean = th.zeros_like(vectors)
            self.squared_deviations = vectors.new_zeros(len(vectors))
        self.n += 1
        deviations = vectors - self.mean
        self.mean += deviations / self.n
        self.squared_deviations += (deviations * (vectors - self.mean)).sum(1)

    @property
    def variance(self) -> th.Tensor:
        """Of every stream the trace of its covariance, shape (n_streams,)"""
        return self.squared_deviations / (self.n - 1)


@contextmanager
def _undisturbed(model: SAC) -> Iterator[None]:
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
    with th.random.fork_rng(devices, device_type=model.device.type if devices else None):
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
