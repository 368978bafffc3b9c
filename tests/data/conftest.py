import numpy as np
import pytest

from lmdiff.data.episodes import Episodes
from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.tasks.pointmaze_expert import Expert


@pytest.fixture(scope="session")
def recorded() -> Episodes:
    """Eighty short episodes of the medium maze, 16,080 steps."""
    expert = Expert(PointMaze("pointmaze-medium"))
    episodes = [expert.episode("stitch", 0, index) for index in range(80)]
    return Episodes([o for o, _ in episodes], [a for _, a in episodes])


@pytest.fixture
def line() -> Episodes:
    """One straight episode along x, a unit a step: state n is at (n, 0), action (1, n / 100)."""
    observations = np.stack([np.arange(41.0), np.zeros(41)], 1).astype(np.float32)
    actions = np.stack([np.ones(40), np.arange(40) / 100], 1).astype(np.float32)
    return Episodes([observations], [actions])
