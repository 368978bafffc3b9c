import numpy as np
import pytest
import torch

from lmdiff.data.chunks import ChunkSampler
from lmdiff.data.recordings import Demonstration, joined
from lmdiff.errors import UserError
from lmdiff.policy_config import ChunkConfig

GOALS = ("even", "odd")
PHRASES = {"even": ["be even"], "odd": ["be odd", "get odd"]}


def episode(length, success_at=None, goal=0, start=0.0):
    """Observations count up from `start`; actions say the step's number."""
    success = np.zeros(length, bool)
    if success_at is not None:
        success[success_at] = True
    return Demonstration(
        np.arange(start, start + length + 1, dtype=np.float32)[:, None],
        np.arange(length, dtype=np.float32)[:, None] / 10,
        np.full(length, goal),
        success,
    )


def sampler(episodes, holds=None, **config):
    return ChunkSampler(joined(episodes), GOALS, PHRASES, ChunkConfig(**config), 0.9, holds)


def rows(found, size=400):
    """The batch as one row for each start: (first observation, batch row)."""
    batch = found.batch(0, 0, size)
    return batch, {int(o): i for i, o in enumerate(batch.observation[:, -1, 0])}


def test_rewards_and_discounts_until_success():
    batch, at = rows(sampler([episode(6, success_at=3)], horizon=2))
    # From step 0: two steps without success.
    assert batch.reward[at[0]] == pytest.approx(-1 - 0.9)
    assert batch.discount[at[0]] == pytest.approx(0.81)
    # From step 2: one without, then success; nothing comes after.
    assert batch.reward[at[2]] == pytest.approx(-1)
    assert batch.discount[at[2]] == 0
    # At success itself nothing is lost.
    assert batch.reward[at[3]] == 0
    assert batch.discount[at[3]] == 0
    # After it, as far as the recording goes, it is no success any more.
    assert batch.discount[at[5]] == pytest.approx(0.9)
    assert batch.counted[at[5]].tolist() == [True, False]


def test_chunks_stay_in_their_episode():
    batch, at = rows(sampler([episode(3), episode(3, start=100)], horizon=4))
    assert batch.action[at[1], :, 0].tolist() == pytest.approx([0.1, 0.2, 0.2, 0.2])
    assert batch.next_observation[at[1], -1, 0] == 3
    assert batch.next_observation[at[100], -1, 0] == 103
    assert batch.discount[at[100]] == pytest.approx(0.9**3)


def test_history_repeats_the_first_observation():
    batch, at = rows(sampler([episode(4, start=10)], history=3, horizon=1))
    assert batch.observation[at[10], :, 0].tolist() == [10, 10, 10]
    assert batch.observation[at[12], :, 0].tolist() == [10, 11, 12]
    assert batch.next_observation[at[10], :, 0].tolist() == [10, 10, 11]


def test_a_batch_is_a_function_of_seed_and_shard():
    found = sampler([episode(9), episode(9, goal=1)])
    first, again = found.batch(3, 5, 8), found.batch(3, 5, 8)
    assert torch.equal(first.observation, again.observation)
    assert first.phrases == again.phrases
    assert not torch.equal(first.observation, found.batch(3, 6, 8).observation)


def test_each_row_is_told_its_own_goal():
    found = sampler([episode(5), episode(5, goal=1, start=50)])
    batch = found.batch(0, 0, 100)
    said = [batch.phrases[i] for i in batch.goal]
    for text, first in zip(said, batch.observation[:, 0, 0], strict=True):
        assert text in PHRASES["odd" if first >= 50 else "even"]


def test_hindsight_asks_for_what_came_later():
    data = [episode(8)]
    values = joined(data).observations[:, 0]
    holds = np.stack([values >= 4, values >= 7], 1)  # "even" begins at step 3, "odd" at 6
    found = sampler(data, holds, horizon=1, hindsight=1.0)
    batch, _ = rows(found)
    for i in range(400):
        first, text = int(batch.observation[i, 0, 0]), batch.phrases[batch.goal[i]]
        achieved = batch.discount[i] == 0
        if first in (4, 5, 6):
            assert text in PHRASES["odd"]  # "even" holds already: it does not begin again
        if first == 3 and text in PHRASES["even"]:
            assert achieved
        if first < 3:
            assert not achieved
        if first == 6:
            assert achieved


def test_random_goals_include_those_never_achieved():
    data = [episode(8)]
    holds = np.zeros((9, 2), bool)
    found = sampler(data, holds, horizon=1, random_goals=1.0)
    batch = found.batch(0, 0, 200)
    assert {text in PHRASES["odd"] for text in batch.phrases} == {True, False}
    assert (batch.discount > 0).all()


def test_hindsight_needs_a_world_that_tells():
    with pytest.raises(UserError, match=r"chunks\.hindsight"):
        sampler([episode(3)], hindsight=0.5)
