"""FPO and DPPO on a bandit, and what they compare, in closed form."""

import pytest
import torch
from bandits import MODES, SIZES, acts, config, seeded, share_near, situation, train
from torch import nn

from lmdiff.algos.config import DPPOConfig, FPOConfig
from lmdiff.algos.on_policy import Decisions, gae
from lmdiff.algos.policies import make_algorithm
from lmdiff.denoisers.processes import make_process
from lmdiff.errors import UserError
from lmdiff.training.policy.on_policy_data import _size

STEPS = 4
SETTINGS = {
    "fpo": {"fpo": FPOConfig(epsilon=0.2, scale=2.0)},
    "fpo-clip": {"fpo": FPOConfig(objective="clip", epsilon=0.05)},
    "fpo-bgpo": {"fpo": FPOConfig(objective="bgpo")},
    "dppo": {"dppo": DPPOConfig(steps=STEPS, trained_steps=2, deviation=0.2, epsilon=0.1)},
}


def imitated(name, **more):
    """The algorithm whose actor has learned both modes of the bandit by imitation."""
    torch.manual_seed(0)
    teacher = make_algorithm(config("bc"), SIZES)
    train(teacher, 200)
    algorithm = make_algorithm(config(name, **more), SIZES)
    algorithm.actor.load_state_dict(teacher.actor.state_dict())
    algorithm.return_unit.fill_(1.0)
    return algorithm


@torch.no_grad()
def played(algorithm, generator, size=64):
    """A round: the mean of a chunk says what it is worth."""
    now, counted = situation(size), torch.ones(size, 2, dtype=torch.bool)
    chain = algorithm.explore(now, STEPS, generator)
    reward = (chain[:, -1].mean((1, 2)) > 0).float()
    advantage = (reward - reward.mean()) / reward.std().clamp_min(1e-3)
    memory = algorithm.remember(now, chain, counted, generator)
    return Decisions(now, chain, counted, memory, advantage, reward, torch.ones(size))


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_pays_is_done_more_often(setting):
    algorithm = imitated(setting.partition("-")[0], **SETTINGS[setting])
    sampled = {"num_inference_steps": STEPS}
    before = share_near(acts(algorithm, **sampled), MODES[1])
    optimizer, generator = torch.optim.Adam(algorithm.parameters(), 3e-4), seeded(1)
    for _ in range(25):
        batch = played(algorithm, generator)
        for _ in range(4):
            out = algorithm(batch, generator)
            optimizer.zero_grad()
            out["loss"].backward()
            nn.utils.clip_grad_norm_(algorithm.parameters(), 1.0)
            optimizer.step()
    assert before < 0.65
    assert share_near(acts(algorithm, **sampled), MODES[1]) > before + 0.2


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_ratio_is_one_on_the_same_weights(setting):
    algorithm = imitated(setting.partition("-")[0], **SETTINGS[setting])
    batch = played(algorithm, seeded(1))
    loss, metrics = algorithm.policy_loss(batch)
    assert metrics["ratio/max"] == pytest.approx(1, abs=1e-5)
    discounts = torch.tensor([0.99, 1.0]).mean() if setting == "dppo" else 1.0
    # Nothing has changed: the loss is minus the advantage, and its gradient is not zero.
    assert torch.allclose(loss, -batch.advantage * discounts, atol=1e-3)
    loss.mean().backward()
    assert algorithm.actor.network.head[1].weight.grad.abs().sum() > 0


def test_only_the_value_function_learns_at_first():
    algorithm = imitated("fpo")
    batch = played(algorithm, seeded(1))._replace(teaches_actor=torch.zeros(64))
    algorithm(batch, seeded())["loss"].backward()
    assert all((p.grad == 0).all() for p in algorithm.actor.parameters() if p.grad is not None)
    assert algorithm.value.mlp[0].weight.grad.abs().sum() > 0


def test_the_steps_of_a_chain_are_gaussians():
    algorithm = imitated("dppo", **SETTINGS["dppo"])
    now, counted = situation(6), torch.tensor([[True, False]] * 3 + [[True, True]] * 3)
    with torch.no_grad():
        chain = algorithm.explore(now, STEPS, seeded())
        found = algorithm.log_probs(now, chain, counted)
        context = algorithm.actor.network.read(now)
        mean = algorithm._mean(chain[:, 1], context, STEPS - 1)
    each = torch.distributions.Normal(mean, 0.2).log_prob(chain[:, 2])
    assert torch.allclose(found[:3, 1], each[:3, 0].mean(1), atol=1e-5)
    assert torch.allclose(found[3:, 1], each[3:].mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [("flow", "sample"), ("flow", "velocity")]
    + [("vp", name) for name in ("sample", "velocity", "epsilon")],
)
def test_a_chain_without_noise_is_the_scheduler_s(process, prediction):
    """`move` is one step of the default scheduler."""
    made = make_process(process, prediction)
    scheduler = made.scheduler()
    made.set_timesteps(scheduler, 5, torch.device("cpu"))
    levels = [*made.level(scheduler.timesteps.float()), torch.tensor(0.0)]
    x = y = torch.randn(3, 4, generator=seeded())
    for timestep, level, to in zip(scheduler.timesteps, levels, levels[1:], strict=False):
        x = scheduler.step(0.3 * torch.tanh(x), timestep, x).prev_sample
        y = made.move(0.3 * torch.tanh(y), y, level, to)
        assert torch.allclose(x, y, atol=1e-4)


def test_a_chain_cannot_learn_more_steps_than_it_has():
    with pytest.raises(UserError, match="trained_steps"):
        make_algorithm(config("dppo", dppo=DPPOConfig(steps=3, trained_steps=4)), SIZES)


def test_generalised_advantages():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.4, 0.5, 7.0])
    discounts = torch.tensor([0.9, 0.9, 0.0])  # success ends it: the last value does not count
    # lambda 1: what was gained, less what was expected.
    assert torch.allclose(
        gae(rewards, discounts, values, 1.0), torch.tensor([0.81, 0.9, 1.0]) - values[:3]
    )
    # lambda 0: one step and then the value.
    expected = torch.tensor([0.9 * 0.4 - 0.2, 0.9 * 0.5 - 0.4, 1 - 0.5])
    assert torch.allclose(gae(rewards, discounts, values, 0.0), expected)
    # A time limit: the episode goes on in its last value.
    limited = gae(torch.zeros(1), torch.tensor([0.9]), torch.tensor([1.0, 2.0]), 0.95)
    assert limited.item() == pytest.approx(0.8)


def test_values_are_learnt_in_units_of_the_returns():
    """Dense rewards add up to much, and a network that starts near 0 learns that slowly."""
    rewards, discounts = torch.full((5,), -8.0), torch.tensor([1.0, 1, 1, 1, 0])
    unit = _size([(rewards, discounts)])
    assert unit.item() == pytest.approx(8 * (55 / 5) ** 0.5)  # returns of -8, -16, ... -40
    assert _size([(torch.zeros(2), discounts[-2:])]) == 1
    algorithm = imitated("fpo")
    algorithm.return_unit.copy_(unit)
    batch = played(algorithm, seeded(1))
    value = algorithm.value(batch.now)[0]
    assert torch.equal(algorithm.worth(batch.now), value * unit)
    exact = batch._replace(returns=algorithm.worth(batch.now).detach())
    assert algorithm(exact, seeded(1))["value_loss"] < 1e-8
    off = exact._replace(returns=exact.returns + unit)  # by one unit
    assert algorithm(off, seeded(1))["value_loss"] == pytest.approx(1.0, rel=1e-3)
