"""The resolver of agents and prompts."""

from pathlib import Path

import pytest

from lmdiff import resources
from lmdiff.errors import UserError
from lmdiff.resources import find, folder, names


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of our own, with one agent beside it as in a clone."""
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "clone" / "lmdiff")
    (tmp_path / "clone" / "agents").mkdir(parents=True)
    (tmp_path / "clone" / "agents" / "runner.toml").write_text("")
    (tmp_path / "clone" / "agents" / "notes.txt").write_text("")
    return tmp_path / "clone" / "lmdiff"


def test_the_clone_s_own_folder_is_found(package: Path) -> None:
    assert folder("agents") == package.parent / "agents"
    assert names("agents") == ["runner"]
    assert find("agents", "runner") == package.parent / "agents" / "runner.toml"


def test_package_data_comes_before_a_sibling_folder(package: Path) -> None:
    # In site-packages the sibling may be the `agents` of some other project.
    data = package / "_data" / "agents"
    data.mkdir(parents=True)
    (data / "walker.toml").write_text("")
    assert names("agents") == ["walker"]


def test_an_explicit_path_comes_first(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("")
    assert find("agents", mine) == mine
    assert find("agents", str(mine)) == mine
    monkeypatch.chdir(tmp_path)
    assert find("agents", "mine.toml") == Path("mine.toml")


def test_a_folder_of_that_name_does_not_hide_a_shipped_agent(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("agents", "runner") == package.parent / "agents" / "runner.toml"


def test_unknown_names_get_a_suggestion(package: Path) -> None:
    with pytest.raises(UserError, match=r"No agent 'runer'\. Did you mean 'runner'\?"):
        find("agents", "runer")
    with pytest.raises(UserError, match="Known: runner"):
        find("agents", "something else")


@pytest.mark.parametrize("name", ["../agents/runner", "sub/runner", "", ".", "notes.txt", "a\0b"])
def test_names_do_not_reach_out_of_the_folder(package: Path, name: str) -> None:
    with pytest.raises(UserError):
        find("agents", name)


def test_a_damaged_installation_says_so(package: Path) -> None:
    with pytest.raises(UserError, match="folder of prompts is missing"):
        folder("prompts")


def test_what_is_shipped() -> None:
    assert "pointmaze-medium" in names("agents")
    assert names("prompts")
