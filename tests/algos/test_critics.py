import pytest
import torch

from lmdiff.algos.critics import Critic, Target
from lmdiff.algos.selection import best_of
from lmdiff.denoisers.situation import Situation, with_nothing
from lmdiff.goals.encoder import GoalTokens


def situation(batch):
    words = with_nothing(GoalTokens(torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool)))
    return Situation(torch.randn(batch, 3), words, torch.zeros(batch, dtype=torch.long))


@pytest.fixture
def critic():
    torch.manual_seed(0)
    return Critic(3, 2, 4, 16, width=32, layers=2, count=3)


def test_an_ensemble_differs_and_depends_on_the_chunk(critic):
    now = situation(5)
    values = critic(now, torch.zeros(5, 4, 2))
    assert values.shape == (3, 5)
    assert not torch.allclose(values[0], values[1])
    assert not torch.allclose(values, critic(now, torch.ones(5, 4, 2)))


def test_a_value_function_has_no_action():
    value = Critic(3, 2, 0, 16, width=32, layers=2, count=1)
    assert value(situation(5)).shape == (1, 5)


def test_a_target_follows_slowly_and_gives_no_gradient(critic):
    target, now, chunk = Target(critic), situation(4), torch.ones(4, 4, 2)
    before = critic(now, chunk)
    assert torch.allclose(target(now, chunk), before)
    weight = critic.mlp[0].weight
    old = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    target.follow(0.25)
    kept = target.get_buffer("mlp/0/weight")
    assert torch.allclose(kept, old + 0.25)
    assert not target(now, chunk).requires_grad
    assert not list(target.parameters())  # neither optimizer nor average touch it
    assert "mlp/0/weight" in target.state_dict()


class _Fixed:
    """Gives the numbers 0, 1, 2, ... as chunks."""

    def sample(self, condition, **_):
        count = len(condition.goal)
        return torch.arange(count, dtype=torch.float32)[:, None, None].expand(count, 4, 2)


def test_the_best_candidate_of_each_situation_is_kept():
    def value(_, chunks):  # highest near 2 and near 6
        return -((chunks[:, 0, 0] % 4 - 2) ** 2)[None]

    chosen = best_of(_Fixed(), value, situation(2), 4)  # pyright: ignore
    assert chosen[:, 0, 0].tolist() == [2.0, 6.0]
    assert best_of(_Fixed(), None, situation(2), 1).shape == (2, 4, 2)  # pyright: ignore
