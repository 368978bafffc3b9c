import pytest
import torch
from torch.nn import functional as F

from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.network import TrajectoryTransformer, attend
from lmdiff.denoisers.trajectory import TrajectoryDenoiser
from lmdiff.goals.encoder import GoalTokens

ROLES = {"planner": 0.5, "controller": 0.25, "policy": 0.25}
KINDS = [("flow", "sample"), ("flow", "velocity"), ("vp", "sample"), ("vp", "epsilon")]


def sampled(denoiser, condition, given, generator, **settings):
    """A plan in a few steps."""
    scheduler = denoiser.process.scheduler()
    return denoiser.sample(
        condition, given, "planner", scheduler, 3, generator=generator, **settings
    )


@pytest.mark.parametrize(("process", "prediction"), KINDS)
def test_one_loss_a_sample_that_a_draw_determines(
    make_denoiser, windows, goals, generator, process, prediction
):
    denoiser = make_denoiser(process, prediction, ROLES)
    x, condition = windows(6), goals(6)
    draw = denoiser.draw_noise(x, generator(0))
    first = denoiser.loss(x, condition, draw)
    assert first.shape == (6,)
    assert (first > 0).all()
    assert torch.equal(denoiser.loss(x, condition, draw), first)
    again = denoiser.draw_noise(x, generator(0))
    assert torch.equal(denoiser.loss(x, condition, again), first)
    other = denoiser.draw_noise(x, generator(1))
    assert (denoiser.loss(x, condition, other) != first).all()


@pytest.mark.parametrize(("process", "prediction"), KINDS)
def test_samples_are_their_generator_s(
    make_denoiser, windows, goals, generator, process, prediction
):
    denoiser = make_denoiser(process, prediction)
    x, condition = windows(2), goals(2)
    first = sampled(denoiser, condition, x, generator(0))
    assert torch.equal(sampled(denoiser, condition, x, generator(0)), first)
    assert not torch.allclose(sampled(denoiser, condition, x, generator(1)), first)


def test_levels_are_stratified(make_denoiser, windows, generator):
    denoiser = make_denoiser()
    for batch in (1, 7, 64):
        level = denoiser.draw_noise(windows(batch), generator(batch)).level
        assert (level * batch).long().sort().values.tolist() == list(range(batch))
    # Not in order: a sample's level says nothing about its place in the batch.
    assert not torch.equal(level, level.sort().values)


def test_batch_equals_single(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser(roles=ROLES)
    x, condition = windows(5), goals(5)
    draw = denoiser.draw_noise(x, generator(0))
    together = denoiser.loss(x, condition, draw)
    for row in range(5):
        part = slice(row, row + 1)
        masks = type(draw.masks)(
            draw.masks.asked[part], draw.masks.absent[part], draw.masks.goal[part]
        )
        single = type(draw)(draw.level[part], draw.noise[part], masks)
        alone = denoiser.loss(x[part], condition.rows([row]), single)
        torch.testing.assert_close(alone, together[part], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_a_sample_s_plan_is_its_own(make_denoiser, windows, goals, generator, guidance_scale):
    denoiser = make_denoiser()
    settings = {"guidance_scale": guidance_scale}
    x, condition = windows(3), goals(3)
    plan = sampled(denoiser, condition, x, generator(0), **settings)
    x[1:] += 1
    others = sampled(denoiser, condition.rows([0, 2, 1]), x, generator(0), **settings)
    torch.testing.assert_close(others[0], plan[0], rtol=1e-4, atol=1e-4)
    assert not torch.isclose(others[1:], plan[1:])[..., :2].any()


def test_hidden_goals_are_no_goals(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser()
    x = windows(4)
    draw = denoiser.draw_noise(x, generator(0))
    where = torch.tensor([True, False, True, False])
    nothing = denoiser.loss(x, Condition(), draw)
    for words, state in ((True, True), (True, False), (False, True)):
        condition = goals(4, words, state)
        shown = denoiser.loss(x, condition, draw)
        hidden = denoiser.loss(x, condition.hidden(where), draw)
        torch.testing.assert_close(hidden[where], nothing[where])
        torch.testing.assert_close(hidden[~where], shown[~where])
        assert not torch.isclose(shown, nothing).any()
    # What was hidden stays hidden.
    twice = goals(4).hidden(where).hidden(~where)
    torch.testing.assert_close(denoiser.loss(x, twice, draw), nothing)


def test_words_and_states_each_say_something(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser()
    x = windows(3)
    draw = denoiser.draw_noise(x, generator(0))
    losses = torch.stack(
        [
            denoiser.loss(x, goals(3, words, state), draw)
            for words in (False, True)
            for state in (False, True)
        ]
    )
    for row in range(3):
        assert losses[:, row].unique().numel() == 4
    # Rows of one batch may be given either.
    both = goals(3)
    mixed = Condition(
        GoalTokens(both.words.states, both.words.mask & torch.tensor([[True], [True], [False]])),
        both.state,
        torch.tensor([True, False, True]),
    )
    found = denoiser.loss(x, mixed, draw)
    expected = torch.stack([losses[3, 0], losses[2, 1], losses[1, 2]])
    torch.testing.assert_close(found, expected)


def test_padding_of_words_says_nothing(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser()
    x, condition = windows(4), goals(4)
    draw = denoiser.draw_noise(x, generator(0))
    expected = denoiser.loss(x, condition, draw)
    states = F.pad(condition.words.states, (0, 0, 0, 3), value=7.0)
    states = torch.where(F.pad(condition.words.mask, (0, 3))[..., None], states, 7.0)
    padded = Condition(GoalTokens(states, F.pad(condition.words.mask, (0, 3))), condition.state)
    torch.testing.assert_close(denoiser.loss(x, padded, draw), expected)
    assert not torch.isclose(
        denoiser.loss(x, Condition(GoalTokens(states, states[..., 0] < 9), condition.state), draw),
        expected,
    ).all()


def test_the_order_of_goals_is_the_order_of_windows(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser()
    x, condition = windows(3), goals(3)
    draw = denoiser.draw_noise(x, generator(0))
    swapped = denoiser.loss(x, condition.rows([1, 0, 2]), draw)
    plain = denoiser.loss(x, condition, draw)
    assert (torch.isclose(swapped, plain) == torch.tensor([False, False, True])).all()


def test_guidance(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser()
    x, condition = windows(3), goals(3)
    plain = sampled(denoiser, condition, x, generator(0))
    unconditional = sampled(denoiser, Condition(), x, generator(0))
    torch.testing.assert_close(
        sampled(denoiser, condition, x, generator(0), guidance_scale=0.0), unconditional
    )
    almost = sampled(denoiser, condition, x, generator(0), guidance_scale=1 + 1e-6)
    torch.testing.assert_close(almost, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, unconditional, atol=1e-2)
    # In one step, the plan is affine in the guidance.
    one = {"num_inference_steps": 1, "role": "planner"}
    plans = [
        denoiser.sample(
            condition,
            x,
            scheduler=denoiser.process.scheduler(),
            guidance_scale=scale,
            generator=generator(0),
            **one,
        )
        for scale in (0.0, 1.0, 3.0)
    ]
    torch.testing.assert_close(plans[2], plans[0] + 3 * (plans[1] - plans[0]), rtol=1e-4, atol=1e-4)


def test_every_parameter_learns(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser(roles=ROLES)
    x = windows(8)
    draw = denoiser.draw_noise(x, generator(0))
    denoiser.loss(x, goals(8), draw).mean().backward()
    still = [
        name
        for name, parameter in denoiser.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert still == []


def test_the_goal_learns_too(make_denoiser, windows, generator):
    denoiser = make_denoiser()
    x = windows(2)
    states = torch.randn(2, 3, 8, generator=generator(0)).requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    draw = denoiser.draw_noise(x, generator(1))
    denoiser.loss(x, Condition(GoalTokens(states, mask)), draw).sum().backward()
    assert torch.isfinite(states.grad).all()
    assert torch.equal(states.grad.any(-1), mask)


@pytest.mark.parametrize(("process", "prediction"), KINDS)
def test_save_and_load(tmp_path, make_denoiser, windows, goals, generator, process, prediction):
    denoiser = make_denoiser(process, prediction)
    denoiser.network.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = TrajectoryDenoiser(TrajectoryTransformer.from_pretrained(tmp_path))
    assert again.process == denoiser.process
    x, condition = windows(2), goals(2)
    plan = sampled(denoiser, condition, x, generator(0))
    assert torch.equal(sampled(again, condition, x, generator(0)), plan)


@pytest.mark.parametrize(("process", "prediction"), KINDS)
def test_bf16(make_denoiser, windows, goals, generator, process, prediction):
    denoiser = make_denoiser(process, prediction, ROLES)
    x, condition = windows(8), goals(8)
    draw = denoiser.draw_noise(x, generator(0))
    expected = denoiser.loss(x, condition, draw)
    with torch.autocast("cpu", torch.bfloat16):
        loss = denoiser.loss(x, condition, draw)
        plan = sampled(denoiser, condition, x, generator(0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.02)
    loss.mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters() if p.grad is not None)
    assert torch.isfinite(plan).all()


def test_attention_keeps_fp32_on_a_cpu(generator):
    """There, the gradient of bf16 attention takes ten times as long."""
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=generator(0)).bfloat16()
    mask = torch.tensor([True, True, False, True, True]).expand(2, 1, 1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        told = attend(query, key, value, mask)
    weights = (query.float() @ key.float().mT / 8**0.5).masked_fill(~mask, -torch.inf)
    assert told.dtype == torch.float32
    torch.testing.assert_close(told, weights.softmax(-1) @ value.float())


def test_shorter_windows(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser()
    x = windows(2, horizon=2)
    assert sampled(denoiser, goals(2), x, generator(0)).shape == x.shape
