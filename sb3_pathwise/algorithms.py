"""The algorithms: a docstring, a route and what it can use. Everything else is in ``learner.py``."""

from sb3_pathwise.learner import ActorCritic
from sb3_pathwise.routes import likelihood_ratio, measure_valued, mixed, pathwise


class PathwiseAC(ActorCritic):
    """
    Maximum-entropy actor-critic with the pathwise (reparameterised) gradient: ``grad_a Q * grad_theta a``.

    With one action per state, the default, this is Soft Actor-Critic (https://arxiv.org/abs/1812.05905, eq. 9), step for step
    that of SB3. It needs a policy with ``rsample`` and a learned Q that can be differentiated in the action. See
    ``LikelihoodRatioAC`` for the route that needs neither. Arguments: see ``sb3_pathwise.learner.ActorCritic``.
    """

    route = pathwise
    supported_distributions = ("squashed_gaussian", "beta")
    samples_gaussian_entropy = True


class LikelihoodRatioAC(ActorCritic):
    """
    Maximum-entropy actor-critic with the likelihood-ratio (score-function) gradient: ``(Q - b) * grad log pi(a)``.

    The critics are only ever evaluated, at ``n_action_samples`` (8) actions of the current policy per replayed state, and the
    policy needs no ``rsample`` (Williams, 1992; as the actor of an off-policy maximum-entropy learner: Haarnoja et al.,
    https://arxiv.org/abs/1801.01290, section 4.2). The mean of a state's other actions serves as the baseline
    (Kool et al., 2019, https://openreview.net/forum?id=r1lgTGL5DE). Same objective as ``PathwiseAC``, same
    everything else; the gradient has the same expectation and another variance. Arguments: see
    ``sb3_pathwise.learner.ActorCritic``.
    """

    route = likelihood_ratio


class MeasureValuedAC(ActorCritic):
    """
    Maximum-entropy actor-critic with the measure-valued (weak) derivative: differences of Q between pairs of actions.

    The critics are only evaluated, at ``4 * d`` actions for each of the ``n_action_samples`` (1) draws in d action dimensions,
    and the variance stays low even where Q is rough (Mohamed et al., 2020, section 6; as the actor of an off-policy learner:
    Carvalho et al., 2021, https://arxiv.org/abs/2107.09359). For diagonal Gaussians only, gSDE included. Same objective as
    ``PathwiseAC``, same everything else. Arguments: see ``sb3_pathwise.learner.ActorCritic``.
    """

    route = measure_valued
    supported_distributions = ("squashed_gaussian",)


class MixedAC(ActorCritic):
    """
    Maximum-entropy actor-critic whose gradient mixes the pathwise and the likelihood-ratio estimate of the same actions (8 per
    state, at least 4), each weighed by the inverse of its variance.

    Weights are estimated for each state and each parameter of the policy, on actions other than those they weigh, so that the
    mixture stays unbiased (after Parmas et al., 2018, https://arxiv.org/abs/1902.01240). It gains where Q is rough at the
    scale of the policy; where Q is smooth the pathwise route alone is as good and cheaper, see ``sb3_pathwise.routes.mixed``.
    Same objective as ``PathwiseAC``, same everything else. Arguments: see ``sb3_pathwise.learner.ActorCritic``.
    """

    route = mixed
    min_action_samples = 4
    supported_distributions = ("squashed_gaussian", "beta")
