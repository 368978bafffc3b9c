import pytest
import torch
from bandits import SIZES, bandit, config, seeded

from lmdiff.algos.config import AlgorithmConfig, NetworkConfig
from lmdiff.algos.policies import Sizes, make_algorithm, make_network


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_network_is_what_config_and_task_say(kind):
    settings = NetworkConfig(kind=kind, width=32, layers=2, heads=2, process="vp")
    sizes = Sizes(observation=3, history=2, action=2, horizon=4, words=8)
    made = make_network(AlgorithmConfig(network=settings), sizes, levels=2).config
    assert made["observation_size"] == 6
    assert (made["action_size"], made["horizon"], made["words_width"]) == (2, 4, 8)
    assert (made["width"], made["layers"], made["levels"]) == (32, 2, 2)
    assert (made["process"], made["prediction"]) == ("vp", "velocity")
    if kind == "transformer":
        assert (made["history"], made["heads"]) == (2, 2)


def test_bc_is_the_mean_denoising_loss():
    algorithm = make_algorithm(config("bc"), SIZES)
    batch, generator = bandit(seeded()), seeded(1)
    torch.rand(len(batch.reward), generator=generator)  # who is hidden is drawn first
    draw = algorithm.actor.draw_noise(batch.action, generator, batch.counted)
    expected = algorithm.actor.loss(batch.action, batch.now, draw).mean()
    assert torch.equal(algorithm(batch, seeded(1))["loss"], expected)
