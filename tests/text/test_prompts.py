import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from lmdiff.errors import UserError
from lmdiff.text.prompts import read_prompts

ROWS = [
    {"prompt": "3 7 25 -> 46", "completion": "3*7+25", "target": 46},
    {"prompt": "1 2 3 -> 6", "completion": "1+2+3", "target": 6},
]


@pytest.fixture
def written(tmp_path):
    def write(content, name="prompts.jsonl"):
        path = tmp_path / name
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(raw)
        return path

    return write


def lines(rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


def test_rows_of_a_file(written):
    path = written(lines(ROWS))
    assert read_prompts(path) == ROWS
    assert read_prompts(str(path), required=["completion", "target"]) == ROWS
    assert read_prompts(path, limit=1) == ROWS[:1]


def test_empty_lines_windows_ends_and_a_byte_order_mark(written):
    text = lines(ROWS).replace("\n", "\r\n\r\n")
    assert read_prompts(written(b"\xef\xbb\xbf" + text.encode())) == ROWS


def test_another_column_is_the_prompt(written):
    path = written(lines([{"question": "1 + 1?", "answer": "2"}]))
    assert read_prompts(path, prompt_column="question") == [{"prompt": "1 + 1?", "answer": "2"}]


def test_conversations(written):
    rows = [{"prompt": [{"role": "user", "content": "1 + 1?"}]}]
    assert read_prompts(written(lines(rows))) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not JSON"),
        ("[1]", "line 3: a row is a JSON object, not list"),
        ("3", "line 3: a row is a JSON object, not int"),
        ('{"completion": "x"}', "line 3: the column 'prompt' is missing"),
        ('{"prompt": null}', "line 3: the column 'prompt' is missing"),
        ('{"prompt": 3}', "line 3: a prompt is a text"),
        ('{"prompt": "  "}', "line 3: a prompt is a text"),
        ('{"prompt": []}', "line 3: a prompt is a text"),
        ('{"prompt": [{"role": "user"}]}', "line 3: a prompt is a text"),
        ('{"prompt": "x", "completion": 3}', "line 3: a completion is a text"),
        ('{"prompt": "x"}', "line 3: the column 'completion' is missing"),
        ("[" * 100000, "line 3: not JSON"),
    ],
)
def test_errors_name_file_and_line(written, line, message):
    path = written(lines(ROWS[:1]) + "\n" + line + "\n")
    with pytest.raises(UserError) as error:
        read_prompts(path, required=["completion"] if "completion" in message else [])
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_not_utf8(written):
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        read_prompts(written(lines(ROWS[:1]).encode() + b'{"prompt": "\xff"}\n'))


def test_one_json_list_says_what_is_read(written):
    with pytest.raises(UserError, match="One object a line"):
        read_prompts(written(json.dumps(ROWS), "prompts.json"))
    with pytest.raises(UserError, match="One JSON object a line"):
        read_prompts(written(json.dumps(ROWS, indent=1), "prompts.json"))


def test_files_that_are_not_there_or_empty(written, tmp_path):
    with pytest.raises(UserError, match=r"No file .*none\.jsonl"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="has no prompts"):
        read_prompts(written("\n"))


@pytest.fixture
def missing(monkeypatch):
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_package_names_the_command(missing, written):
    with pytest.raises(UserError, match="pip install datasets"):
        read_prompts("openai/gsm8k")
    with pytest.raises(UserError, match="pip install pyarrow"):
        read_prompts(written(b"PAR1", "prompts.parquet"))


def test_data_sets_and_parquet_go_through_their_packages(monkeypatch, written):
    """Stand-ins with the packages' interfaces: neither is installed where this was written."""
    asked = []
    datasets = ModuleType("datasets")

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == "absent":
            raise FileNotFoundError("no such data set")
        return ROWS

    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    assert read_prompts("someone/sums:main", split="test") == ROWS
    assert asked == [("someone/sums", "main", "test")]
    with pytest.raises(UserError, match=r"'absent'.*no such data set"):
        read_prompts("absent")
    with pytest.raises(UserError, match=r"\(train\), row 1: the column 'puzzle' is missing"):
        read_prompts("sums", required=["puzzle"])

    class ParquetFile:
        def __init__(self, path):
            if path.read_bytes() != b"PAR1":
                raise ValueError("no magic")

        def iter_batches(self, batch_size):
            return [SimpleNamespace(to_pylist=lambda: ROWS)]

    parquet = ModuleType("pyarrow.parquet")
    parquet.ParquetFile = ParquetFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    assert read_prompts(written(b"PAR1", "a.parquet")) == ROWS
    with pytest.raises(UserError, match="not a Parquet file"):
        read_prompts(written(b"text", "b.parquet"))
