import pytest
import torch
from bandits import SIZES, bandit, config, seeded, situation, train

from lmdiff.algos.config import FQLConfig, QCConfig
from lmdiff.algos.policies import make_algorithm, make_critic
from lmdiff.algos.transitions import Transitions
from lmdiff.algos.values import advantage_weights, expectile_loss, td_loss


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_expectile_of_a_coin_is_its_number(expectile):
    """For targets 0 and 1, alike likely, `e (1 - v) = (1 - e) v` has the solution v = e."""
    targets = torch.tensor([0.0, 1.0])
    value = torch.tensor(expectile, requires_grad=True)
    expectile_loss(targets - value, expectile).backward()
    assert value.grad is not None
    assert value.grad.abs() < 1e-6
    assert expectile_loss(targets - value, 0.2).item() > 0


def test_weights_of_advantages_in_closed_form():
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    std = advantage.std()
    ratio = torch.exp(2 / (0.5 * std))
    weights = advantage_weights(advantage, 0.5, 1e6)
    assert torch.allclose(weights[0] / weights[1], ratio)
    assert torch.allclose(weights.mean(), torch.tensor(1.0))
    clipped = advantage_weights(torch.tensor([100.0, 0.0, 0.0, 0.0]), 0.01, 20.0)
    assert torch.allclose(clipped[0] / clipped[1], torch.tensor(20.0))
    assert torch.isfinite(advantage_weights(torch.tensor([1e8, 0.0]), 1e-9, 100.0)).all()
    assert torch.equal(advantage_weights(torch.full((3,), -5.0), 0.3, 100.0), torch.ones(3))


def test_one_backup_counts_whole_chunks_and_those_that_achieved_the_goal():
    torch.manual_seed(0)
    critic = make_critic(config("fql"), SIZES, SIZES.horizon, 2)
    batch = bandit(seeded(), 4)
    counted = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
    batch = batch._replace(
        counted=counted,
        reward=torch.tensor([-1.0, -2.0, -1.0, 0.0]),
        discount=torch.tensor([0.81, 0.81, 0.0, 0.81]),
    )
    next_value = torch.tensor([-3.0, -100.0, -100.0, -1.0], requires_grad=True)
    targets = torch.tensor([-1 - 0.81 * 3, 0.0, -1.0, -0.81])
    errors = (critic(batch.now, batch.action) - targets) ** 2
    loss = td_loss(critic, batch, next_value)
    assert torch.allclose(loss, errors[:, [0, 2, 3]].sum() / (2 * 3))
    loss.backward()
    assert next_value.grad is None


def chain(generator):
    """Three situations, one after the other; -1 each step until the goal, which the last meets."""
    steps = torch.arange(3).repeat(4)
    now, after = situation(12), situation(12)
    now.observation[torch.arange(12), steps] = 1.0
    after.observation[torch.arange(12), (steps + 1).clamp_max(2)] = 1.0
    last = steps == 2
    action = 0.1 * torch.randn(12, 2, 2, generator=generator)
    return Transitions(
        now,
        action,
        torch.ones(12, 2, dtype=torch.bool),
        last.float() - 1,
        torch.where(last, 0.0, 0.9),
        after,
    )


@pytest.mark.parametrize("name", ["idql", "fql", "qc"])
def test_a_chain_is_worth_its_discounted_return(name):
    torch.manual_seed(0)
    quick = {
        "fql": FQLConfig(flow_steps=1),
        "qc": QCConfig(target_candidates=2, flow_steps=1),
    }
    algorithm = make_algorithm(config(name, **quick), SIZES)
    train(algorithm, 250, chain)
    batch = chain(seeded(1))
    with torch.no_grad():
        values = algorithm.critic(batch.now, batch.action)[:, :3]
    returns = torch.tensor([-1.9, -1.0, 0.0])
    assert torch.allclose(values, returns.expand(2, 3), atol=0.15)
