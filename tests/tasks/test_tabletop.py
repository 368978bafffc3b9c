"""Each world is built once: compiling its model takes seconds."""

import importlib

import numpy as np
import pytest

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS, normalise
from lmdiff.goals.sayings import load_sayings
from lmdiff.tasks.tabletop import Tabletop, make_singletask
from lmdiff.tasks.tabletop_goals import Board
from lmdiff.tasks.worlds import make_world

NAMES = ("cube-single", "scene", "puzzle-3x3")


@pytest.fixture(scope="module")
def worlds():
    made = {name: Tabletop(name) for name in NAMES}
    yield made
    for world in made.values():
        world.close()


def follow_expert(world):
    """The observations of an episode from the present state, and whether it succeeded."""
    observations = []
    for _ in range(world.episode_steps):
        observation, _, terminated, truncated, _ = world.step(world.expert_action())
        observations.append(observation)
        if terminated or truncated:
            return np.stack(observations), terminated
    raise AssertionError("an episode ends at its time limit")


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_achieves_and_observations_tell(worlds, name):
    world = worlds[name]
    goal = world.reset(seed=3)[1]["goal"]
    observations, success = follow_expert(world)
    assert success
    held = world.holds(observations)
    assert held.shape == (len(observations), len(world.goals))
    column = held[:, world.goals.index(goal)]
    assert column[-1]
    assert not column[:-1].any()
    for row, key in enumerate(world.goals):
        assert held[-1, row] == world.achieved(key)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_scene_and_expert_whatever_was_before(worlds, name):
    world = worlds[name]

    def episode(seed, goal):
        first, _ = world.reset(seed=seed, options={"goal": goal})
        actions = []
        for _ in range(3):
            actions.append(world.expert_action())
            world.step(actions[-1])
        return first, np.stack(actions)

    world.reset(seed=11)
    one, other = world.possible()[:2]
    first, actions = episode(11, one)
    swapped, _ = episode(11, other)
    np.testing.assert_array_equal(first, swapped)
    assert not np.array_equal(first, episode(12, one)[0])
    again, repeated = episode(11, one)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(actions, repeated)


def test_asking_the_expert_changes_nothing(worlds):
    world = worlds["scene"]
    np.random.seed(5)
    expected = np.random.RandomState(5).uniform()
    after = []
    for asked in (False, True):
        observation, _ = world.reset(seed=2, options={"goal": "put the cube left"})
        for _ in range(5):
            if asked:
                world.expert_action()
            observation = world.step(np.full(5, 0.3))[0]
        after.append(observation)
    np.testing.assert_array_equal(*after)
    assert np.random.uniform() == expected


def test_locks_say_what_is_possible(worlds):
    world = worlds["scene"]
    simulator = world._env
    for seed in range(8):
        world.reset(seed=seed)
        possible = set(world.possible())
        for index, thing in enumerate(("drawer", "window")):
            free = bool(simulator._cur_button_states[index])
            slid = abs(simulator.data.joint(f"{thing}_slide").qpos[0])
            reach = {"drawer": 0.16, "window": 0.2}[thing]
            assert (f"lock the {thing}" in possible) == free
            assert (f"unlock the {thing}" in possible) != free
            assert (f"close the {thing}" in possible) == (free and slid > 0.04)
            assert (f"open the {thing}" in possible) == (free and slid < reach - 0.04)
        opened = abs(simulator.data.joint("drawer_slide").qpos[0]) >= 0.12
        assert ("put the cube in the drawer" in possible) == opened


def test_one_scene_serves_goal_after_goal(worlds):
    world = worlds["scene"]
    world.reset(seed=4, options={"goal": "unlock the drawer"})
    for goal in (
        "lock the drawer",
        "unlock the drawer",
        "close the drawer",
        "open the drawer",
        "put the cube in the drawer",
    ):
        world.steps = 0
        if not world.achieved(goal):
            world.switch(goal)
            assert follow_expert(world)[1], goal
    assert not any("put the cube" in goal for goal in world.possible())
    world.switch("put the cube left")
    assert world.expert_action() is None


def test_a_locked_drawer_has_no_expert(worlds):
    world = worlds["scene"]
    world.reset(seed=0, options={"goal": "lock the drawer"})
    if not world.achieved("lock the drawer"):
        follow_expert(world)
    world.switch("open the drawer")
    assert world.expert_action() is None


def test_held_or_lifted_is_not_put(worlds):
    world = worlds["cube-single"]
    first, _ = world.reset(seed=0)
    here = world.holds(first[None])[0]
    assert here.sum() == 1
    held, lifted = first.copy(), first.copy()
    held[18] = 0.5  # contact
    lifted[21] += 0.2  # 2 cm
    assert not world.holds(np.stack([held, lifted])).any()


def test_places_are_those_of_the_picture():
    board = Board((0.3, -0.3), (0.55, 0.3), rows=3, columns=3)
    points = {"back-left": (0.31, -0.29), "front": (0.6, 0.0), "right": (0.42, 0.5)}
    for place, point in points.items():
        lies = {p for p in board.places if board.lies_in(p, np.array([point]))[0]}
        assert lies == {place}
    rng = np.random.default_rng(0)
    for place in board.places:
        drawn = np.stack([board.draw(place, rng) for _ in range(20)])
        assert board.lies_in(place, drawn).all()


def test_the_buttons_are_left_and_right_in_the_picture(worlds):
    world = worlds["scene"]
    try:
        importlib.import_module("mujoco.egl")
    except (ImportError, AttributeError) as error:  # as PyOpenGL tells of a missing library
        pytest.skip(f"no EGL: {error}")
    middles = []
    for button in range(2):
        world.reset(seed=1)
        frames = []
        for state in (0, 1):
            world._env._cur_button_states[button] = state
            world._env._apply_button_states()
            frames.append(world.render())
        assert frames[0].shape == (256, 256, 3)
        assert frames[0][100:180, -40:].any()  # the window stands there: nothing is cut off
        # Below row 180 are the buttons, above it the handles, which change their colours too.
        changed = np.abs(frames[0].astype(int) - frames[1]).sum(-1)[180:] > 60
        middles.append(np.nonzero(changed)[1].mean())
    assert middles[0] + 20 < middles[1]


def test_sentences_mean_one_goal_and_splits_are_disjoint(worlds):
    sayings = load_sayings("tabletop")
    for world in worlds.values():
        meaning = {}
        for goal in world.goals:
            said = {split: sayings.of(goal, split) for split in SPLITS}
            assert len(said["train"]) >= 10
            assert len(said["validation"]) >= 2
            assert len(said["held_out"]) >= 4
            for split, texts in said.items():
                for text in texts:
                    assert meaning.setdefault(normalise(text), (goal, split)) == (goal, split), text


def test_names_and_the_stock_single_tasks():
    with pytest.raises(UserError, match="table-tennis"):
        Tabletop("table-tennis")
    with pytest.raises(UserError, match="scene-deluxe"):
        make_world("scene-deluxe")
    with pytest.raises(UserError, match="task 6"):
        make_singletask("cube-single", 6)


def test_the_stock_single_task_rewards_by_parts():
    env = make_singletask("cube-single", 2)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (28,)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 200
    assert env.step(np.zeros(5))[1] == -1.0
