"""SDAC draws from exp(Q / alpha): checked where the density is known."""

import pytest
import torch
from bandits import SIZES, acts, config, seeded, situation, train

from lmdiff.algos.config import NetworkConfig, SDACConfig
from lmdiff.algos.policies import make_algorithm
from lmdiff.algos.sdac import _truncated_gaussian
from lmdiff.algos.transitions import Transitions


def anywhere(generator, batch=128):
    """Chunks all over the box; those whose every action is near 0.6 pay most."""
    action = 2 * torch.rand(batch, 2, 2, generator=generator) - 1
    reward = -((action - 0.6) ** 2).mean((1, 2))
    counted = torch.ones(batch, 2, dtype=torch.bool)
    now = situation(batch)
    return Transitions(now, action, counted, reward, torch.zeros(batch), now)


@pytest.mark.parametrize(
    ("process", "prediction"), [("flow", "sample"), ("flow", "velocity"), ("vp", "sample")]
)
def test_what_pays_is_found_though_nothing_shows_it(process, prediction):
    torch.manual_seed(0)
    network = NetworkConfig(width=64, layers=3, process=process, prediction=prediction)
    setting = SDACConfig(temperature=0.1, proposals=32, candidates=1, flow_steps=1)
    algorithm = make_algorithm(config("sdac", network=network, sdac=setting), SIZES)
    metrics = train(algorithm, 250, anywhere)
    assert [name for name, value in metrics.items() if value.requires_grad] == ["loss"]
    chunks = acts(algorithm)
    assert chunks.mean((0, 1)).sub(0.6).abs().max() < 0.12
    assert chunks.std() < 0.35  # of all over the box it is 0.58


class Quadratic(torch.nn.Module):
    """A critic that is known: exp(Q / alpha) is a Gaussian around 0.2."""

    def forward(self, situation, chunks):
        return -((chunks - 0.2) ** 2).sum((1, 2))[None]


def test_the_policy_is_as_wide_as_alpha_says():
    """Under Q = -|a - 0.2|^2, exp(Q / alpha) has the variance alpha / 2."""
    torch.manual_seed(0)
    network = NetworkConfig(width=64, layers=3, prediction="sample")
    setting = SDACConfig(temperature=0.05, proposals=128, candidates=1)
    algorithm = make_algorithm(config("sdac", network=network, sdac=setting), SIZES)
    algorithm.critic = Quadratic()
    optimizer, generator = torch.optim.Adam(algorithm.actor.parameters(), 3e-3), seeded()
    alphas = []
    for _ in range(400):
        loss, alpha = algorithm._actor_loss(*anywhere(generator)[:2], generator)
        alphas.append(float(alpha))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    alpha = sum(alphas[-50:]) / 50
    chunks = acts(algorithm, 1000, num_inference_steps=20)
    assert chunks.mean() == pytest.approx(0.2, abs=0.05)
    assert chunks.std() == pytest.approx((alpha / 2) ** 0.5, rel=0.25)


def test_proposals_are_gaussians_within_the_box():
    mean = torch.tensor([[0.0], [0.9], [500.0], [-3.0]])
    deviation = torch.tensor([[0.2], [0.5], [1000.0], [0.01]])
    draws = _truncated_gaussian(mean, deviation, 4000, seeded())[..., 0]
    assert draws.shape == (4, 4000)
    assert draws.abs().max() <= 1
    exact = torch.distributions.Normal(0.9, 0.5).sample((200_000,))
    exact = exact[exact.abs() <= 1]
    assert draws[0].std() == pytest.approx(0.2, rel=0.05)
    assert draws[1].mean() == pytest.approx(float(exact.mean()), abs=0.03)
    assert draws[2].std() == pytest.approx(3**-0.5, rel=0.05)  # as good as no news: anywhere
    assert (draws[3] == -1).all()  # far outside: the nearest that is possible
