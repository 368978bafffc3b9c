"""Results as JSON, and the tables that are written from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmdiff.errors import UserError
from lmdiff.evaluation.intervals import wilson
from lmdiff.evaluation.results import (
    commit,
    format_value,
    main,
    read_result,
    render_table,
    update_tables,
    write_result,
)

RESULT: dict[str, Any] = {
    "command": "lmdiff eval runs/x",
    "commit": "abc",
    "machine": {"cpu": "A CPU", "cores": 2, "torch": "2.13.0", "threads": 1},
    "seeds": [0, 1],
    "rows": [
        {"agent": "x", "success": {"mean": 0.972, "low": 0.9414, "high": 0.988}, "episodes": 250},
        {"agent": "a|b", "success": {"mean": 1, "low": 0.9, "high": 1}, "note": "new"},
    ],
}

SOURCE = "A CPU, 2 cores, torch 2.13.0 with 1 threads"
TABLE = f"""\
| agent | success | episodes | note |
| --- | ---: | ---: | --- |
| x | 97.2 (94.1-98.8) | 250 |  |
| a\\|b | 100.0 (90.0-100.0) |  | new |

<sub>`lmdiff eval runs/x`; seeds 0, 1; commit abc; {SOURCE}.</sub>"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "x.json").write_text(json.dumps(RESULT))
    (tmp_path / "README.md").write_text(
        "# Title\n\n<!-- results:x -->\nold\n<!-- /results:x -->\n\nText \\1 after.\n"
    )
    return tmp_path


def test_a_written_result_can_be_read_and_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.json"
    rows = [{"agent": "x", "success": wilson(97, 100).to_dict()}]
    result = write_result(
        path, "lmdiff eval x", [0, 1], rows, title="T", columns={"agent": "Agent"}
    )
    assert read_result(path) == result
    assert {"cpu", "cores", "threads", "torch", "python"} <= result["machine"].keys()
    assert result["commit"] == commit()
    assert render_table(result).startswith("**T**\n\n| Agent |\n| --- |\n| x |\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["r.json"]


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(tmp_path / "r.json", "c", [0], [{"loss": float("nan")}])
    assert not list(tmp_path.iterdir())


def test_the_table() -> None:
    assert render_table(RESULT) == TABLE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (9999, "9999"),
        (1_000_000, "1,000,000"),
        (0.123456, "0.1235"),
        ({"mean": 9.14, "low": 8.9, "high": 9.449, "unit": "ms"}, "9.14 (8.9-9.45) ms"),
        ({"median": 9.0, "spread": 0.5}, "median 9, spread 0.5"),
        ([1, 2], "1, 2"),
        ("two\nlines", "two lines"),
    ],
)
def test_format_value(value: object, text: str) -> None:
    assert format_value(value) == text


def test_tables_are_filled_once_and_then_current(root: Path) -> None:
    readme, results = root / "README.md", root / "docs" / "results"
    before = readme.read_text()
    assert "+| x | 97.2 (94.1-98.8) | 250 |  |" in update_tables(readme, results, check=True)
    assert readme.read_text() == before
    update_tables(readme, results)
    assert readme.read_text() == (
        f"# Title\n\n<!-- results:x -->\n{TABLE}\n<!-- /results:x -->\n\nText \\1 after.\n"
    )
    assert update_tables(readme, results, check=True) == ""


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results:x -->\n no end",
        "<!-- /results:x -->\n<!-- results:x -->\n",
        "<!-- results:x -->\n<!-- results:y -->\n<!-- /results:x -->\n",
        "text <!-- results:x --> <!-- /results:x -->\n",
    ],
)
def test_unpaired_marks_are_refused(root: Path, text: str) -> None:
    (root / "README.md").write_text(text)
    with pytest.raises(UserError, match="every <!-- results:NAME -->"):
        update_tables(root / "README.md", root / "docs" / "results")
    assert (root / "README.md").read_text() == text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no result"), ("{", "not valid JSON"), ("[]", "lacks"), ('{"rows": []}', "command")],
)
def test_damaged_results_are_user_errors(root: Path, content: str | None, message: str) -> None:
    path = root / "docs" / "results" / "x.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_result(path)
    assert main(["--root", str(root)]) == 2


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--root", str(root)]) == 1
    assert "scripts/tables" in capsys.readouterr().err
    assert main(["--root", str(root)]) == 0
    assert main(["--check", "--root", str(root)]) == 0


def test_this_repository_s_tables_are_current() -> None:
    assert main(["--check", "--root", str(Path(__file__).parents[2])]) == 0
