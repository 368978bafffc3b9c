from typing import ClassVar

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler
from torch import nn

from lmdiff.denoisers.actors import make_actor
from lmdiff.denoisers.flow_map import FlowMap
from lmdiff.denoisers.policy_networks import PolicyMLP
from lmdiff.denoisers.situation import Situation, with_nothing
from lmdiff.errors import UserError
from lmdiff.goals.encoder import GoalTokens

MEAN, STD = 0.2, 0.1


def spread(level):
    """Standard deviation at a level, of the flow from N(0, 1) to N(MEAN, STD^2)."""
    return ((1 - level) ** 2 * STD**2 + level**2).sqrt()


def solution(xt, level, to):
    """The ODE of that flow, solved: quantiles stay quantiles."""
    level, to = level[:, None, None], to[:, None, None]
    quantile = (xt - (1 - level) * MEAN) / spread(level)
    return (1 - to) * MEAN + spread(to) * quantile


class GaussianNetwork(nn.Module):
    """Gives the clean chunk that makes the map the solution."""

    config: ClassVar = {
        "horizon": 3,
        "action_size": 2,
        "levels": 2,
        "process": "flow",
        "prediction": "sample",
    }

    def read(self, situation):
        return None

    def forward(self, sample, level, context):
        start, to = level.unbind(-1)
        way = (start - to)[:, None, None]
        velocity = (sample - solution(sample, start, to)) / way
        return sample - start[:, None, None] * velocity


def situation(batch, goal=0):
    states = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(9))
    words = with_nothing(GoalTokens(states, torch.ones(1, 4, dtype=torch.bool)))
    return Situation(torch.zeros(batch, 3), words, torch.full((batch,), goal))


def learnt(std=0.3, **more):
    torch.manual_seed(0)
    network = PolicyMLP(3, 2, 3, 8, width=32, layers=2, levels=2, **more)
    nn.init.normal_(network.head[1].weight, std=std)  # pyright: ignore
    return FlowMap(network)


def test_no_way_at_all_changes_nothing():
    flow_map, xt, level = learnt(), torch.randn(5, 3, 2), torch.rand(5)
    assert torch.equal(flow_map(xt, level, level, situation(5)), xt)
    assert not torch.allclose(flow_map(xt, level, level * 0, situation(5)), xt)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_number_of_steps_of_the_true_map_gives_the_solution(steps):
    noise = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0))
    chunks = FlowMap(GaussianNetwork()).sample(situation(50), steps, noise=noise)  # pyright: ignore
    assert torch.allclose(chunks, MEAN + STD * noise, atol=1e-5)


def test_unequal_steps_through_the_scheduler():
    noise = torch.randn(50, 3, 2)
    scheduler = FlowMapEulerDiscreteScheduler(1000, shift=3.0)
    flow_map = FlowMap(GaussianNetwork())  # pyright: ignore
    chunks = flow_map.sample(situation(50), 3, scheduler, noise)
    assert scheduler.sigmas[1] > 0.8
    assert torch.allclose(chunks, MEAN + STD * noise, atol=1e-5)


def test_its_loss_is_flow_matching_between_equal_levels():
    flow_map, x = learnt(prediction="velocity"), torch.randn(4, 3, 2)
    draw = flow_map.draw_noise(x, torch.Generator().manual_seed(0))
    xt = torch.lerp(x, draw.noise, draw.level[:, None, None])
    context = flow_map.network.read(situation(4))
    velocity = flow_map.velocity(xt, draw.level, draw.level, context)
    expected = ((velocity - (draw.noise - x)) ** 2).mean((1, 2))
    assert torch.allclose(flow_map.loss(x, situation(4), draw), expected)


def test_guidance_leads_away_from_nothing():
    flow_map, noise = learnt(0.03, prediction="velocity"), 0.1 * torch.randn(1, 3, 2)
    plain, nothing, guided = (
        flow_map.sample(situation(1, goal), 1, noise=noise, guidance_scale=scale)
        for goal, scale in ((0, 1.0), (1, 1.0), (0, 2.0))
    )
    expected = nothing + 2 * (plain - nothing)
    inside = (expected.abs() < 1) & (plain.abs() < 1) & (nothing.abs() < 1)
    assert inside.any()
    assert torch.allclose(guided[inside], expected[inside], atol=1e-5)


def test_two_levels_make_a_flow_map_and_only_of_a_flow():
    assert isinstance(make_actor(learnt().network), FlowMap)
    with pytest.raises(UserError, match="process"):
        learnt(process="vp")
