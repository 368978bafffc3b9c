import pytest
import torch

from lmdiff.algos.imitation import imitation_loss
from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.trajectory import TrajectoryDenoiser
from lmdiff.goals.encoder import GoalTokens

BATCH = 16


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    network = TrajectoryTransformer(2, 2, 1, 2, 8, 4, width=16, layers=1, heads=2)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    return TrajectoryDenoiser(network, {"planner": 0.7, "controller": 0.3})


@pytest.fixture
def x():
    return torch.randn(BATCH, 4, 5, generator=seeded(1))


@pytest.fixture
def condition():
    states = torch.randn(BATCH, 3, 8, generator=seeded(2))
    mask = torch.ones(BATCH, 3, dtype=torch.bool)
    return Condition(GoalTokens(states, mask), torch.randn(BATCH, 2, generator=seeded(3)))


def test_all_goals_hidden(denoiser, x, condition):
    hidden = imitation_loss(denoiser, x, condition, 1.0, seeded(0))["loss"]
    unconditional = imitation_loss(denoiser, x, Condition(), 1.0, seeded(0))["loss"]
    plain = imitation_loss(denoiser, x, condition, 0.0, seeded(0))["loss"]
    assert hidden.shape == ()
    torch.testing.assert_close(hidden, unconditional)
    assert not torch.isclose(plain, unconditional)


def test_no_goal_hidden(denoiser, x, condition):
    generator = seeded(0)
    torch.rand(BATCH, generator=generator)  # who is hidden is drawn first
    expected = denoiser.loss(x, condition, denoiser.draw_noise(x, generator)).mean()
    torch.testing.assert_close(
        imitation_loss(denoiser, x, condition, 0.0, seeded(0))["loss"], expected
    )


def test_a_share_of_the_goals_is_hidden(x, condition):
    class Counts:
        """A denoiser that notes how many goals it is shown."""

        shown = 0

        def draw_noise(self, x, generator):
            return torch.rand(len(x), generator=generator)

        def loss(self, x, condition, draw):
            assert torch.equal(condition.words.mask.any(1), condition.state_given)
            self.shown += int(condition.state_given.sum())
            return draw

    counts, generator = Counts(), seeded(0)
    losses = [imitation_loss(counts, x, condition, 0.25, generator)["loss"] for _ in range(200)]
    assert counts.shown / (200 * BATCH) == pytest.approx(0.75, abs=0.03)
    assert torch.stack(losses).mean().item() == pytest.approx(0.5, abs=0.05)
    # The batch's own goals are left as they were.
    assert condition.words.mask.all()
    assert condition.state_given is None


def test_it_is_differentiable_and_determined(denoiser, x, condition):
    losses = [
        imitation_loss(denoiser, x, condition, 0.5, seeded(seed))["loss"] for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    assert denoiser.network.embed.weight.grad.any()
