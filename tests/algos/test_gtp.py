import pytest
import torch
from bandits import MODES, SIZES, acts, bandit, config, seeded, share_near, situation, train

from lmdiff.algos.config import GTPConfig, NetworkConfig
from lmdiff.algos.gtp import consistency_loss
from lmdiff.algos.policies import make_algorithm
from lmdiff.denoisers.actions import ActionDraw
from lmdiff.goals.encoder import GoalTokens

MEAN, STD = 0.2, 0.15


def gaussian(generator):
    batch = bandit(generator)
    action = MEAN + STD * torch.randn(batch.action.shape, generator=generator)
    return batch._replace(action=action, reward=torch.zeros_like(batch.reward))


def test_one_step_is_as_good_as_many():
    """From N(0, 1) to N(m, s^2), the flow takes z to m + s z."""
    torch.manual_seed(0)
    algorithm = make_algorithm(config("gtp"), SIZES)
    train(algorithm, 900, gaussian)
    noise = torch.randn(200, 2, 2, generator=seeded(1))
    with torch.no_grad():
        one, four = (algorithm.actor.sample(situation(200), n, noise=noise) for n in (1, 4))
    assert (one - four).abs().mean() < 0.04
    assert (one - (MEAN + STD * noise)).abs().mean() < 0.05


def test_one_step_keeps_both_modes():
    torch.manual_seed(0)
    settings = GTPConfig(largest_weight=1.0)  # no weights: imitation
    algorithm = make_algorithm(config("gtp", gtp=settings), SIZES)
    train(algorithm, 400)
    chunks = acts(algorithm, num_inference_steps=1)
    shares = [share_near(chunks, mode) for mode in MODES]
    assert sum(shares) > 0.7
    assert min(shares) > 0.2


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_map_is_consistent_where_its_mean_velocity_is_that_of_the_flow(kind):
    """The loss is least where `u` obeys the flow map's identity, here checked by differences."""
    torch.manual_seed(0)
    network = NetworkConfig(kind=kind, width=16, layers=1)
    actor = make_algorithm(config("gtp", network=network), SIZES).actor.double()
    torch.nn.init.normal_(actor.network.head[1].weight, std=0.5)
    x = bandit(seeded(), 8).action.double()
    now = situation(8)._replace(observation=torch.zeros(8, SIZES.observation).double())
    now = now._replace(words=GoalTokens(now.words.states.double(), now.words.mask))
    draw = actor.draw_noise(x, seeded())
    draw = ActionDraw(draw.level.double(), draw.noise.double())
    to = draw.level / 3
    velocity = draw.noise - x
    xt, step = actor.process.corrupt(x, draw.noise, draw.level[:, None, None]), 1e-5
    with torch.no_grad():
        context = actor.network.read(now)
        ahead, behind = (
            actor.velocity(xt + sign * step * velocity, draw.level + sign * step, to, context)
            for sign in (1, -1)
        )
        change = (ahead - behind) / (2 * step)
        wanted = velocity - (draw.level - to)[:, None, None] * change
        error = (actor.velocity(xt, draw.level, to, context) - wanted) ** 2
    found = consistency_loss(actor, x, now, draw, to)
    torch.testing.assert_close(found, error.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert found.requires_grad


def test_actions_that_do_not_count_change_nothing():
    torch.manual_seed(0)
    actor = make_algorithm(config("gtp"), SIZES).actor
    batch = bandit(seeded(), 8)
    counted = torch.tensor([[False, False], *[[True, False]] * 7])
    draw = actor.draw_noise(batch.action, seeded(), counted)
    torch.nn.init.normal_(actor.network.head[1].weight, std=0.5)
    loss = consistency_loss(actor, batch.action, batch.now, draw, draw.level / 2)
    assert loss[0] == 0
    assert (loss[1:] > 0).all()
