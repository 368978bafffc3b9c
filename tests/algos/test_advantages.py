import pytest
import torch

from lmdiff.algos.advantages import group_advantages
from lmdiff.errors import UserError

REWARDS = torch.tensor([1.0, 0.0, 0.0, 3.0, 0.1, 0.1, 0.1, 0.1])


def test_group_mean():
    advantages = group_advantages(REWARDS, 4, scale="none")
    torch.testing.assert_close(advantages, torch.tensor([0.0, -1.0, -1.0, 2.0, 0, 0, 0, 0]))


def test_group_std():
    advantages = group_advantages(REWARDS, 4)
    expected = (REWARDS[:4] - 1.0) / (REWARDS[:4].std() + 1e-4)
    torch.testing.assert_close(advantages[:4], expected)


def test_batch_std():
    advantages = group_advantages(REWARDS, 4, scale="batch")
    torch.testing.assert_close(advantages[:4], (REWARDS[:4] - 1.0) / (REWARDS.std() + 1e-4))


def test_leave_one_out():
    advantages = group_advantages(REWARDS[:4], 4, "leave-one-out", "none")
    others = torch.stack([(4.0 - r) / 3 for r in REWARDS[:4]])
    torch.testing.assert_close(advantages, REWARDS[:4] - others)


def test_without_a_baseline_only_rewarded_samples_count():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, torch.nan])
    advantages = group_advantages(rewards, 4, "none", "none")
    torch.testing.assert_close(advantages, torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0]))
    scaled = group_advantages(rewards[:4], 4, "none", "group")
    torch.testing.assert_close(scaled, rewards[:4] / (rewards[:4].std() + 1e-4))


@pytest.mark.parametrize("baseline", ["mean", "leave-one-out"])
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_equal_rewards_are_exactly_zero(baseline, scale):
    rewards = torch.cat([torch.full((7,), 0.1), torch.arange(7.0)])
    advantages = group_advantages(rewards, 7, baseline, scale)
    assert (advantages[:7] == 0).all()  # 0.1 summed seven times is not 0.7
    assert advantages[7:].any()
    assert advantages.sum().item() == pytest.approx(0, abs=1e-5)


def test_unknown_rewards_are_left_out():
    rewards = torch.tensor([1.0, torch.nan, 0.0, 2.0, torch.nan, torch.nan, torch.nan, 5.0])
    for baseline in ("mean", "leave-one-out"):
        advantages = group_advantages(rewards, 4, baseline)
        known = group_advantages(torch.tensor([1.0, 0.0, 2.0]), 3, baseline)
        torch.testing.assert_close(advantages[[0, 2, 3]], known)
        assert advantages[1] == 0
        assert (advantages[4:] == 0).all()


def test_refusals():
    with pytest.raises(UserError, match="not whole groups of 3"):
        group_advantages(REWARDS, 3)
    with pytest.raises(UserError, match="2 samples a prompt"):
        group_advantages(REWARDS, 1)
