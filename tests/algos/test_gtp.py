import pytest
import torch
from bandits import MODES, SIZES, acts, bandit, config, seeded, share_near, situation, train

from lmdiff.algos.config import GTPConfig
from lmdiff.algos.policies import make_algorithm

MEAN, STD = 0.2, 0.15


def gaussian(generator):
    batch = bandit(generator)
    action = MEAN + STD * torch.randn(batch.action.shape, generator=generator)
    return batch._replace(action=action, reward=torch.zeros_like(batch.reward))


def test_one_step_is_as_good_as_many():
    """From N(0, 1) to N(m, s^2), the flow takes z to m + s z."""
    torch.manual_seed(0)
    algorithm = make_algorithm(config("gtp"), SIZES)
    train(algorithm, 700, gaussian)
    noise = torch.randn(200, 2, 2, generator=seeded(1))
    with torch.no_grad():
        one, four = (algorithm.actor.sample(situation(200), n, noise=noise) for n in (1, 4))
    assert (one - four).abs().mean() < 0.04
    assert (one - (MEAN + STD * noise)).abs().mean() < 0.05


def test_the_map_teaches_modes_where_lines_to_the_data_blur_them():
    shares = {}
    for teacher in ("map", "data"):
        torch.manual_seed(0)
        settings = GTPConfig(teacher=teacher, largest_weight=1.0)  # no weights: imitation
        algorithm = make_algorithm(config("gtp", gtp=settings), SIZES)
        train(algorithm, 300)
        chunks = acts(algorithm, num_inference_steps=1)
        shares[teacher] = sum(share_near(chunks, mode) for mode in MODES)
    assert shares["map"] > 0.7
    assert shares["data"] < shares["map"] - 0.2


@pytest.mark.parametrize("teacher", ["map", "data"])
def test_actions_that_do_not_count_change_nothing(teacher):
    torch.manual_seed(0)
    algorithm = make_algorithm(config("gtp", gtp=GTPConfig(teacher=teacher)), SIZES)
    batch = bandit(seeded(), 8)
    counted = torch.tensor([[False, False], *[[True, False]] * 7])
    draw = algorithm.actor.draw_noise(batch.action, seeded(), counted)
    torch.nn.init.normal_(algorithm.actor.network.head[1].weight, std=0.5)
    loss = algorithm._consistency(batch.action, batch.now, draw, seeded())
    assert loss[0] == 0
    assert (loss[1:] > 0).all()
