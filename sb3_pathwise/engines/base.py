"""What an engine is."""

from typing import TYPE_CHECKING, ClassVar

from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_pathwise.update import Metrics

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic


class Engine:
    """
    A way to execute the updates of a model, as long as the model stays as it is: see ``fingerprint.py``.

    :param model: The model, for which ``reason_not`` is ``None``
    """

    #: What ``precision`` may be
    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    def __init__(self, model: "ActorCritic") -> None:
        pass

    @staticmethod
    def reason_not(model: "ActorCritic") -> str | None:
        """
        :param model: Any model, its networks and optimizers being made
        :return: the first thing that the engine cannot do as the plain update does it, or ``None``
        """
        return None

    def begin(self, model: "ActorCritic") -> None:
        """
        To be called before the updates of one ``train()``: learning rates are set, parameters may have been written to.

        :param model: The model
        """

    def update(
        self, model: "ActorCritic", replay_data: ReplayBufferSamples, update_actor: bool, update_targets: bool
    ) -> Metrics:
        """
        What ``update.update`` does.

        :param model: The model
        :param replay_data: Batch of transitions
        :param update_actor: Whether the actor and the temperature take a step too
        :param update_targets: Whether the target networks follow
        :return: what to log, scalars by name
        """
        raise NotImplementedError

    def end(self, model: "ActorCritic") -> None:
        """
        To be called after the updates of one ``train()``.

        :param model: The model
        :raises NonFiniteError: if the engine looks only now whether all was finite, and it was not
        """
