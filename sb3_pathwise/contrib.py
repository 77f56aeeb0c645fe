"""
Models of sb3-contrib's TQC and CrossQ as models of ours: the same networks by the same names, their own critic, and what
hyperparameters we share.
"""

from typing import TYPE_CHECKING, Any

import torch as th
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.tqc import policies as tqc_policies
from stable_baselines3.common.policies import BasePolicy

from sb3_pathwise.policies import CnnPolicy, DistributionPolicy, MlpPolicy, MultiInputPolicy

if TYPE_CHECKING:
    from sb3_pathwise.learner import ActorCritic

# By exact type: nothing is known of what a subclass does
POLICIES: dict[type[BasePolicy], type[DistributionPolicy]] = {
    tqc_policies.TQCPolicy: MlpPolicy,
    tqc_policies.CnnPolicy: CnnPolicy,
    tqc_policies.MultiInputPolicy: MultiInputPolicy,
    CrossQPolicy: MlpPolicy,
}


def adopt(model: "ActorCritic") -> None:
    """
    If the policy is TQC's or CrossQ's, have one of ours with their critic instead.

    :param model: The model, with what a file holds as its attributes, before its networks are made
    """
    policy_class: Any = model.policy_class
    if policy_class in POLICIES:
        vars(model).update(adopted_arguments(policy_class.__module__, vars(model)))
        vars(model).pop("top_quantiles_to_drop_per_net", None)
        model.policy_class = POLICIES[policy_class]


def adopted_arguments(policy_module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """
    :param policy_module: Name of the module of the policy's class
    :param arguments: Arguments of TQC or CrossQ
    :return: those that are to be others for the same model as one of ours; none if it was neither
    """
    policy_kwargs = arguments.get("policy_kwargs", {})
    if policy_module == tqc_policies.__name__:
        dropped = arguments.get("top_quantiles_to_drop_per_net", 2)
        return {"policy_kwargs": {"critic": "quantile", "top_quantiles_to_drop_per_net": dropped} | policy_kwargs}
    if policy_module == CrossQPolicy.__module__:
        defaults: dict[str, Any] = {"net_arch": {"pi": [256, 256], "qf": [1024, 1024]}}
        if policy_kwargs.get("optimizer_class", th.optim.Adam) in (th.optim.Adam, th.optim.AdamW):
            defaults["optimizer_kwargs"] = {"betas": (0.5, 0.999)}
        given = {name: value for name, value in policy_kwargs.items() if name not in defaults or value is not None}
        # CrossQ has no targets to follow, and says so by a tau of 1
        tau = {"tau": 0.005} if arguments.get("tau") == 1.0 else {}
        return {"policy_kwargs": {"critic": "batch_renorm"} | defaults | given} | tau
    return {}
