import multiprocessing
import sys

import numpy as np
import pytest
from line_world import FAULTS, Line, break_line

from lmdiff.data import demonstrations
from lmdiff.data.demonstrations import demonstrate
from lmdiff.data.recordings import joined, read_recording
from lmdiff.errors import EnvironmentFault, UserError
from lmdiff.policy_config import WorldConfig


def config(dataset="expert", **more):
    return WorldConfig(name="line", dataset=dataset, **{"noise": 0.0, **more})


def test_an_expert_without_noise_does_what_is_asked():
    episode = demonstrate(Line(), config(), 0)
    assert episode.success.any()
    towards = -1 if episode.goals[0] == 0 else 1
    assert (episode.actions[:, 0] == towards).all()
    # A few steps after success are kept.
    assert len(episode.actions) == episode.success.argmax() + 5
    assert len(episode.observations) == len(episode.actions) + 1


def test_imitation_keeps_what_the_expert_would_do_and_mixed_what_was_done():
    expert = demonstrate(Line(), config(noise=2.0), 3)
    mixed = demonstrate(Line(), config("mixed", noise=2.0), 3)
    assert set(np.unique(expert.actions)) <= {-1.0, 1.0}
    moved = 0.5 * mixed.actions[:, 0]
    assert np.allclose(np.diff(mixed.observations[:, 0]), moved, atol=1e-5)
    assert not set(np.unique(mixed.actions)) <= {-1.0, 1.0}


def test_play_goes_on_to_the_next_goal():
    world = Line()
    world.episode_steps = 60
    episode = demonstrate(world, config("play"), 0)
    assert len(episode.actions) == 60
    assert set(episode.goals) == {0, 1}
    assert episode.success.sum() >= 2


def test_an_episode_is_a_function_of_seed_and_index():
    first, again = (demonstrate(Line(), config("mixed", noise=1.0), 5) for _ in range(2))
    assert np.array_equal(first.actions, again.actions)
    other = demonstrate(Line(), config("mixed", noise=1.0), 6)
    assert not np.array_equal(first.actions[:3], other.actions[:3])


def test_recordings_come_back_as_they_were(tmp_path):
    recording = joined([demonstrate(Line(), config(), index) for index in range(4)])
    recording.save(tmp_path / "r.safetensors")
    again = read_recording(tmp_path / "r.safetensors")
    for name, array in vars(recording).items():
        assert np.array_equal(array, getattr(again, name)), name
    assert again.episode.tolist() == sorted(again.episode)


def test_small_whole_numbers_are_kept_small():
    episode = demonstrate(Line(), config(), 0)
    codes = joined([type(episode)(np.ones((3, 2)), np.zeros((2, 1)), np.zeros(2), np.zeros(2))])
    assert codes.observations.dtype == np.uint8
    assert joined([episode]).observations.dtype == np.float32


@pytest.mark.parametrize("damage", ["cut", "missing", "nan"])
def test_a_damaged_recording_is_named(tmp_path, damage):
    path = tmp_path / "r.safetensors"
    recording = joined([demonstrate(Line(), config(), 0)])
    if damage == "nan":
        recording.actions[1] = np.nan
    recording.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    if damage == "missing":
        from safetensors.numpy import save_file

        save_file({"actions": recording.actions}, path)
    with pytest.raises(UserError, match=f"rm {path}"):
        read_recording(path)


def test_an_empty_recording_is_refused(monkeypatch):
    monkeypatch.setattr(Line, "expert_action", lambda self: None)
    with pytest.raises(UserError, match="Not one step"):
        joined([demonstrate(Line(), config(), 0)])


def test_no_episodes_are_refused():
    with pytest.raises(UserError, match=r"world\.episodes"):
        demonstrations.load_or_record(WorldConfig(name="line", episodes=0))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
@pytest.mark.parametrize("said", FAULTS)
def test_a_world_that_fails_leaves_no_recording(monkeypatch, tmp_path, said):
    break_line(monkeypatch, said)
    for name in ("make_world", "_made"):
        monkeypatch.setattr(demonstrations, name, Line)
    monkeypatch.setattr(demonstrations, "data_folder", lambda: tmp_path)
    # Processes that are forked have the broken world.
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(demonstrations, "get_context", lambda _: fork)
    with pytest.raises(EnvironmentFault) as raised:
        demonstrations.load_or_record(WorldConfig(name="line", episodes=2), quiet=True)
    assert str(raised.value) == (
        f"The world line {said}, at step 1 of an episode. Nothing was recorded. Mend the world, "
        "then run the command again."
    )
    assert not list(tmp_path.rglob("*.safetensors"))
