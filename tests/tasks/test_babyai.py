import gymnasium
import numpy as np
import pytest
from minigrid.envs.babyai.core.verifier import ObjDesc

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS, normalise
from lmdiff.goals.sayings import load_sayings
from lmdiff.tasks import babyai_expert
from lmdiff.tasks.babyai import ACTIONS, SIDES, BabyAI
from lmdiff.tasks.babyai_expert import Expert
from lmdiff.tasks.babyai_missions import LEVELS, Mission
from lmdiff.tasks.worlds import make_world

LEFT, FORWARD, PICKUP = (ACTIONS.index(name) for name in ("left", "forward", "pickup"))


def act(world, index):
    return world.step(np.eye(7, dtype=np.float32)[index])


def follow(world):
    """Do as the expert says until the episode ends: whether it succeeded."""
    while True:
        action = world.expert_action()
        if action is None:
            return False
        *_, terminated, truncated, info = world.step(action)
        if terminated or truncated:
            return info["success"]


@pytest.mark.parametrize("name", LEVELS)
def test_the_expert_does_what_minigrid_asks(name):
    world = make_world(name)
    for seed in range(3):
        observation, info = world.reset(seed=seed)
        assert world.observation_space.contains(observation)
        assert info["goal"] in world.goals
        # minigrid says "a" where there are several.
        assert world.mission.replace(" a ", " the ") == info["goal"]
        assert follow(world)


def test_unknown_levels_are_named():
    with pytest.raises(UserError, match="babyai-goto-local"):
        BabyAI("babyai-moon")


def test_rooms_and_missions_are_those_of_minigrid(capsys):
    world = BabyAI("babyai-put-next-local")
    stock = gymnasium.make("BabyAI-PutNextLocal-v0").unwrapped
    for seed in range(3):
        world.reset(seed=seed)
        assert capsys.readouterr().out == ""
        stock.reset(seed=seed)
        assert world.mission == stock.mission
        assert (world.render() == stock.get_frame()).all()
        capsys.readouterr()


@pytest.mark.parametrize("name", ["babyai-goto-local", "babyai-pickup-loc"])
def test_a_room_does_not_depend_on_what_is_asked(name):
    world = BabyAI(name)
    for seed in range(5):
        first, _ = world.reset(seed=seed)
        for goal in world.possible()[:3]:
            observation, info = world.reset(seed=seed, options={"goal": goal})
            assert (observation == first).all()
            assert info["goal"] == goal
            assert follow(world)
            assert world.achieved(goal)


@pytest.mark.parametrize("name", LEVELS)
def test_the_state_agrees_with_minigrid_on_what_was_asked(name):
    """Asked for B, the expert does B: seen from another goal, the state says so."""
    world = BabyAI(name)
    for seed in range(3):
        _, info = world.reset(seed=seed)
        asked = info["goal"]
        assert asked in world.possible() or world.name == "babyai-open"
        assert not world._scene.achieved(Mission.of(world._env.instrs))
        assert follow(world)
        assert world._scene.achieved(world._missions[asked])
        world.goal = ""  # nothing is asked: every goal is judged by the state
        assert world.achieved(asked)


def test_a_mission_that_does_not_fit_is_neither_possible_nor_tried():
    world = BabyAI("babyai-goto-obj")
    _, info = world.reset(seed=0)
    assert world.possible() == (info["goal"],)
    other = next(goal for goal in world.goals if goal != info["goal"])
    world.reset(seed=0, options={"goal": other})
    assert world.expert_action() is None
    assert world.possible() == (info["goal"],)


def test_hindsight_sees_what_stands_before_the_agent():
    world = BabyAI("babyai-goto-local")
    seen = []
    for seed in range(5):
        observation, _ = world.reset(seed=seed)
        for _ in range(10):
            expected = [world._scene.achieved(m) for m in world._missions.values()]
            assert world.holds(observation[None])[0].tolist() == expected
            seen.extend(expected)
            observation, *_ = act(world, world.np_random.choice([LEFT, FORWARD, FORWARD]))
    assert any(seen)
    assert BabyAI("babyai-pickup-loc").holds(observation[None]) is None


def test_the_observation_holds_the_view_the_direction_and_the_previous_action():
    world = BabyAI("babyai-pickup-loc")
    observation, _ = world.reset(seed=3)
    view = observation[:735].reshape(7, 7, 15)
    image = world._env.gen_obs()["image"]
    kinds = np.array([1, 2, 5, 6, 7])  # minigrid's empty, wall, key, ball, box
    assert (view[..., :5] == (image[..., :1] == kinds)).all()
    colored = image[..., 0] > 2
    assert (view[colored][:, 5:11] == (image[colored][:, 1:2] == np.arange(6))).all()
    assert not view[~colored][:, 5:11].any()
    assert observation[735:739].argmax() == world._env.agent_dir
    assert not observation[739:].any()
    observation, *_ = act(world, LEFT)
    assert observation[735:739].argmax() == world._env.agent_dir
    assert observation[739:].tolist() == np.eye(7)[LEFT].tolist()
    assert follow(world)
    # What is carried is seen where the agent stands.
    carried = world._encode(world._env.gen_obs(), PICKUP)[:735].reshape(7, 7, 15)[3, 6]
    thing = Mission.of(world._env.instrs).thing
    assert carried[:5].argmax() == ("empty", "wall", "key", "ball", "box").index(thing.kind)


def test_cells_lie_on_the_sides_that_minigrid_means_wherever_the_agent_went():
    world, checked = BabyAI("babyai-pickup-loc"), 0
    for seed in range(20):
        observation, _ = world.reset(seed=seed)
        env = world._env
        meant = [ObjDesc(None, None, side).find_matching_objs(env)[1] for side in SIDES]
        meant = [{tuple(map(int, place)) for place in places} for places in meant]
        for _ in range(10):
            view = observation[:735].reshape(7, 7, 15)
            for x, y in np.argwhere(view[..., 2:5].any(-1)):
                ahead, across = 6 - y, x - 3
                place = env.agent_pos + ahead * env.dir_vec + across * env.right_vec
                expected = [tuple(map(int, place)) in places for places in meant]
                assert view[x, y, 11:].tolist() == expected
                checked += 1
            observation, *_ = act(world, world.np_random.choice([LEFT, FORWARD, FORWARD]))
    assert checked > 100
    # Another goal is meant from where the agent stands now.
    world.switch(world.possible()[0])
    view = world._encode(env.gen_obs(), None)[:735].reshape(7, 7, 15)
    assert not view[..., 14].any()  # nothing that is seen is behind
    assert view[3, 5, 11:].tolist() == [0, 0, 1, 0]


def test_the_expert_copes_with_other_actions_than_its_own():
    world = BabyAI("babyai-pickup-loc")
    rng = np.random.default_rng(0)
    successes = 0
    for seed in range(20):
        world.reset(seed=seed)
        for _ in range(world.episode_steps):
            action = world.expert_action()
            assert action is None or (action == world.expert_action()).all()
            if action is None:
                break
            # Left, right or forward instead, now and then.
            index = rng.integers(3) if rng.random() < 0.3 else action.argmax()
            *_, terminated, _, info = act(world, index)
            if terminated:
                break
        successes += info["success"]
    assert successes >= 19


def test_an_expert_that_was_not_asked_in_between_plans_anew():
    world = BabyAI("babyai-goto-local")
    for seed in range(10):
        world.reset(seed=seed)
        world.expert_action()
        ends = [act(world, LEFT)[2] for _ in range(3)]
        assert any(ends) or follow(world)


def test_a_bot_that_never_comes_to_an_action_is_cut(monkeypatch):
    """minigrid's bot plans for ever on this seed, once it has walked there."""
    monkeypatch.setattr(babyai_expert, "MOST_LOOKS", 100)
    env = gymnasium.make("BabyAI-Unlock-v0").unwrapped
    env.reset(seed=165)
    expert = Expert(env)
    steps = 0
    while steps < 200:
        action = expert.advise()
        if action is None:
            break
        env.step(action)
        expert.saw(action)
        steps += 1
    assert steps == 149
    expert.saw(LEFT)
    assert expert.advise() is None


@pytest.fixture(scope="module")
def sayings():
    return load_sayings("babyai")


def test_every_goal_is_said_in_every_split_and_no_sentence_means_two(sayings):
    goals = {str(mission) for level in LEVELS.values() for mission in level.missions}
    assert len(goals) == 18 + 105 + 306 + 6
    means = {}
    for goal in goals:
        for split in SPLITS:
            texts = sayings.of(goal, split)
            assert texts
            for text in texts:
                assert means.setdefault(normalise(text), goal) == goal
        assert goal in sayings.of(goal, "train")


def test_the_words_of_minigrid_are_taught(sayings):
    for name, level in LEVELS.items():
        world = BabyAI(name)
        for seed in range(10):
            _, info = world.reset(seed=seed)
            assert world.mission in sayings.of(info["goal"], "train"), level.id
