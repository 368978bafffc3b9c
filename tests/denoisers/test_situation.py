"""Readings of goals that are kept for an episode are those that would be made anew."""

import pytest
import torch

from lmdiff.denoisers.policy_networks import PolicyMLP, PolicyTransformer
from lmdiff.denoisers.situation import GoalReader, Situation, with_nothing
from lmdiff.goals.encoder import GoalTokens


def _situation() -> Situation:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 16, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    words = with_nothing(GoalTokens(states, mask))
    return Situation(torch.randn(4, 3, generator=generator), words, torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("kind", [PolicyMLP, PolicyTransformer])
def test_a_kept_reading_is_the_reading(kind):
    torch.manual_seed(0)
    network = kind(3, 2, 4, 16, width=32, layers=2)
    anew = _situation()
    kept = anew._replace(readings={})
    changed = torch.randn(4, 3), torch.tensor([1, 0, 2, 2])
    for observation, goal in ((anew.observation, anew.goal), changed):
        first, second = (
            network.read(situation._replace(observation=observation, goal=goal))
            for situation in (anew, kept)
        )
        torch.testing.assert_close(second, first, atol=0, rtol=0)
    assert len(kept.readings or {}) == 1


def test_each_reader_reads_once_and_for_itself():
    first, second = GoalReader(16, 8), GoalReader(16, 8)
    anew, kept = _situation(), _situation()._replace(readings={})
    before = first(kept)
    assert not torch.equal(second(kept), before)
    torch.nn.init.zeros_(first.query)  # what was read with the weights before is kept
    assert torch.equal(first(kept), before)
    assert not torch.equal(first(anew), before)
