"""
Models from strangers: SB3's zip files read without unpickling anything.

SB3 stores what JSON cannot hold as cloudpickle inside of the JSON, and pickles execute whatever they hold (SB3 #2281). Here
only tensors and plain JSON are read; what is pickled is named, and is to be given by the caller.
"""

import inspect
import io
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Distribution

from sb3_pathwise.contrib import adopted_arguments
from sb3_pathwise.learner import ROUTE_ARGUMENTS, ActorCritic

SelfSAC = TypeVar("SelfSAC", bound=SAC)

_TEXTS = ("data", "_stable_baselines3_version", "system_info.txt")
_MAX_MEMBERS = 32
_MAX_JSON_BYTES = 16 * 2**20
# The process's business or the environment's, or pickled always: from the caller or nobody
_FROM_CALLER = (
    *("policy", "env", "action_noise", "replay_buffer_class", "replay_buffer_kwargs", "tensorboard_log", "verbose"),
    *("seed", "device", "_init_setup_model"),
)
_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num")


def load_weights_only(
    cls: type[SelfSAC], path: str | os.PathLike[str], env: GymEnv | str, max_bytes: int = 2**31, **kwargs: Any
) -> SelfSAC:
    """
    Load a model that an algorithm of sb3_pathwise, SB3's SAC, or sb3-contrib's TQC or CrossQ has saved, from a source that is
    not trusted.

    Tensors are read by ``torch.load(weights_only=True)``, hyperparameters and counters if they are plain JSON. Pickled ones
    (always ``train_freq`` and ``replay_buffer_class``, and schedules) are left at their defaults with a warning that names
    them, unless given here; pickled ``policy_kwargs`` have to be given. The policy is chosen by the observation space, unless
    given. Paths, seed, verbosity and device are never taken from the file. Files of SB3 from 0.6 on are read, which ``load()``
    cannot do without the gym that they were written with.

    :param cls: Class of the model
    :param path: Path to the zip file
    :param env: Environment, whose spaces are those that the model was trained on
    :param max_bytes: Largest size of the file's contents, unpacked, in bytes
    :param kwargs: Arguments of the constructor of ``cls``, which have priority over the file's
    :return: The model
    :raises ValueError: if the file is not what ``save()`` writes, or does not suit ``cls`` and ``env``
    """
    members = _read_zip(path, max_bytes)
    try:
        return _load(cls, path, env, members, kwargs)
    except ValueError as error:
        writer = _old_writer(members)
        if writer is None:
            raise
        raise ValueError(
            f"{error} {writer} wrote the file. If what is missing cannot be given by name, load it with that SB3, save the "
            "weights alone by th.save(model.policy.state_dict(), path), and load them here by model.policy.load_state_dict()."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path}: data is nested too deeply.") from error


def _old_writer(members: dict[str, bytes]) -> str | None:
    version = members.get("_stable_baselines3_version")
    if version is None:
        return "SB3 before 0.9" if "tensors.pth" in members else None
    text = version.decode("ascii", errors="replace").strip()
    return f"SB3 {text}" if re.fullmatch(r"[01]\.[\w.]{1,20}", text) else None


def _load(
    cls: type[SelfSAC], path: str | os.PathLike[str], env: GymEnv | str, members: dict[str, bytes], kwargs: dict[str, Any]
) -> SelfSAC:
    data = _read_json(path, members)
    arguments, pickled = _plain_arguments(cls, path, data)
    arguments |= kwargs
    if issubclass(cls, ActorCritic):
        arguments |= _adopted_arguments(data, arguments)
    env = cls._wrap_env(maybe_make_env(env, verbose=0))
    arguments.setdefault("policy", _default_policy(env))
    tensors = {name.removesuffix(".pth"): _load_tensors(path, name, members[name]) for name in members if name not in _TEXTS}
    if "tensors" in tensors:
        # Its name before SB3 0.9
        tensors["pytorch_variables"] = tensors.pop("tensors")
    _check_weights(path, tensors)
    # Before SB3 0.8, critics were called q1_net and q2_net
    tensors["policy"] = {
        re.sub(r"\.q([12])_net\.", lambda match: f".qf{int(match[1]) - 1}.", str(name)): weight
        for name, weight in tensors["policy"].items()
    }
    if "policy_kwargs" not in kwargs:
        _check_policy_kwargs(cls, path, env, arguments, tensors["policy"], data.get("policy_kwargs"))
    try:
        model = cls(env=env, **arguments)
    except MemoryError as error:
        raise ValueError(f"{path}: a replay buffer of buffer_size={arguments['buffer_size']} is too large. {error}") from error
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{path}: its hyperparameters are refused by {cls.__name__}: {error}") from error
    _set_tensors(model, path, tensors)
    for name in _COUNTERS:
        value = data.get(name, 0)
        if type(value) is not int or value < 0:
            raise ValueError(f"{path}: {name} is not a count, got {str(value)[:40]}.")
        setattr(model, name, value)
    not_given = [name for name in pickled if name not in kwargs]
    if not_given:
        warnings.warn(f"{path}: pickled, so not read, and left at their defaults: {', '.join(not_given)}. Give them by name.")
    return model


def _read_zip(path: str | os.PathLike[str], max_bytes: int) -> dict[str, bytes]:
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
                names = [info.filename for info in infos]
                # The end of a file in the file may pass for the end of a file that was cut
                if not infos or min(info.header_offset for info in infos) > 0:
                    raise zipfile.BadZipFile("its beginning or its end is missing")
                if len(infos) > _MAX_MEMBERS or len(set(names)) < len(names):
                    raise ValueError(f"{path}: {len(infos)} files, or some of them twice, are not what save() writes.")
                unknown = [name for name in names if name not in _TEXTS and not name.endswith(".pth")]
                if unknown:
                    raise ValueError(f"{path}: refused, since save() does not write it: {', '.join(unknown)[:200]}.")
                size = sum(info.file_size for info in infos)
                if size > max_bytes:
                    raise ValueError(f"{path}: unpacks to {size} bytes, max_bytes is {max_bytes}.")
                return {info.filename: archive.read(info) for info in infos}
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise ValueError(f"{path}: not a zip file, or a damaged one: {error}") from error
        # The decompressors have errors of their own
        except Exception as error:
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"{path}: not a zip file, or a damaged one: {error!r}") from error


def _read_json(path: str | os.PathLike[str], members: dict[str, bytes]) -> dict[str, Any]:
    if "data" not in members:
        raise ValueError(f"{path}: data, the JSON file of hyperparameters, is missing.")
    if len(members["data"]) > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: data is larger than {_MAX_JSON_BYTES} bytes.")
    try:
        data = json.loads(members["data"].decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: data is not JSON: {str(error)[:200]}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: data is not a JSON object.")
    return data


def _plain_arguments(cls: type[SAC], path: str | os.PathLike[str], data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """
    The constructor's arguments that are plain JSON, and the names of those that are pickled.
    """
    arguments: dict[str, Any] = {}
    pickled: list[str] = []
    # Another class's arguments of the route mean something else
    foreign = ROUTE_ARGUMENTS if data.get("algorithm_name") != cls.__name__ else ()
    defaults = cls.route_arguments() if issubclass(cls, ActorCritic) else {}
    for name, parameter in inspect.signature(cls).parameters.items():
        key = "_stats_window_size" if name == "stats_window_size" else name
        if name in foreign or key not in data:
            continue
        value = data[key]
        if isinstance(value, dict) and ":serialized:" in value:
            pickled.append(name)
        elif name not in _FROM_CALLER:
            if not _is_plain(value) or not _suits(value, name, defaults.get(name, parameter.default)):
                raise ValueError(f"{path}: {name} cannot be {str(value)[:40]!r}.")
            arguments[name] = value
    return arguments, pickled


def _adopted_arguments(data: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    policy_class = data.get("policy_class")
    module = policy_class.get("__module__") if isinstance(policy_class, dict) else None
    if "policy_kwargs" not in arguments or not isinstance(module, str):
        return {}
    return adopted_arguments(module, data | arguments)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _suits(value: Any, name: str, default: Any) -> bool:
    """
    Whether a plain value is of the type of an argument.
    """
    if name == "policy_kwargs":
        return isinstance(value, dict)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, str):
        # "auto" or a number
        return isinstance(value, str) or number
    if default is None:
        return value is None or number or isinstance(value, str)
    return number if isinstance(default, float) else type(value) is type(default)


def _default_policy(env: VecEnv) -> str:
    if isinstance(env.observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(env.observation_space) else "MlpPolicy"


def _load_tensors(path: str | os.PathLike[str], name: str, content: bytes) -> Any:
    """
    One ``.pth`` file, which holds no more than it says.
    """
    try:
        # PyTorch before 1.6 wrote no zip files
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                infos = archive.infolist()
            # Torch stores, it does not compress
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(i.file_size for i in infos) > len(
                content
            ):
                raise ValueError("it is compressed")
        loaded = th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: {name} does not hold tensors only, or is damaged: {str(error)[:200]}") from error
    tensors = list(_tensors(loaded))
    # Strides of 0 make large tensors of small files
    if sum(tensor.nbytes for tensor in tensors) > len(content) or any(tensor.layout != th.strided for tensor in tensors):
        raise ValueError(f"{path}: {name} holds tensors that are larger than itself.")
    if not all(bool(th.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point()):
        raise ValueError(f"{path}: {name} holds numbers that are not finite.")
    return loaded


def _tensors(obj: Any, depth: int = 0) -> Iterator[th.Tensor]:
    if depth > 8:
        raise ValueError("nested too deeply")
    if isinstance(obj, th.Tensor):
        yield obj
    elif isinstance(obj, (dict, list, tuple)):
        for item in obj.values() if isinstance(obj, dict) else obj:
            yield from _tensors(item, depth + 1)


def _check_weights(path: str | os.PathLike[str], tensors: dict[str, Any]) -> None:
    weights = tensors.get("policy")
    if not isinstance(weights, dict) or not all(isinstance(weight, th.Tensor) for weight in weights.values()):
        raise ValueError(f"{path}: policy.pth, the networks' weights by name, is missing.")


def _check_policy_kwargs(
    cls: type[SAC],
    path: str | os.PathLike[str],
    env: VecEnv,
    arguments: dict[str, Any],
    weights: dict[str, th.Tensor],
    written: Any,
) -> None:
    """
    Compare the weights with those of the policy that the file asks for before any memory is spent on it.
    """
    if "policy_kwargs" not in arguments:
        # Beside what it pickles, SB3 writes down what can be read
        readable = {key: value for key, value in (written or {}).items() if key[:1] != ":" and _is_plain(value)}
        raise ValueError(
            f"{path}: policy_kwargs are pickled and refused. Give them by policy_kwargs=dict(...); beside the pickle stands "
            f"{str(readable)[:200]}."
        )
    policy = arguments["policy"]
    policy_class: Any = cls.policy_aliases.get(policy) if isinstance(policy, str) else policy
    if policy_class is None:
        raise ValueError(f"policy {policy} unknown, {cls.__name__} has {', '.join(cls.policy_aliases)}.")
    policy_kwargs = {"use_sde": arguments.get("use_sde", False)} | arguments["policy_kwargs"]
    # Each layer and each critic has a weight
    if policy_kwargs.get("n_critics", 0) > len(weights) or _count(policy_kwargs) > len(weights) + 64:
        raise ValueError(f"{path}: policy_kwargs ask for more layers or critics than policy.pth has weights.")
    on_meta = type(policy_class.__name__, (policy_class,), {"device": th.device("meta")})
    validate_args = Distribution._validate_args  # type: ignore[attr-defined]
    try:
        # It would read the numbers
        Distribution.set_default_validate_args(False)
        with th.device("meta"):
            expected = on_meta(env.observation_space, env.action_space, lambda _: 0.0, **policy_kwargs).state_dict()
    # A stranger's arguments may fail anywhere
    except Exception as error:
        raise ValueError(f"{path}: its policy_kwargs are refused by {policy_class.__name__}: {str(error)[:200]}") from error
    finally:
        Distribution.set_default_validate_args(validate_args)
    _compare(f"{path}: policy.pth", expected, weights)


def _count(value: Any) -> int:
    if isinstance(value, (dict, list)):
        return sum(map(_count, value.values() if isinstance(value, dict) else value))
    return 1


def _compare(what: str, expected: dict[str, th.Tensor], got: dict[str, Any]) -> None:
    missing, unexpected = expected.keys() - got.keys(), got.keys() - expected.keys()
    if missing or unexpected:
        raise ValueError(
            f"{what} does not suit these policy, policy_kwargs and spaces: missing {sorted(missing)[:4]}, unexpected "
            f"{sorted(map(str, unexpected))[:4]}."
        )
    for name, tensor in expected.items():
        if not isinstance(got[name], th.Tensor) or got[name].shape != tensor.shape:
            shape = tuple(got[name].shape) if isinstance(got[name], th.Tensor) else "no tensor"
            raise ValueError(f"{what}: {name} is {shape}, these policy_kwargs and spaces need {tuple(tensor.shape)}.")


def _set_tensors(model: SAC, path: str | os.PathLike[str], tensors: dict[str, Any]) -> None:
    names, variables = model._get_torch_save_params()
    expected = {*names, "pytorch_variables"}
    if expected != tensors.keys():
        missing, unexpected = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected} (.pth files).")
    _compare(f"{path}: policy.pth", model.policy.state_dict(), tensors["policy"])
    for name in names:
        optimizer = recursive_getattr(model, name)
        if isinstance(optimizer, th.optim.Optimizer):
            tensors[name] = _checked_optimizer(f"{path}: {name}.pth", optimizer, tensors[name])
    values = tensors.pop("pytorch_variables")
    if not isinstance(values, dict):
        raise ValueError(f"{path}: pytorch_variables.pth holds no tensors by name.")
    # Before SB3 1.1, a fixed ent_coef was saved beside the learned one, which was None
    values = {name: value for name, value in values.items() if value is not None}
    _compare(f"{path}: pytorch_variables.pth", {name: recursive_getattr(model, name) for name in variables}, values)
    model.set_parameters(tensors, exact_match=True, device=model.device)
    for name in variables:
        recursive_setattr(model, f"{name}.data", values[name].to(model.device))


def _checked_optimizer(what: str, optimizer: th.optim.Optimizer, state_dict: Any) -> dict[str, Any]:
    """
    A state dictionary of an optimizer whose tensors have its parameters' shapes, and whose options are plain.
    """
    own = optimizer.state_dict()
    try:
        groups, state = state_dict["param_groups"], state_dict["state"]
        if [group["params"] for group in groups] != [group["params"] for group in own["param_groups"]]:
            raise ValueError("it is of other parameters")
        params = dict(enumerate(param for group in optimizer.param_groups for param in group["params"]))
        for index, tensors in state.items():
            for name, value in tensors.items():
                value = th.as_tensor(value)
                if (value.ndim > 0 and value.shape != params[index].shape) or not isinstance(name, str):
                    raise ValueError(f"{name} of parameter {index} has the wrong shape")
        checked = [
            # Options that another version of torch has, or lacks, are left as they are here
            own_group | {name: value for name, value in group.items() if name in own_group and _is_option(value)}
            for own_group, group in zip(own["param_groups"], groups, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{what} does not suit the optimizer: {str(error)[:200]}") from error
    return {"state": state, "param_groups": checked}


def _is_option(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_option(item) for item in value)
    return value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
