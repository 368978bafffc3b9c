import pytest
import torch

from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.trajectory import TrajectoryDenoiser
from lmdiff.goals.encoder import GoalTokens

OBSERVATION, ACTION, SIGNAL, WORDS, HORIZON = 2, 3, 1, 8, 5


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def generator():
    """Seed -> generator."""
    return seeded


@pytest.fixture
def make_denoiser():
    """A small random denoiser; also its head is random, which starts at zero."""

    def make(process="flow", prediction="sample", roles=None, seed=0):
        torch.manual_seed(seed)
        network = TrajectoryTransformer(
            OBSERVATION,
            ACTION,
            SIGNAL,
            goal_size=OBSERVATION,
            words_width=WORDS,
            horizon=HORIZON,
            width=16,
            layers=2,
            heads=2,
            process=process,
            prediction=prediction,
        )
        torch.nn.init.normal_(network.head.weight, std=0.3)
        torch.nn.init.normal_(network.head.bias, std=0.3)
        return TrajectoryDenoiser(network, roles)

    return make


@pytest.fixture
def windows():
    """Batch size -> random windows."""

    def make(batch, horizon=HORIZON):
        return torch.randn(batch, horizon, OBSERVATION + ACTION + SIGNAL, generator=seeded(1))

    return make


@pytest.fixture
def goals():
    """Batch size -> a condition of words (of one to four tokens) and states."""

    def make(batch, words=True, state=True):
        lengths = torch.arange(batch) % 4 + 1
        mask = torch.arange(4) < lengths[:, None]
        states = torch.randn(batch, 4, WORDS, generator=seeded(2)) * mask[..., None]
        return Condition(
            words=GoalTokens(states, mask) if words else None,
            state=torch.randn(batch, OBSERVATION, generator=seeded(3)) if state else None,
        )

    return make
