import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.evaluation.agents import load_pipeline, settings_of
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.saved_agents import find_agent

STRIDE, HORIZON = 4, 6
HERE = [4.0, -3.0]
GOAL = "go to the top left corner"
KINDS = [("flow", "sample"), ("flow", "velocity"), ("vp", "sample"), ("vp", "velocity")]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def plan(pipe, goal=GOAL, observation=HERE, seed=0, **settings):
    settings = {"num_inference_steps": 3} | settings
    return pipe(goal, observation=observation, generator=seeded(seed), **settings)


def same(first, second):
    # Kernels differ in the last bit with the weights' place in memory.
    return all(np.allclose(first[key], second[key], 1e-5, 1e-5, equal_nan=True) for key in first)


@pytest.mark.parametrize(("process", "prediction"), KINDS)
def test_a_plan(make_pipe, process, prediction):
    pipe = make_pipe(process, prediction)
    found = plan(pipe)
    assert found.observations.shape == (1, HORIZON, 2)
    assert found.remaining.shape == (1, HORIZON)
    assert found.arrival.shape == (1,)
    np.testing.assert_allclose(found.observations[0, 0], HERE, rtol=1e-5)
    assert np.isfinite(found.observations).all()
    assert same(plan(pipe), found)
    assert not same(plan(pipe, seed=1), found)
    for other in ("go to the bottom", None, ""):
        assert not np.allclose(plan(pipe, other).observations, found.observations)
    assert same(plan(pipe, None), plan(pipe, ""))
    assert same(plan(pipe, guidance_scale=0.0), plan(pipe, guidance_scale=0.0))
    assert not same(plan(pipe, guidance_scale=2.0), found)


def test_goals_in_words_as_states_and_prepared(pipe):
    in_words = plan(pipe)
    as_state = plan(pipe, None, goal_state=[1.0, 2.0])
    both = plan(pipe, goal_state=[1.0, 2.0])
    assert len({found.remaining.tobytes() for found in (in_words, as_state, both)}) == 3
    assert same(plan(pipe, pipe.encode_goal(GOAL)), in_words)
    assert same(plan(pipe, pipe.encode_goal(goal_state=[[1.0, 2.0]])), as_state)
    # In the task's units, as observations are.
    condition = pipe.encode_goal(goal_state=[5.0, -3.0])
    assert torch.equal(condition.state, torch.zeros(1, 2))


def test_words_are_imagined_as_a_recorded_state(make_pipe, tmp_path):
    pipe = make_pipe(prior=True)
    known = pipe.normalizer.decode_part(pipe.goal_prior.known).numpy()
    texts = [GOAL, "", "go to the bottom"]
    found = plan(pipe, texts, [HERE] * 3)
    for row, goal in enumerate(found.goal_states):
        if not texts[row]:
            assert np.isnan(goal).all()
            continue
        assert np.isclose(known, goal, atol=1e-5).all(1).any()
        # What arrives, arrives there.
        end = int(found.arrival[row])
        assert (found.observations[row, end:] == goal).all()
    # Other draws may mean other states; a state that is given is not imagined.
    drawn = [plan(pipe, GOAL, seed=seed).goal_states[0] for seed in range(8)]
    assert len(np.unique(np.stack(drawn), axis=0)) > 1
    told = plan(pipe, GOAL, goal_state=[1.0, 2.0])
    np.testing.assert_allclose(told.goal_states, [[1.0, 2.0]], rtol=1e-5)
    # The planner hears the words too.
    state = found.goal_states[:1]
    assert not same(plan(pipe, None, goal_state=state), plan(pipe, GOAL, goal_state=state))

    pipe.save_pretrained(tmp_path)
    loaded = GoalPipeline.from_pretrained(tmp_path)
    assert same(plan(loaded, texts, [HERE] * 3), found)


def test_without_a_prior_no_state_is_made_up(pipe):
    assert pipe.goal_prior is None
    assert plan(pipe).goal_states is None
    assert pipe.encode_goal(GOAL).state is None


def test_many_goals(pipe):
    texts = [GOAL, "", "go to the bottom"]
    found = plan(pipe, texts, [HERE, [0.0, 0.0], HERE])
    assert found.observations.shape == (3, HORIZON, 2)
    for row, observation in enumerate([HERE, [0.0, 0.0], HERE]):
        np.testing.assert_allclose(found.observations[row, 0], observation, atol=1e-5)
    # A goal's plan is the same whatever the others are.
    other = plan(pipe, [GOAL, "go to the right corner", "go to the top"], [HERE, HERE, HERE])
    np.testing.assert_allclose(other.observations[0], found.observations[0], rtol=1e-4, atol=1e-4)
    assert not np.allclose(other.observations[2], found.observations[2])


def test_one_goal_from_many_places_and_many_goals_from_one(pipe):
    places = [HERE, [0.0, 0.0]]
    for goal in ({"goal": GOAL}, {"goal": None, "goal_state": [1.0, 2.0]}):
        twice = {key: value and [value, value] for key, value in goal.items()}
        for settings in ({}, {"guidance_scale": 2.0}):
            one = plan(pipe, observation=places, **goal, **settings)
            assert same(one, plan(pipe, observation=places, **twice, **settings))
            many = plan(pipe, observation=HERE, **twice, **settings)
            assert same(many, plan(pipe, observation=[HERE, HERE], **twice, **settings))
    with pytest.raises(UserError, match="3 goals"):
        plan(pipe, [GOAL] * 3, places)
    with pytest.raises(UserError, match="0 goals"):
        plan(pipe, [], HERE)
    with pytest.raises(UserError, match="goal"):
        plan(pipe, [GOAL] * 2, HERE, goal_state=[[1.0, 2.0]] * 3)


def test_arrival_is_each_plan_s_own(pipe):
    stands = np.array(
        [
            [20, 16, 12, 8, 4, 0],  # there at the end
            [20, 16, 1, 0, 0, 0],  # there in the middle
            [40, 36, 32, 28, 24, 20],  # not there
        ]
    )
    size = sum(pipe.network.group_sizes)

    def sample(condition, given, *unused):
        values = torch.zeros(len(given), HORIZON, size)
        values[..., -1] = -torch.from_numpy(stands[rows]).float()
        return pipe.normalizer.encode(values)

    pipe.denoiser.sample = sample
    for rows, expected in (([0], [5]), ([1], [3]), ([2], [6]), ([0, 1, 2], [5, 3, 6])):
        found = pipe([GOAL] * len(rows), observation=[HERE] * len(rows))
        np.testing.assert_allclose(found.remaining, stands[rows], atol=1e-3)
        assert found.arrival.tolist() == expected


@pytest.mark.parametrize(("process", "prediction"), KINDS)
def test_actions(make_pipe, process, prediction):
    pipe = make_pipe(process, prediction)
    found = plan(pipe, [GOAL, GOAL], [HERE, [0.0, 0.0]])
    places, ahead = found.observations[:, 0], found.observations[:, 1:]
    for actions in (
        pipe.act(places, ahead),
        pipe.act(places, ahead[:, :1]),
        pipe.act(places, np.tile(ahead, (1, 3, 1))),  # more than the network can see
        pipe.act_towards(places, pipe.encode_goal([GOAL, "go to the bottom"])),
    ):
        assert actions.shape == (2, STRIDE, 2)
        assert np.abs(actions).max() <= 1
        assert np.isfinite(actions).all()
    assert pipe.act(HERE, ahead[:1]).shape == (1, STRIDE, 2)
    # Steep weights leave [-1, 1] unless they are held there.
    pipe.network.head.weight.data.mul_(100)
    assert np.abs(pipe.act(places, ahead)).max() == 1


def test_actions_are_the_same_each_time(pipe):
    ahead = plan(pipe).observations[:, 1:]
    first = pipe.act(HERE, ahead)
    torch.manual_seed(1)
    np.testing.assert_array_equal(pipe.act(HERE, ahead), first)
    assert not np.allclose(pipe.act(HERE, ahead + 1), first)


@pytest.mark.parametrize("adaptation", ["frozen", "lora", "full"])
@pytest.mark.parametrize(("process", "prediction"), KINDS[1:3])
def test_save_and_load(tmp_path, make_pipe, process, prediction, adaptation):
    pipe = make_pipe(process, prediction, adaptation, refuses=True)
    if adaptation == "lora":  # an untrained adapter adds nothing
        for name, parameter in pipe.goal_encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    pipe.save_pretrained(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert find_agent(str(tmp_path)) == tmp_path

    text = "go to the top"
    for again in (load_pipeline(tmp_path), GoalPipeline.from_pretrained(tmp_path)):
        again.to("cpu")
        assert same(plan(again, text), plan(pipe, text))
        assert same(plan(again, None, goal_state=HERE), plan(pipe, None, goal_state=HERE))
        ahead = plan(pipe, text).observations[:, 1:]
        np.testing.assert_allclose(again.act(HERE, ahead), pipe.act(HERE, ahead), atol=1e-5)
        assert again.config["stride"] == STRIDE
        assert again.config["task"] == "pointmaze-medium"
        assert settings_of(again).num_inference_steps == 3
        assert again.known_goals.score(text) == pipe.known_goals.score(text)


def test_an_agent_that_refuses_nothing_is_saved_and_loaded(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path).to("cpu")
    assert again.known_goals is None
    assert same(plan(again, "sing"), plan(pipe, "sing"))


def test_goals_that_were_not_taught(make_pipe):
    pipe = make_pipe(refuses=True)
    plan(pipe, "go to the top")
    plan(pipe, ["go to the top", "go to the left"], [HERE, HERE])
    for goal in ("bake a cake", ["go to the top", "bake a cake"], "?!", "   "):
        with pytest.raises(GoalNotUnderstood) as refusal:
            plan(pipe, goal)
        assert "go to the top" in refusal.value.nearest
    plan(pipe, None, goal_state=HERE)


@pytest.mark.parametrize(("process", "prediction"), KINDS)
def test_schedulers_are_swapped(tmp_path, make_pipe, process, prediction):
    pipe = make_pipe(process, prediction)
    pipe.network.head.weight.data.mul_(0.1)  # smooth enough for few steps
    own, settings = pipe.scheduler, pipe.scheduler.config
    coarse = plan(pipe)
    fine = plan(pipe, num_inference_steps=200)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(settings)
    swapped = plan(pipe, num_inference_steps=200)
    # Another solver of the same equation.
    gap = np.abs(swapped.observations - fine.observations).max()
    assert 0 < gap < 0.15
    pipe.save_pretrained(tmp_path)
    assert same(plan(load_pipeline(tmp_path).to("cpu")), plan(pipe))
    # And back.
    pipe.scheduler = type(own).from_config(pipe.scheduler.config)
    assert same(plan(pipe), coarse)


def test_wrong_schedulers_are_refused(make_pipe):
    flow, vp = make_pipe("flow"), make_pipe("vp")
    for pipe, schedulers in (
        (flow, [DDIMScheduler(), vp.scheduler, DDPMScheduler(), EulerDiscreteScheduler()]),
        (flow, [DPMSolverMultistepScheduler(), FlowMatchEulerDiscreteScheduler()]),
        (vp, [flow.scheduler, DDIMScheduler(), EulerDiscreteScheduler()]),
    ):
        own = pipe.scheduler
        for scheduler in schedulers:
            pipe.scheduler = scheduler
            with pytest.raises(UserError, match="from_config"):
                plan(pipe)
        pipe.scheduler = own
        plan(pipe)


def test_wrong_inputs(pipe):
    for observation in ([1.0], [1.0, 2.0, 3.0], [[[1.0, 2.0]]], 1.0):
        with pytest.raises(UserError, match="B, 2"):
            plan(pipe, observation=observation)
        with pytest.raises(UserError, match="B, 2"):
            plan(pipe, None, goal_state=observation)
        with pytest.raises(UserError, match="B, 2"):
            pipe.act(observation, np.zeros((1, 3, 2)))
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="finite"):
            plan(pipe, observation=[1.0, bad])
        with pytest.raises(UserError, match="finite"):
            plan(pipe, None, goal_state=[1.0, bad])
    for steps in (0, -1):
        with pytest.raises(UserError, match="num_inference_steps"):
            plan(pipe, num_inference_steps=steps)
    with pytest.raises(UserError, match="too long"):
        plan(pipe, "top " * 60)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "agent"


@pytest.fixture
def agent(saved, tmp_path, make_pipe):
    """A folder to damage."""
    if not saved.exists():
        make_pipe(refuses=True).save_pretrained(saved)
    folder = tmp_path / "agent"
    shutil.copytree(saved, folder)
    return folder


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"\x80\x04garbage" * 10)


def remove(path):
    path.unlink()


FILES = [
    "model_index.json",
    "network/config.json",
    "network/diffusion_pytorch_model.safetensors",
    "normalizer/config.json",
    "goal_encoder/config.json",
    "known_goals/config.json",
    "known_goals/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
]


@pytest.mark.parametrize("damage", [halve, empty, garbage, remove])
@pytest.mark.parametrize("name", FILES)
def test_damaged_agents(agent, name, damage):
    damage(agent / name)
    with pytest.raises(UserError):
        load_pipeline(agent)


@pytest.mark.parametrize("name", sorted({name.split("/")[0] for name in FILES[1:]}))
def test_agents_with_a_folder_missing(agent, name):
    shutil.rmtree(agent / name)
    with pytest.raises(UserError):
        load_pipeline(agent)


def test_agents_whose_parts_do_not_fit(agent):
    path = agent / "network/config.json"
    config = json.loads(path.read_text())
    for change in ({"width": 32}, {"goal_size": 3}, {"process": "flow", "prediction": "epsilon"}):
        path.write_text(json.dumps(config | change))
        with pytest.raises(UserError):
            load_pipeline(agent)
    path.write_text(json.dumps(config))
    load_pipeline(agent)


def test_agents_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="lmdiff train"):
        find_agent(str(tmp_path / "nothing"))
    with pytest.raises(UserError):
        load_pipeline(tmp_path)
