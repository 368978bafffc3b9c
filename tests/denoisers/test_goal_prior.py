"""The goal prior learns which states words describe, also where they describe several."""

import pytest
import torch

from lmdiff.algos.imitation import imitation_loss
from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.goal_prior import GoalPrior
from lmdiff.goals.encoder import GoalTokens

# Four phrases of one token; the last one means the left place, and one time in five the right one.
MEANT = torch.tensor(
    [
        [[1.5, 1.5], [1.5, 1.5]],
        [[-1.5, 1.5], [-1.5, 1.5]],
        [[1.5, -1.5], [1.5, -1.5]],
        [[-1.5, 0], [1.5, 0.0]],
    ]
)


def said(rows):
    return Condition(GoalTokens(torch.eye(4)[rows][:, None], torch.ones(len(rows), 1).bool()))


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = GoalPrior(2, 4, known_states=5, width=16, readings=2, hidden=64)
    model.known.copy_(torch.cat([MEANT[:3, 0], MEANT[3]]))
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(400):
        rows = torch.randint(4, (32,), generator=generator)
        which = (torch.rand(32, 8, generator=generator) < 0.2).long()
        x = MEANT[rows[:, None], which] + 0.1 * torch.randn(32, 8, 2, generator=generator)
        loss = imitation_loss(model, x, said(rows), 0.1, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_words_become_states_that_they_describe(prior):
    rows = torch.arange(4).repeat(50)
    states = prior.sample(said(rows), len(rows), generator=torch.Generator().manual_seed(1))
    fits = (states[:, None] == MEANT[rows]).all(-1).any(-1)
    assert fits.float().mean() > 0.95


def test_the_likely_reading_is_taken(prior):
    def share_of_the_right_place(candidates):
        rows, generator = torch.full((200,), 3), torch.Generator().manual_seed(2)
        states = prior.sample(said(rows), 200, candidates=candidates, generator=generator)
        return (states[:, 0] > 0).float().mean()

    assert 0.1 < share_of_the_right_place(candidates=1) < 0.4
    assert share_of_the_right_place(candidates=8) < 0.05


def test_samples_are_recorded_states_and_repeat(prior):
    rows = torch.arange(4)

    def draw(seed):
        return prior.sample(said(rows), 4, generator=torch.Generator().manual_seed(seed))

    states = draw(0)
    assert (states[:, None] == prior.known).all(-1).any(-1).all()
    assert torch.equal(draw(0), states)
    # Without words, anything that was ever meant may come.
    generator = torch.Generator().manual_seed(0)
    nothing = prior.sample(Condition(), 200, candidates=1, generator=generator)
    assert len(nothing.unique(dim=0)) == len(prior.known)


def test_loss_is_the_error_of_the_clean_state(prior):
    x, condition = MEANT, said(torch.arange(4))
    draw = prior.draw_noise(x, torch.Generator().manual_seed(0))
    losses = prior.loss(x, condition, draw)
    assert losses.shape == (4,)
    assert torch.equal(prior.loss(x, condition, draw), losses)
    # Rows do not see each other, and a hidden goal is no goal.
    hidden = condition.hidden(torch.tensor([True, False, False, False]))
    mixed = prior.loss(x, hidden, draw)
    torch.testing.assert_close(mixed[1:], losses[1:])
    torch.testing.assert_close(mixed[:1], prior.loss(x, Condition(), draw)[:1])
    assert mixed[0] > losses[0]


def test_save_and_load(prior, tmp_path):
    prior.save_pretrained(tmp_path)
    loaded = GoalPrior.from_pretrained(tmp_path)
    assert torch.equal(loaded.known, prior.known)
    generator = torch.Generator().manual_seed(3)
    first = prior.sample(said(torch.arange(4)), 4, generator=generator)
    generator.manual_seed(3)
    assert torch.equal(loaded.sample(said(torch.arange(4)), 4, generator=generator), first)
