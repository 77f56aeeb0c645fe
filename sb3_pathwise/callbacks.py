"""
Diagnostics that watch a training from the outside. Nothing here changes what is learned.

The routes that are measured live in ``routes.py``, the objective that they climb in ``objective.py``.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional as F

from sb3_pathwise.algorithms import LikelihoodRatioAC, MeasureValuedAC, MixedAC, PathwiseAC
from sb3_pathwise.critics import CRITICS
from sb3_pathwise.distributions import draw_actions
from sb3_pathwise.guards.own_arguments import overrides_surrogate
from sb3_pathwise.guards.undisturbed import undisturbed
from sb3_pathwise.learner import ROUTE_ARGUMENTS, ActorCritic
from sb3_pathwise.objective import Route, current_ent_coef, surrogate_of_objective

BUILT_IN: dict[str, type[ActorCritic]] = {
    "pathwise": PathwiseAC,
    "likelihood_ratio": LikelihoodRatioAC,
    "measure_valued": MeasureValuedAC,
    "mixed": MixedAC,
}


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

    A route takes ``n_action_samples`` and ``baseline`` from the model if it is the model's own, otherwise their defaults. An
    estimator that somebody else has written is measured on its own algorithm's models, by the name of the class.
    It changes nothing: random streams (Python's, NumPy's, torch's), the statistics of batch norm, gradients, exploration
    noise are left as they were found, and training with the callback is bitwise what it is without. Measurements are
    reproducible: they draw from streams of their own, seeded by the model's seed and the time step.

    It works with all algorithms of this package and with SB3's SAC, whichever their policy and buffer.

    :param every: Environment steps between two measurements, each at the end of the rollout in which it falls due and
        before the update that follows; before learning starts there are none
    :param routes: Routes to measure: "pathwise", "likelihood_ratio", "measure_valued", "mixed", or the name of the model's
        class for its own
    :param n_probes: Parts of gradients per route and measurement. At least 16 are drawn (4 with gSDE)
    :param batch_size: Replayed states per gradient; the variance shrinks with it as in training
    :raises ValueError: if an argument is out of range; at the start of training, if the model has no such gradient
    """

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
        if not routes or len(set(routes)) < len(routes):
            raise ValueError(f"routes must be some of {', '.join(BUILT_IN)}, each at most once, got {routes!r}.")
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
            self._route(route)

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

    def _route(self, name: str) -> tuple[Route, bool]:
        """
        :param name: Name of the route
        :return: the route with its arguments, and whether a Gaussian's entropy is left to it
        :raises ValueError: if there is no such route, or it cannot use the model's distribution
        """
        model = self.model
        own = type(model).route if isinstance(model, ActorCritic) and not overrides_surrogate(type(model)) else None
        if name in BUILT_IN:
            cls = BUILT_IN[name]
            distribution = getattr(model.policy, "distribution", "squashed_gaussian")
            if distribution not in cls.supported_distributions:
                raise ValueError(
                    f"routes: {name!r} cannot be measured on this model, leave it out. It cannot use "
                    f"distribution={distribution!r}, but {', '.join(cls.supported_distributions)}."
                )
            source = model if own is cls.route else SimpleNamespace(**cls.route_arguments())
            arguments = {ROUTE_ARGUMENTS[argument]: getattr(source, argument) for argument in cls.route_arguments()}
            return partial(cls.route, **arguments), cls.samples_gaussian_entropy
        if isinstance(model, ActorCritic) and name == type(model).__name__:
            return model.actor_surrogate, model.samples_gaussian_entropy
        known = [*BUILT_IN, *([type(model).__name__] if isinstance(model, ActorCritic) else [])]
        raise ValueError(f"routes must be some of {', '.join(known)} for this model, each at most once, got {name!r}.")

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
        with undisturbed(self.model):
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
        ent_coef = current_ent_coef(model)
        critic_rule = model.critic_rule if isinstance(model, ActorCritic) else CRITICS["twin"]()
        value = critic_rule.value(model.critic, obs)
        routes = {name: self._route(name) for name in self.routes}
        for _ in range(n_gradients):
            # Anew each time, as in each update: noise matrices of gSDE, masks of dropout
            if model.use_sde:
                model.actor.reset_noise()
            draw = draw_actions(model.actor, obs)
            yield {
                name: self._actor_gradient(surrogate_of_objective(route, draw, value, ent_coef, samples_entropy), n_parts)
                for name, (route, samples_entropy) in routes.items()
            }

    def _actor_gradient(self, surrogate: th.Tensor, n_parts: int) -> th.Tensor:
        """
        One draw of the gradient that an update of the actor ascends.

        :param surrogate: What it climbs, shape (B,)
        :param n_parts: How many parts of the batch to tell apart
        :return: what each part adds to the gradient with respect to the parameters that the actor's optimizer holds,
            shape (n_parts, number of parameters)
        """
        groups = self.model.actor.optimizer.param_groups
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
