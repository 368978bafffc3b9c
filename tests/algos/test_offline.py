"""Each algorithm on a bandit whose behaviour has two modes of which one pays."""

import pytest
import torch
from bandits import MODES, SIZES, acts, bandit, config, seeded, share_near, situation, train

from lmdiff.algos.config import AWRConfig, FQLConfig, IDQLConfig, QCConfig
from lmdiff.algos.policies import make_algorithm

BETTER = {
    "awr": {"awr": AWRConfig(temperature=0.3)},
    "idql": {"idql": IDQLConfig(candidates=8)},
    "qc": {"qc": QCConfig(candidates=8, target_candidates=1, flow_steps=1)},
    "gtp": {},
}


def trained(name, steps=200, **more):
    torch.manual_seed(0)
    algorithm = make_algorithm(config(name, **more), SIZES)
    metrics = train(algorithm, steps)
    assert [name for name, value in metrics.items() if value.requires_grad] == ["loss"]
    return algorithm


def test_bc_keeps_both_modes():
    chunks = acts(trained("bc"))
    shares = [share_near(chunks, mode) for mode in MODES]
    assert sum(shares) > 0.9
    assert min(shares) > 0.35


@pytest.mark.parametrize("name", BETTER)
def test_the_better_mode_is_found(name):
    chunks = acts(trained(name, **BETTER[name]))
    assert chunks.shape == (200, 2, 2)
    assert share_near(chunks, MODES[1]) > 0.85


def test_a_student_climbs_the_critic():
    # Beyond the better mode too, where nothing was recorded: its critic says that more is better.
    chunks = acts(trained("fql", fql=FQLConfig(alpha=3.0, flow_steps=4)))
    assert (chunks > 0.2).flatten(1).all(1).float().mean() > 0.9


def test_a_student_with_a_large_alpha_stays_at_the_flow():
    algorithm = trained("fql", 800, fql=FQLConfig(alpha=100.0, flow_steps=4))
    noise = torch.randn(200, 2, 2, generator=seeded(1))
    with torch.no_grad():
        flow = algorithm.flow.sample(situation(200), 4, noise=noise)
        student = algorithm.actor.sample(situation(200), noise=noise)
    assert (student - flow).abs().mean() < 0.12
    assert min(share_near(student, mode) for mode in MODES) > 0.3


def test_no_gradient_of_the_student_reaches_the_critic():
    algorithm = make_algorithm(config("fql"), SIZES)
    torch.nn.init.normal_(algorithm.actor.network.head[1].weight, std=0.1)
    distillation, climb, _ = algorithm._student_losses(bandit(seeded()), seeded())
    (distillation + climb).backward()
    assert all(parameter.grad is None for parameter in algorithm.critic.parameters())
    assert all(parameter.grad is None for parameter in algorithm.flow.parameters())
    assert algorithm.actor.network.head[1].weight.grad.abs().sum() > 0


def test_the_critic_leads_the_student():
    """Minus Q, divided by its mean size, has the gradient -dQ/da / |Q|."""
    torch.manual_seed(0)
    losses = []
    for normalize in (False, True):
        torch.manual_seed(0)
        setting = FQLConfig(normalize_q=normalize)
        algorithm = make_algorithm(config("fql", fql=setting), SIZES)
        losses.append(algorithm._student_losses(bandit(seeded()), seeded())[1:])
    (plain, q), (normalized, _) = losses
    assert torch.allclose(plain, -q)
    assert normalized.abs() <= 1 + 1e-5
    assert not torch.allclose(plain, normalized)


def test_chunks_with_fql_take_their_settings_from_qc():
    algorithm = make_algorithm(config("qc", qc=QCConfig(mode="fql", alpha=7.0)), SIZES)
    assert algorithm.candidates == 1
    assert algorithm.config == FQLConfig(alpha=7.0, flow_steps=10, normalize_q=False)


@pytest.mark.parametrize("name", ["bc", "fql", *BETTER])
def test_targets_are_saved_and_nothing_is_saved_twice(name):
    algorithm = make_algorithm(config(name), SIZES)
    state = algorithm.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert any(key.startswith("target.") for key in state) == (name != "bc")
