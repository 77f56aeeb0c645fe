"""
What ``train`` does besides the actor's gradient: modes, learning rates, replay, TD targets, target networks, counting.

Much of this can be broken without a training curve telling. With a learning rate of 0 the networks stand still, so that every
quantity has one right value.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

MakeModel = Callable[..., Any]


@pytest.fixture
def make_trained(make_model: MakeModel) -> MakeModel:
    """A factory of models that have taken a few updates, so that their networks, targets and buffers are different."""

    def make(cls: type[SAC], *args: Any, **kwargs: Any) -> Any:
        model = make_model(cls, *args, **kwargs).learn(40)
        assert model._n_updates > 0
        return model

    return make


def count_steps(model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """At which of the model's updates each optimizer takes a step."""
    steps: dict[str, list[int]] = {"actor": [], "critic": [], "ent_coef": []}
    optimizers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer, "ent_coef": model.ent_coef_optimizer}

    def counted(name: str, step: Callable[[], None]) -> Callable[[], None]:
        def wrapper() -> None:
            steps[name].append(len(steps["critic"]) - (name != "critic"))
            step()

        return wrapper

    for name, optimizer in optimizers.items():
        monkeypatch.setattr(optimizer, "step", counted(name, optimizer.step))
    return steps


def test_training_mode(
    algorithm: type[SAC], make_trained: MakeModel, batch_norm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_trained(algorithm, policy_kwargs=batch_norm)
    modes: list[tuple[bool, bool, bool]] = []
    sample = model.replay_buffer.sample

    def spy(*args: Any, **kwargs: Any) -> ReplayBufferSamples:
        modes.append((model.actor.training, model.critic.training, model.critic_target.training))
        return sample(*args, **kwargs)

    monkeypatch.setattr(model.replay_buffer, "sample", spy)
    model.predict(np.zeros(2, np.float32))
    assert not model.actor.training
    model.policy.set_training_mode(False)
    model.train(gradient_steps=2, batch_size=8)
    assert modes == [(True, True, False)] * 2


def test_batch_norm_statistics(algorithm: type[SAC], make_model: MakeModel, batch_norm: dict[str, Any]) -> None:
    def statistics(network: Any) -> list[th.Tensor]:
        return [buffer.clone() for name, buffer in network.named_buffers() if "running" in name]

    model = make_model(algorithm, policy_kwargs=batch_norm, learning_starts=10)
    before = [statistics(network) for network in (model.actor, model.critic, model.critic_target)]
    model.learn(10)
    model.predict(np.zeros((5, 2), np.float32))
    th.testing.assert_close(
        [statistics(net) for net in (model.actor, model.critic, model.critic_target)], before, rtol=0, atol=0
    )
    model.train(gradient_steps=2, batch_size=8)
    after = [statistics(network) for network in (model.actor, model.critic, model.critic_target)]
    for i in range(3):
        assert all((new != old).any() for new, old in zip(after[i], before[i], strict=True))
    th.testing.assert_close(after[2], after[1], rtol=0, atol=0)


def test_learning_rate_reaches_every_optimizer(algorithm: type[SAC], make_model: MakeModel) -> None:
    model = make_model(algorithm, learning_rate=lambda left: 1e-3 * left).learn(50, log_interval=1000)
    # Set before the last step was counted as done
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.0, abs=1e-9)]
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(0.0, abs=1e-9)
    model._current_progress_remaining = 0.25
    parameters = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    log_ent_coef = model.log_ent_coef.item()
    model.train(gradient_steps=1, batch_size=16)
    for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(2.5e-4)]
    # Adam's early steps are about as long as the learning rate, and never much longer
    steps = {name: (tensor - parameters[name]).abs().max().item() for name, tensor in model.policy.state_dict().items()}
    assert 5e-5 < max(size for name, size in steps.items() if name.startswith("actor")) < 1e-3
    assert 5e-5 < max(size for name, size in steps.items() if name.startswith("critic.")) < 1e-3
    assert 5e-5 < abs(model.log_ent_coef.item() - log_ent_coef) < 1e-3


def test_replay_is_normalized(algorithm: type[SAC], make_trained: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    vec_normalize = VecNormalize(make_vec_env("PointVector-v0", 1), norm_reward=True)
    model = make_trained(algorithm, vec_normalize)
    assert model.get_vec_normalize_env() is vec_normalize
    envs: list[Any] = []
    sample = model.replay_buffer.sample
    monkeypatch.setattr(
        model.replay_buffer, "sample", lambda batch_size, env=None: envs.append(env) or sample(batch_size, env=env)
    )
    model.train(gradient_steps=1, batch_size=8)
    assert envs == [vec_normalize]


@pytest.mark.parametrize("with_discounts, activation_fn", [(False, nn.ReLU), (True, nn.ReLU), (True, nn.Tanh)])
def test_td_target(
    algorithm: type[SAC],
    make_trained: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    with_discounts: bool,
    activation_fn: type[nn.Module],
) -> None:
    policy_kwargs = {"net_arch": [16, 16], "activation_fn": activation_fn}
    model = make_trained(algorithm, learning_rate=0.0, ent_coef=0.0, gamma=0.6, tau=0.5, policy_kwargs=policy_kwargs)
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        # A policy without spread, and target networks that disagree with the critics and with each other
        model.actor.log_std.weight.zero_()
        model.actor.log_std.bias.fill_(-20.0)
        for param in model.critic_target.parameters():
            param.add_(th.randn(param.shape, generator=generator))
    obs, next_obs, actions = (2 * th.rand(32, 2, generator=generator) - 1 for _ in range(3))
    rewards, dones, discounts = (th.rand(32, 1, generator=generator) for _ in range(3))
    dones = dones.round()
    batch = ReplayBufferSamples(obs, actions, next_obs, dones, rewards, discounts if with_discounts else None)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: batch)

    with th.no_grad():
        next_actions = model.actor(next_obs, deterministic=True)
        next_q_values = th.stack(model.critic_target(next_obs, next_actions)).min(dim=0).values
        target = rewards + (1 - dones) * (discounts if with_discounts else 0.6) * next_q_values
    loss = sum(0.5 * ((q_values - target) ** 2).mean() for q_values in model.critic(obs, actions))
    gradient = th.autograd.grad(loss, list(model.critic.parameters()))
    model.train(gradient_steps=1, batch_size=32)
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(loss.item(), rel=1e-4)
    # Of that loss alone: the actor's step has left nothing
    th.testing.assert_close([param.grad for param in model.critic.parameters()], list(gradient), rtol=1e-3, atol=1e-5)
    assert all(param.grad is None for param in model.critic_target.parameters())


def test_td_target_has_the_entropy(algorithm: type[SAC], make_trained: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # Critics that are 0 everywhere: the target is the entropy bonus alone
    model = make_trained(algorithm, learning_rate=0.0, ent_coef=0.7, gamma=0.6)
    with th.no_grad():
        for param in [*model.critic.parameters(), *model.critic_target.parameters()]:
            param.zero_()
    obs = th.zeros(20_000, 2)
    column = th.zeros(len(obs), 1)
    batch = ReplayBufferSamples(obs, obs, obs, column, column)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: batch)
    with th.no_grad():
        _, log_prob = model.actor.action_log_prob(obs)
    model.train(gradient_steps=1, batch_size=1)
    # Two critics, half the mean square of each; 20,000 draws on both sides, a standard error below 2 % (measured)
    expected = ((0.6 * 0.7 * log_prob) ** 2).mean().item()
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(expected, rel=0.1)


def test_n_step_discounts(algorithm: type[SAC], make_trained: MakeModel) -> None:
    model = make_trained(algorithm, n_steps=3, gamma=0.5)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    discounts = model.replay_buffer.sample(200).discounts
    assert set(discounts.flatten().tolist()) == {0.5, 0.25, 0.125}


@pytest.mark.parametrize("gradient_steps, interval, expected", [(1, 1, 1), (5, 1, 5), (5, 2, 3), (4, 3, 2)])
def test_target_networks_follow(
    algorithm: type[SAC], make_trained: MakeModel, gradient_steps: int, interval: int, expected: int
) -> None:
    model = make_trained(algorithm, learning_rate=0.0, tau=0.25, target_update_interval=interval)
    with th.no_grad():
        for param in model.critic_target.parameters():
            param.add_(1.0)
    model.train(gradient_steps=gradient_steps, batch_size=8)
    for param, target_param in zip(model.critic.parameters(), model.critic_target.parameters(), strict=True):
        # A difference of 1 shrinks by 1 - tau at every update
        difference = (target_param - param).detach()
        th.testing.assert_close(difference, th.full_like(difference, 0.75**expected), rtol=1e-5, atol=1e-5)


def test_gsde_noise_is_drawn_for_every_update(
    algorithm: type[SAC], make_trained: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_trained(algorithm, use_sde=True)
    calls: list[Any] = []
    reset_noise = model.actor.reset_noise
    monkeypatch.setattr(model.actor, "reset_noise", lambda *args: calls.append(args) or reset_noise(*args))
    model.train(gradient_steps=3, batch_size=8)
    assert len(calls) == 3


def test_counting(algorithm: type[SAC], make_trained: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_trained(algorithm)
    before = model._n_updates
    steps = count_steps(model, monkeypatch)
    model.train(gradient_steps=3, batch_size=8)
    assert model._n_updates == before + 3 == model.logger.name_to_value["train/n_updates"]
    assert steps == {"actor": [0, 1, 2], "critic": [0, 1, 2], "ent_coef": [0, 1, 2]}


@pytest.mark.parametrize("gradient_steps", [1, 2, 6])
def test_policy_delay(
    algorithm: type[SAC], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, gradient_steps: int
) -> None:
    model = make_model(algorithm, policy_delay=3).learn(20)
    steps = count_steps(model, monkeypatch)
    for _ in range(12 // gradient_steps):
        model.train(gradient_steps=gradient_steps, batch_size=8)
    assert steps["critic"] == list(range(12))
    # As SB3's TD3 and sb3-contrib's CrossQ count
    assert steps["actor"] == steps["ent_coef"] == [2, 5, 8, 11]


def test_policy_delay_survives_a_checkpoint(
    algorithm: type[SAC], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = make_model(algorithm, policy_delay=3).learn(21)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay_buffer")
    model = algorithm.load(tmp_path / "model", env=model.get_env())
    model.load_replay_buffer(tmp_path / "replay_buffer")
    model.learn(0, reset_num_timesteps=False)
    assert model._n_updates == 1
    steps = count_steps(model, monkeypatch)
    for _ in range(6):
        model.train(gradient_steps=1, batch_size=8)
    assert steps["actor"] == [1, 4]


def test_clipping(algorithm: type[SAC], make_trained: MakeModel) -> None:
    def norm(network: Any) -> float:
        return th.cat([param.grad.flatten() for param in network.parameters()]).norm().item()

    model = make_trained(algorithm, learning_rate=0.0)
    model.train(gradient_steps=1, batch_size=16)
    logged = model.logger.name_to_value
    assert logged["train/actor_grad_norm"] == pytest.approx(norm(model.actor), rel=1e-4)
    assert logged["train/critic_grad_norm"] == pytest.approx(norm(model.critic), rel=1e-4)
    unclipped = min(norm(model.actor), norm(model.critic))

    model = make_trained(algorithm, learning_rate=0.0, max_grad_norm=unclipped / 100)
    model.train(gradient_steps=1, batch_size=16)
    assert norm(model.actor) == pytest.approx(unclipped / 100, rel=1e-3)
    assert norm(model.critic) == pytest.approx(unclipped / 100, rel=1e-3)
    # Logged is what there was to clip; and the temperature's gradient is a number of another kind
    assert model.logger.name_to_value["train/actor_grad_norm"] > unclipped / 10
    assert model.logger.name_to_value["train/critic_grad_norm"] > unclipped / 10
    assert model.log_ent_coef.grad.abs().item() > unclipped / 100

    model = make_trained(algorithm, learning_rate=0.0, max_grad_norm=1e6)
    model.train(gradient_steps=1, batch_size=16)
    assert norm(model.actor) == pytest.approx(model.logger.name_to_value["train/actor_grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    "env, policy", [("PointVector-v0", "MlpPolicy"), ("PointImage-v0", "CnnPolicy"), ("PointImageDict-v0", "MultiInputPolicy")]
)
@pytest.mark.parametrize("share", [False, True])
def test_features_once_per_state(
    algorithm: type[SAC], make_trained: MakeModel, batch_norm: dict[str, Any], env: str, policy: str, share: bool
) -> None:
    rows: dict[int, dict[str, int]] = {}
    for n_action_samples in (4, 12):
        policy_kwargs = batch_norm | {"share_features_extractor": share}
        model = make_trained(algorithm, env, policy, n_action_samples=n_action_samples, policy_kwargs=policy_kwargs)
        seen = {"actor": 0, "critic": 0, "critic_target": 0}
        for name in seen:

            def hook(module: Any, args: Any, output: th.Tensor, seen: dict[str, int] = seen, name: str = name) -> None:
                seen[name] += len(output)

            getattr(model, name).features_extractor.register_forward_hook(hook)
        model.train(gradient_steps=1, batch_size=16)
        rows[n_action_samples] = seen
    assert rows[4] == rows[12]
    # Of 16 transitions, the actor sees both states, the critics the first one (before and after their update), their
    # targets the second one. If shared, the one extractor is called for the actor and for the critics
    both = 64 if share else 32
    assert rows[4] == {"actor": both, "critic": both if share else 32, "critic_target": 16}


def test_actor_step_spares_the_critics(algorithm: type[SAC], make_trained: MakeModel) -> None:
    """No backward pass is spent on the critics' weights. (Only the eager engine calls hooks: "auto" chooses it here.)"""
    model = make_trained(algorithm, policy_kwargs={"n_critics": 3})
    gradients = {"actor": 0, "critic": 0, "critic_target": 0}
    for name in gradients:
        for param in getattr(model, name).parameters():
            if param.requires_grad:

                def hook(grad: th.Tensor, name: str = name) -> None:
                    gradients[name] += 1

                param.register_hook(hook)
    model.train(gradient_steps=2, batch_size=16)
    # One gradient per parameter and update: the critics' own
    n_params = {name: len(list(getattr(model, name).parameters())) for name in gradients}
    assert gradients == {"actor": 2 * n_params["actor"], "critic": 2 * n_params["critic"], "critic_target": 0}


def test_critics_do_not_train_a_shared_extractor_through_the_actor(algorithm: type[SAC], make_trained: MakeModel) -> None:
    model = make_trained(
        algorithm, policy_kwargs={"share_features_extractor": True}, env="PointDict-v0", policy="MultiInputPolicy"
    )
    assert model.actor.features_extractor is model.critic.features_extractor
    shared = {id(param) for param in model.critic.features_extractor.parameters()}
    in_actor = {id(param) for group in model.actor.optimizer.param_groups for param in group["params"]}
    in_critic = {id(param) for group in model.critic.optimizer.param_groups for param in group["params"]}
    # SAC's choice: the critics' loss does not reach it, the actor's does
    assert shared <= in_actor and not shared & in_critic


def test_logged_values_are_means_over_the_updates(
    algorithm: type[SAC], make_trained: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_trained(algorithm, learning_rate=0.0, ent_coef=0.0)
    with th.no_grad():
        model.actor.log_std.weight.zero_()
        model.actor.log_std.bias.fill_(-20.0)
    batches = [model.replay_buffer.sample(4) for _ in range(3)]
    logged: list[dict[str, float]] = []
    for queue in ([batches[0]], [batches[1]], [batches[2]], batches):
        samples = iter(queue)
        monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, samples=samples, **kwargs: next(samples))
        model.train(gradient_steps=len(queue), batch_size=4)
        logged.append({key: model.logger.name_to_value[f"train/{key}"] for key in ("critic_loss", "actor_loss", "entropy")})
    for key, value in logged[3].items():
        assert value == pytest.approx(np.mean([values[key] for values in logged[:3]]), rel=0.02)
    losses = [values["critic_loss"] for values in logged[:3]]
    assert logged[3]["critic_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert max(losses) - min(losses) > 0.01 * min(losses)
