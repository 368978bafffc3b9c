import numpy as np
import pytest

from lmdiff.data.chunks import ChunkSampler, mixed
from lmdiff.data.recordings import Demonstration, joined
from lmdiff.data.replay import Replay
from lmdiff.errors import UserError
from lmdiff.policy_config import ChunkConfig


def episode(start, rewards=None):
    return Demonstration(
        np.arange(start, start + 4, dtype=np.float32)[:, None] + 0.5,
        np.zeros((3, 1), np.float32),
        np.zeros(3, np.int64),
        np.array([False, False, True]),
        rewards,
    )


def round_of(*starts, rewards=None):
    return joined([episode(start, rewards) for start in starts])


def test_rounds_come_back_and_later_ones_are_dropped(tmp_path):
    replay = Replay(tmp_path / "replay")
    for start in (0, 10, 20):
        replay.add(round_of(start))
    assert replay.everything.steps == 9
    (tmp_path / "replay" / ".tmp-round-00000003.safetensors").write_bytes(b"half")

    again = Replay(tmp_path / "replay")
    again.rewind(2)
    assert again.everything.observations[:, 0].tolist() == [
        0.5,
        1.5,
        2.5,
        3.5,
        10.5,
        11.5,
        12.5,
        13.5,
    ]
    names = sorted(path.name for path in (tmp_path / "replay").iterdir())
    assert names == ["round-00000000.safetensors", "round-00000001.safetensors"]
    again.add(round_of(30))
    assert again.everything.lengths.tolist() == [3, 3, 3]

    with pytest.raises(UserError, match="round-00000003"):
        Replay(tmp_path / "replay").rewind(4)
    (tmp_path / "replay" / "round-00000001.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        Replay(tmp_path / "replay").rewind(3)


def test_processes_that_do_not_write_leave_files_alone(tmp_path):
    Replay(tmp_path).add(round_of(0))
    other = Replay(tmp_path)
    other.rewind(0, delete=False)
    other.add(round_of(10), write=False)
    assert other.everything.steps == 3
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000000.safetensors"]


def sampler(recording, holds=None, **config):
    chunks = ChunkConfig(**{"horizon": 2} | config)
    return ChunkSampler(recording, ("there",), {"there": ["go"]}, chunks, 0.9, holds)


def test_dense_rewards_take_the_place_of_success(tmp_path):
    replay = Replay(tmp_path)
    replay.add(round_of(0, rewards=np.array([1.0, 2.0, 4.0])))
    replay.rewind(1)
    batch = sampler(replay.everything).batch(0, 0, 50)
    at = {int(o): i for i, o in enumerate(batch.observation[:, -1, 0])}
    assert batch.reward[at[0]] == pytest.approx(1 + 0.9 * 2)
    assert batch.reward[at[1]] == pytest.approx(2 + 0.9 * 4)
    assert batch.reward[at[2]] == pytest.approx(4)
    assert batch.discount[at[1]] == batch.discount[at[2]] == 0
    with pytest.raises(UserError, match="dense reward"):
        sampler(replay.everything, np.ones((4, 1), bool), hindsight=0.5)


def test_mixed_batches_keep_their_goals():
    own, recorded = round_of(0), round_of(100)
    goals, said = ("there", "back"), {"there": ["go"], "back": ["return"]}
    recorded = joined([Demonstration(*vars(episode(100)).values())])
    parts = [
        ChunkSampler(own, goals, said, ChunkConfig(horizon=2), 0.9).batch(0, 0, 3),
        ChunkSampler(recorded, goals[::-1], said, ChunkConfig(horizon=2), 0.9).batch(0, 0, 5),
    ]
    batch = mixed(parts)
    assert [batch.phrases[g] for g in batch.goal] == ["go"] * 3 + ["return"] * 5
    assert (batch.observation[:3] < 50).all()
    assert (batch.observation[3:] > 50).all()
    assert len(batch.reward) == len(batch.action) == 8
