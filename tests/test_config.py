"""Typed configurations and their TOML form."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmdiff.config import (
    AgentConfig,
    TrainingConfig,
    agent_from_dict,
    from_dict,
    load_agent,
    load_control_agent,
    to_dict,
)
from lmdiff.errors import UserError
from lmdiff.resources import names
from lmdiff.text.config import SamplingConfig, TextAgentConfig, TextTaskConfig


@pytest.mark.parametrize("name", names("agents"))
def test_every_shipped_agent_loads(name: str) -> None:
    config = load_agent(name)
    assert config.name == name
    assert config.description
    assert agent_from_dict(to_dict(config)) == config


def test_a_config_survives_json() -> None:
    config = AgentConfig(name="x", training=TrainingConfig(max_steps=7, learning_rate=0.1))
    assert from_dict(AgentConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_text_config_survives_json() -> None:
    config = TextAgentConfig(
        task=TextTaskConfig(blanks=(2, 9), rewards=("sudoku", "my.module:f")),
        sampling=SamplingConfig(num_inference_steps=4, threshold=None),
    )
    values = to_dict(config)
    assert values["task"]["blanks"] == [2, 9]  # as JSON has it, so that runs compare equal
    assert values["sampling"] | {"num_inference_steps": 4, "threshold": None} == values["sampling"]
    assert agent_from_dict(json.loads(json.dumps(values))) == config


def test_the_kind_says_what_an_agent_is(tmp_path: Path) -> None:
    path = tmp_path / "speaker.toml"
    path.write_text('kind = "text"\n[sampling]\nthreshold = 1\n')
    config = load_agent(path)
    assert isinstance(config, TextAgentConfig)
    assert (config.name, config.sampling.threshold) == ("speaker", 1.0)
    assert isinstance(agent_from_dict({"kind": "control"}), AgentConfig)
    with pytest.raises(UserError, match="speaker writes text"):
        load_control_agent(path)


def test_configs_cannot_be_changed_by_accident() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AgentConfig().training.max_steps = 1  # type: ignore[misc]


def test_only_what_is_named_changes() -> None:
    config = from_dict(AgentConfig, {"training": {"max_steps": 9}})
    assert config == AgentConfig(training=TrainingConfig(max_steps=9))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainin": {}}, r"Unknown setting 'trainin'\. Did you mean 'training'\?"),
        ({"training": {"max_step": 1}}, r"'training\.max_step'\. Did you mean 'max_steps'\?"),
        ({"training": {"zzz": 1}}, r"'training\.zzz'\. Known: max_steps, batch_size"),
        ({"training": {"max_steps": "9"}}, r"training\.max_steps = '9': expected int"),
        ({"training": {"max_steps": 9.0}}, r"training\.max_steps = 9\.0: expected int"),
        ({"training": {"max_steps": True}}, r"training\.max_steps = True: expected int"),
        ({"training": {"compile": 1}}, r"training\.compile = 1: expected bool"),
        ({"training": {"compile": "no"}}, r"expected bool"),
        ({"training": {"learning_rate": "big"}}, r"expected float"),
        ({"training": {"learning_rate": False}}, r"expected float"),
        ({"training": 3}, r"training must be a table of settings, not 3"),
        ({"denoiser": {"process": "flaw"}}, r"denoiser\.process = 'flaw': choose one of flow, vp"),
        ({"denoiser": {"process": ["flow"]}}, r"choose one of flow, vp"),
        ({"imitation": {"roles": ["planner"]}}, r"imitation\.roles = .*: expected a table"),
        ({"imitation": {"roles": {"planner": "all"}}}, r"imitation\.roles\.planner = 'all'"),
        ({"name": 3}, r"name = 3: expected str"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(AgentConfig, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "tekst"}, r"kind = 'tekst': choose one of control, policy, text"),
        ({"kind": "text", "goal": {}}, r"Unknown setting 'goal'"),
        ({"sampling": {"treshold": 1.0}}, r"Did you mean 'threshold'\?"),
        ({"sampling": {"threshold": "high"}}, r"sampling\.threshold = 'high': expected float"),
        ({"sampling": {"num_inference_steps": 2.5}}, r"expected int"),
        ({"task": {"blanks": 8}}, r"task\.blanks = 8: expected a list"),
        ({"task": {"blanks": [4]}}, r"task\.blanks = \[4\]: expected 2 values"),
        ({"task": {"blanks": [4, "8"]}}, r"task\.blanks\[1\] = '8': expected int"),
        ({"task": {"rewards": "sudoku"}}, r"task\.rewards = 'sudoku': expected a list"),
    ],
)
def test_mistakes_in_a_text_agent_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        agent_from_dict({"kind": "text"} | values)


def test_an_int_is_taken_for_a_float() -> None:
    rate = from_dict(AgentConfig, {"training": {"learning_rate": 1}}).training.learning_rate
    assert type(rate) is float
    roles = from_dict(AgentConfig, {"imitation": {"roles": {"planner": 1}}}).imitation.roles
    assert roles == {"planner": 1.0}


def test_an_agent_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "my-agent.toml"
    path.write_text('description = "mine"\n[task]\nname = "pointmaze-large"\n')
    config = load_agent(path)
    assert (config.name, config.task.name) == ("my-agent", "pointmaze-large")


@pytest.mark.parametrize("content", [b"[training", b"a = 1\na = 2", b"name = \xff", b"x = nope"])
def test_a_syntax_error_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
        load_agent(path)


def test_an_unknown_agent() -> None:
    with pytest.raises(UserError, match="Did you mean 'pointmaze-medium'"):
        load_agent("pointmaze-medum")


def test_reading_a_config_imports_nothing_heavy() -> None:
    # `lmdiff --help` reads the settings, and must answer at once.
    code = (
        "import sys, lmdiff.config, lmdiff.text.config; "
        "print(*{'torch', 'numpy', 'gymnasium'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
