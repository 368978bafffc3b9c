import sys
from pathlib import Path

import pytest
import torch
from line_world import SAYINGS, Line

from lmdiff.data.demonstrations import demonstrate
from lmdiff.data.recordings import joined
from lmdiff.evaluation import policy_language
from lmdiff.training.policy import agent as policy_agent

# `training_toy` is also a script that tests start and kill, hence a plain module beside them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The world `line`, found by name in this process, with recordings made in it."""
    monkeypatch = pytest.MonkeyPatch()
    prompts = tmp_path_factory.mktemp("prompts") / "line.toml"
    prompts.write_text(SAYINGS, encoding="utf-8")
    monkeypatch.setattr(Line, "family", str(prompts))
    policy_language.world_of.cache_clear()
    for module in (policy_agent, policy_language):
        monkeypatch.setattr(module, "make_world", Line)

    def record(config, quiet):
        return joined([demonstrate(Line(), config, index) for index in range(config.episodes)])

    monkeypatch.setattr(policy_agent, "load_or_record", record)
    yield Line
    monkeypatch.undo()
    policy_language.world_of.cache_clear()
