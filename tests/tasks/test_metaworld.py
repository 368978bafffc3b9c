import importlib

import numpy as np
import pytest

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS, normalise
from lmdiff.goals.sayings import load_sayings
from lmdiff.tasks.metaworld import MT10, MT50, MetaWorld, dense_reward
from lmdiff.tasks.worlds import make_world

QUICK = ("reach", "drawer-close", "button-press-topdown")


@pytest.fixture(scope="module")
def world():
    world = MetaWorld("metaworld-mt10")
    yield world
    world.close()


def episode(world, seed, goal, steps=3):
    """The first observations under the expert."""
    observations = [world.reset(seed=seed, options={"goal": goal})[0]]
    observations += [world.step(world.expert_action())[0] for _ in range(steps)]
    return np.stack(observations)


def test_names_and_goals():
    assert len(MT10) == 10
    assert len(MT50) == 50
    assert set(MT10) < set(MT50)
    assert make_world("metaworld-door-open").goals == ("door-open",)
    with pytest.raises(UserError, match=r"no task 'fly'.*door-open"):
        make_world("metaworld-fly")


@pytest.mark.parametrize("goal", QUICK)
def test_the_expert_achieves_the_goal(world, goal):
    world.reset(seed=1, options={"goal": goal})
    assert not world.achieved(goal)
    assert world.possible() == (goal,)
    terminated = truncated = False
    while not (terminated or truncated):
        action = world.expert_action()
        assert world.action_space.contains(action)
        _, reward, terminated, truncated, info = world.step(action)
        assert reward == float(terminated)
    assert info["success"]
    assert world.achieved(goal)
    assert not any(world.achieved(other) for other in MT10 if other != goal)


def test_doing_nothing_achieves_nothing(world):
    world.reset(seed=1, options={"goal": "reach"})
    assert not any(world.step(np.zeros(4))[2] for _ in range(20))


def test_a_seed_makes_the_scene_whatever_went_before(world):
    first = episode(world, 7, "push")
    episode(world, 8, "push", steps=20)
    episode(world, 8, "reach")
    assert np.array_equal(episode(world, 7, "push"), first)
    other = MetaWorld("metaworld-push")
    assert np.array_equal(episode(other, 7, "push"), first)
    other.close()


def test_placements_vary_with_the_seed_and_the_target_is_seen(world):
    starts = np.stack([world.reset(seed=s, options={"goal": "pick-place"})[0] for s in range(6)])
    assert starts.shape == (6, 39)
    for low, high in ((4, 6), (36, 39)):  # the puck's x and y; the target
        assert np.all(starts[:, low:high].std(axis=0) > 0.01)
    observation, *_ = world.step(np.zeros(4))
    assert np.array_equal(observation[36:], starts[-1, 36:])
    assert np.array_equal(observation[18:36], starts[-1, :18])  # what was seen a step ago


def test_what_is_seen_first_is_where_things_are(world):
    for seed in range(3):
        first, _ = world.reset(seed=seed, options={"goal": "drawer-open"})
        second, *_ = world.step(np.zeros(4))
        assert np.allclose(first[4:7], second[4:7], atol=0.002)  # the drawer's handle


def test_experts_of_other_scenes_keep_silent(world):
    world.reset(seed=0, options={"goal": "push"})
    world.switch("reach")
    assert world.expert_action() is None


def test_every_task_can_be_told_and_no_sentence_is_used_twice():
    sayings = load_sayings("metaworld")
    least = {"train": 12, "validation": 3, "held_out": 5}
    seen = {}
    for goal in MT50:
        for split in SPLITS:
            texts = sayings.of(goal, split)
            assert len(texts) >= least[split], (goal, split)
            for text in texts:
                assert seen.setdefault(normalise(text), (goal, split)) == (goal, split), text


def test_held_out_sentences_share_less_than_half_of_their_words_with_any_taught_one():
    sayings = load_sayings("metaworld")
    for goal in MT50:
        taught = [set(normalise(text).split()) for text in sayings.of(goal, "train")]
        for text in sayings.of(goal, "held_out"):
            words = set(normalise(text).split())
            shares = [len(words & other) / len(words | other) for other in taught]
            assert max(shares) < 0.5, (goal, text)


def test_rendering(world):
    try:
        importlib.import_module("mujoco.egl")
    except (ImportError, AttributeError) as error:  # as PyOpenGL tells of a missing library
        pytest.skip(f"no EGL: {error}")
    world.reset(seed=0, options={"goal": "drawer-close"})
    frame = world.render()
    assert frame.shape == (256, 256, 3)
    assert frame.dtype == np.uint8
    # Upright: wood below (red beats blue by far), the grey room above.
    red_over_blue = frame[..., 0].astype(int) - frame[..., 2]
    assert red_over_blue[-64:].mean() > red_over_blue[:64, 128:].mean() + 10


def test_the_dense_reward_rises_towards_the_goal_and_never_pays_for_waiting(world):
    world.reset(seed=0, options={"goal": "reach"})
    rewards = []
    for _ in range(60):
        achieved = world.step(world.expert_action())[2]
        rewards.append(dense_reward(world))
        if achieved:
            break
    assert all(-1 <= reward <= 0 for reward in rewards)
    assert rewards[-1] > rewards[0] + 0.3
