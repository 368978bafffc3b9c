"""Text tasks: rows of a split that leak nothing, and what counts as a prompt."""

import json

import pytest

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.text.config import TextTaskConfig
from lmdiff.text.rewards import NAMED, load_rewards, score
from lmdiff.text.tasks import _split_of, columns_of, make_task

PUZZLE, GRID = "1304420101433002", "1324423121433412"


@pytest.mark.parametrize("name", ["sudoku", "countdown"])
def test_what_is_taught_is_right_and_never_asked(name):
    task = make_task(TextTaskConfig(name=name))
    train, held_out = task.rows("train", 200, 0), task.rows("held_out", 100, 0)
    assert (len(train), len(held_out)) == (200, 100)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    if name == "sudoku":  # by solution grid
        assert not {r["completion"] for r in train} & {r["completion"] for r in held_out}
    prompts, completions = zip(*((row["prompt"], row["completion"]) for row in train), strict=True)
    for reward in (task.solved, *task.rewards):
        scores = score({reward: NAMED[reward]}, prompts, completions, columns_of(train))
        assert scores.total == [1.0] * 200
    assert set("".join(prompts + completions)) <= set(task.alphabet)


def test_settings_reach_the_generators():
    task = make_task(TextTaskConfig(blanks=(2, 3)))
    assert {row["blanks"] for row in task.rows("train", 50, 0)} == {2, 3}
    task = make_task(TextTaskConfig(name="countdown", numbers=4, largest=9, largest_target=20))
    rows = task.rows("train", 50, 0)
    assert {len(row["numbers"]) for row in rows} == {4}
    assert max(max(row["numbers"]) for row in rows) <= 9
    assert max(row["target"] for row in rows) <= 20


def test_a_sudoku_as_people_type_it():
    task = make_task(TextTaskConfig())
    for text in (PUZZLE, "13.4\n42.1\n.143\n3__2", "1304 4201 0143 3002"):
        assert task.read(text)["prompt"] == PUZZLE


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hello", "16 characters of 01234"),
        ("", "16 characters"),
        (PUZZLE[:-1], "16 characters"),
        (GRID, "no empty cell"),
        ("0" * 16, "288 solutions"),
        ("11" + "0" * 14, "0 solutions"),
    ],
)
def test_no_sudoku(text, why):
    with pytest.raises(GoalNotUnderstood, match=why) as refused:
        make_task(TextTaskConfig()).read(text)
    assert refused.value.exit_code == 3


def test_countdown_prompts():
    task = make_task(TextTaskConfig(name="countdown"))
    row = task.read("  3 7  25 -> 46 ")
    assert row == {"prompt": "3 7 25 -> 46", "numbers": [3, 7, 25], "target": 46}
    for text, why in [("3 7 25 = 46", "looks like"), ("3 7 25 1 -> 46", "taught 3")]:
        with pytest.raises(GoalNotUnderstood, match=why):
            task.read(text)


def _file(folder, count, name="rows.jsonl"):
    path = folder / name
    rows = [{"prompt": f"{i} + 1 =", "completion": str(i + 1), "answer": i} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_file_is_split_by_prompts(tmp_path):
    task = make_task(TextTaskConfig(name="file", source=_file(tmp_path, 200)))
    splits = {name: task.rows(name, 1000, 0) for name in ("train", "validation", "held_out")}
    assert sum(map(len, splits.values())) == 200
    assert len({row["prompt"] for rows in splits.values() for row in rows}) == 200
    assert 140 < len(splits["train"]) < 180
    assert task.rows("train", 5, 3) == splits["train"][:5]
    assert columns_of(splits["train"][:2]) == {
        "answer": [row["answer"] for row in splits["train"][:2]]
    }


def test_columns_of_other_names_and_conversations(tmp_path):
    path = tmp_path / "school.jsonl"
    path.write_text('{"question": "1 + 1", "answer": "2", "level": 3}\n')
    config = TextTaskConfig(
        name="file",
        source=str(path),
        held_out=str(path),
        prompt_column="question",
        completion_column="answer",
        chat=True,
    )
    task = make_task(config)
    said = [{"role": "user", "content": "1 + 1"}]
    assert task.rows("held_out", 9, 0) == [{"prompt": said, "completion": "2", "level": 3}]
    assert task.read("1 + 1") == {"prompt": said}


def test_held_out_prompts_of_another_file(tmp_path):
    other = _file(tmp_path, 7, "other.jsonl")
    config = TextTaskConfig(name="file", source=_file(tmp_path, 100), held_out=other)
    task = make_task(config)
    assert [row["answer"] for row in task.rows("held_out", 99, 0)] == list(range(7))
    assert len(task.rows("train", 999, 0)) + len(task.rows("validation", 999, 0)) == 100


def test_a_file_that_is_missing_or_too_small(tmp_path):
    with pytest.raises(UserError, match=r"--task\.source"):
        make_task(TextTaskConfig(name="file"))
    task = make_task(TextTaskConfig(name="file", source=_file(tmp_path, 1)))
    mine = _split_of({"prompt": "0 + 1 ="}, held_out_elsewhere=False)
    for split in {"train", "validation", "held_out"} - {mine}:
        with pytest.raises(UserError, match="too small"):
            task.rows(split, 9, 0)
    assert len(task.rows(mine, 9, 0)) == 1


def test_rewards_of_one_s_own_replace_the_task_s():
    config = TextTaskConfig(rewards=("sudoku_solved",), solved="sudoku")
    task = make_task(config)
    assert (task.rewards, task.solved) == (("sudoku_solved",), "sudoku")
    assert set(load_rewards(list(task.rewards))) == {"sudoku_solved"}
