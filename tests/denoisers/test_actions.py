import pytest
import torch

from lmdiff.denoisers.actions import ActionDenoiser, ActionDraw
from lmdiff.denoisers.actors import OneStepPolicy, make_actor
from lmdiff.denoisers.policy_networks import PolicyMLP, PolicyTransformer
from lmdiff.denoisers.situation import CellReader, GoalReader, Situation, with_nothing
from lmdiff.goals.encoder import GoalTokens

NETWORKS = {
    "mlp": lambda **more: PolicyMLP(3, 2, 4, 16, width=64, layers=3, **more),
    "transformer": lambda **more: PolicyTransformer(3, 2, 4, 16, width=32, layers=2, **more),
}


def situations(goals, seed=0, batch=None):
    """Situations whose observation says nothing, under goals 0, 1 or 2 (2: none)."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(9))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    words = with_nothing(GoalTokens(states, mask))
    goal = torch.as_tensor(goals)
    return Situation(torch.randn(len(goal), 3, generator=generator), words, goal)


def test_no_goal_is_a_row_without_tokens():
    hidden = situations([0, 1, 0]).hidden(torch.tensor([True, False, False]))
    assert hidden.goal.tolist() == [2, 1, 0]
    assert not hidden.words.mask[2].any()
    vectors = GoalReader(16, 32)(hidden)
    assert vectors.shape == (3, 32)
    assert not torch.allclose(vectors[0], vectors[1])


def test_what_is_masked_is_not_read():
    situation = situations([1])
    states = situation.words.states.clone()
    states[1, 3:] = 100.0
    other = situation._replace(words=GoalTokens(states, situation.words.mask))
    reader = GoalReader(16, 32)
    assert torch.equal(reader(situation), reader(other))
    network = NETWORKS["transformer"]()
    torch.nn.init.normal_(network.head[1].weight)
    level, sample = torch.ones(1, 1), torch.randn(1, 4, 2)
    first, second = (network(sample, level, network.read(s)) for s in (situation, other))
    assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("process", ["flow", "vp"])
def test_it_learns_what_words_ask_for(name, process):
    torch.manual_seed(0)
    denoiser = ActionDenoiser(NETWORKS[name](process=process))
    optimizer = torch.optim.AdamW(denoiser.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0.8, -0.8])
    for step in range(250):
        goal = torch.randint(0, 2, (64,), generator=generator)
        x = wanted[goal][:, None, None] + 0.05 * torch.randn(64, 4, 2, generator=generator)
        loss = denoiser.loss(x, situations(goal, step), denoiser.draw_noise(x, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        chunks = denoiser.sample(situations([0, 1] * 20), generator=generator)
    means = chunks.view(20, 2, -1).mean((0, 2))
    assert torch.allclose(means, wanted, atol=0.15)
    assert chunks.abs().max() <= 1


def test_actions_that_do_not_count_change_nothing():
    denoiser = ActionDenoiser(NETWORKS["mlp"]())
    x = torch.randn(2, 4, 2)
    counted = torch.tensor([[True, True, False, False], [True] * 4])
    draw = ActionDraw(torch.tensor([0.3, 0.7]), torch.randn(2, 4, 2), counted)
    assert denoiser.loss(x, situations([0, 1]), draw).shape == (2,)
    other = x.clone()
    other[0, 2:] += 10
    losses = [denoiser.loss(values, situations([0, 1]), draw) for values in (x, other)]
    assert losses[0][1] == losses[1][1]


def test_guidance_leads_away_from_nothing():
    denoiser = ActionDenoiser(NETWORKS["mlp"]())
    torch.nn.init.normal_(denoiser.network.head[1].weight, std=0.05)
    noise = torch.randn(1, 4, 2)
    plain, nothing, guided = (
        denoiser.sample(situations([goal]), 1, noise=noise, guidance_scale=scale)
        for goal, scale in ((0, 1.0), (2, 1.0), (0, 2.0))
    )
    expected = (nothing + 2 * (plain - nothing)).clamp(-1, 1)
    inside = (expected.abs() < 1) & (plain.abs() < 1) & (nothing.abs() < 1)
    assert inside.any()
    assert torch.allclose(guided[inside], expected[inside], atol=1e-5)


def test_a_network_without_levels_is_a_one_step_policy():
    policy = make_actor(NETWORKS["mlp"](levels=0))
    assert isinstance(policy, OneStepPolicy)
    generator = torch.Generator().manual_seed(0)
    assert policy.sample(situations([0, 1]), generator=generator).shape == (2, 4, 2)
    assert isinstance(make_actor(NETWORKS["mlp"]()), ActionDenoiser)


def test_like_cells_are_read_alike():
    torch.manual_seed(0)
    reader = CellReader(3, 2, history=2, goal_width=8, outer=4)
    goal = torch.randn(1, 8)
    # Two observations of three cells of two numbers, and a number that is no cell's.
    observation = torch.tensor([[1.0, 0, 0, 1, 1, 0, 9, 0, 0, 0, 1, 1, 0, 9]])
    read = reader(observation, goal).view(2, 3, 4)
    assert reader.width == 24
    assert torch.allclose(read[0, 0], read[0, 2])
    assert torch.allclose(read[0, 1], read[1, 1])
    assert not torch.allclose(read[0, 0], read[0, 1])
    assert not torch.allclose(read, reader(observation, torch.randn(1, 8)).view(2, 3, 4))
