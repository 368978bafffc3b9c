"""One tiny real agent, by the commands that a person types: train, run, chat, eval, resume."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmdiff import cli

pytest.importorskip("ogbench")

TINY = (  # noqa: SIM905 (as it is typed)
    "--task.steps 20000 --denoiser.width 32 --denoiser.layers 1 --training.max-steps 30 "
    "--training.batch-size 16 --training.warmup-steps 5 --data.phrases 200 --data.route-goals 64 "
    "--goal.adaptation frozen --quiet"  # LoRA, as shipped, takes four times as long: slow tests
).split()
GOAL = "go to the bottom right corner"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data is, and runs/tiny."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def trained(home: Path) -> Path:
    """The run folder of a tiny agent: too small to be good, whole in every part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("LMDIFF_DATA", str(home / "data"))
        assert cli.main(["train", "pointmaze-medium", "--output", "runs/tiny", *TINY]) == 0
    return home / "runs" / "tiny"


@pytest.fixture(autouse=True)
def at_home(home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("LMDIFF_DATA", str(home / "data"))


class _Said:
    """What a command printed, and its exit code."""

    def __init__(self, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]):
        capsys.readouterr()
        self.code = cli.main(list(arguments))
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    @property
    def json(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_folder_has_what_is_promised(trained: Path) -> None:
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 30
    assert json.loads(lines[-1])["loss"] > 0
    assert (trained / "run.json").is_file()
    assert (trained / "agent" / "model_index.json").is_file()
    assert list((trained / "agent").rglob("*.safetensors"))
    suffixes = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert not suffixes & {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
    assert not list(trained.glob(".*writing*"))


def test_the_card_says_how_it_was_made(trained: Path) -> None:
    from lmdiff.goals.grammar import load_grammar

    card = (trained / "agent" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: diffusers")
    for part in (
        "# pointmaze-medium",
        load_grammar("maze").digest,
        "20,000 steps",
        "30 steps of 16 windows, seed 0, data seed 0",
        "torch 2",
        "cores",
        "Language model: `embedded`",
    ):
        assert part in card, part
    assert "{" not in card


@pytest.mark.parametrize("source", ["runs/tiny", "tiny", "runs/tiny/agent"])
def test_a_run_shows_a_picture_and_a_video(
    source: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _Said(["run", source, GOAL, "--json", "--output", f"shown-{len(source)}"], capsys)
    result = said.json
    assert {
        "goal",
        "understood",
        "nearest",
        "success",
        "steps",
        "plan_ms",
        "picture",
        "video",
    } <= set(result)
    assert result["goal"] == GOAL
    assert result["understood"] is True
    assert said.code == (0 if result["success"] else 4)
    assert 0 < result["steps"] <= 1000
    assert result["plan_ms"] > 0
    assert result["cells"] == [[6, 6]]
    assert result["success"] == (result["end"] == [6, 6])
    assert result["start"] != [6, 6]
    assert (home / result["picture"]).read_bytes().startswith(b"\x89PNG")
    assert (home / result["video"]).read_bytes().startswith(b"GIF8")
    assert result["picture"] in said.out.replace(json.dumps(result), "")


def test_a_run_is_repeatable_and_goes_where_it_is_told_to_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["run", "tiny", GOAL, "--json", "--no-video", "--start", "1,1"]
    first, second = (_Said(arguments, capsys).json for _ in range(2))
    assert first["start"] == [1, 1]
    assert first["video"] is None
    for result in (first, second):
        del result["plan_ms"]
    assert first == second
    other = _Said([*arguments, "--seed", "5"], capsys).json
    assert (other["end"], other["steps"]) != (first["end"], first["steps"]) or other[
        "picture"
    ] != first["picture"]


@pytest.mark.parametrize(
    "goal",
    [
        "make me a coffee",
        "",
        "   ",
        "x" * 100_000,
        "go to the top\x07 left",
        "¡hola, buenos días!",
        "go to row 0, column 0",
        "go to row 3, column 1",
        "row 77, column 1",
    ],
    ids=["coffee", "empty", "blank", "100kB", "bell", "spanish", "wall", "inner wall", "outside"],
)
def test_what_cannot_be_done_is_refused(goal: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = _Said(["run", "tiny", goal, "--json"], capsys)
    assert said.code == 3
    result = said.json
    assert result["goal"] == goal
    assert result["understood"] is False
    assert result["success"] is False
    assert result["steps"] == 0
    assert result["picture"] is result["video"] is None
    assert 1 <= len(result["nearest"]) <= 5
    assert all(isinstance(phrase, str) and phrase for phrase in result["nearest"])
    assert len(said.out) < 102_000 + len(goal)
    # People are told, too, and are shown goals that it knows.
    assert result["nearest"][0] in said.out.replace(said.out.splitlines()[-1], "")


@pytest.mark.parametrize("start", ["0,0", "9", "a,b", "1,1,1", "99,99"])
def test_a_start_in_a_wall_is_a_users_mistake(
    start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _Said(["run", "tiny", GOAL, "--start", start], capsys)
    assert said.code == 2
    assert start in said.err


def test_phrases_of_ones_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "phrases.tsv"
    path.write_text("go to row 6, column 5\t6,5\nthe top left corner\t1,1;1,2\nxyzzy plugh\t1,1\n")
    said = _Said(["run", "tiny", "--phrases", str(path), "--json"], capsys)
    result = said.json
    assert [row["goal"] for row in result["results"]] == [
        "go to row 6, column 5",
        "the top left corner",
        "xyzzy plugh",
    ]
    assert [row["understood"] for row in result["results"]] == [True, True, False]
    assert said.code == 4
    assert set(result["success"]) == {"mean", "low", "high"}
    # With a goal beside it, the file says what that goal denotes.
    told = _Said(
        ["run", "tiny", "the top left corner", "--phrases", str(path), "--json", "--no-video"],
        capsys,
    ).json
    assert told["cells"] == [[1, 1], [1, 2]]
    assert told["judged_by"] == "file"
    path.write_text("go to row 6, column 5\t6,5\nno tab here\n")
    for verb in ("run", "eval"):
        said = _Said([verb, "tiny", "--phrases", str(path)], capsys)
        assert said.code == 2
        assert "line 2" in said.err


def test_chat_obeys_goal_after_goal(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        f"{GOAL}\n\nmake me a coffee\ngo to row 0, column 0\ngo to row 1, column 1\nquit\n{GOAL}\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    said = _Said(["chat", "tiny", "--output", "talk"], capsys)
    assert said.code == 0
    answers = said.out.splitlines()
    assert answers[0].startswith("I am in row ")
    assert "I was not taught the goal 'make me a coffee'" in said.out
    assert sum("steps." in answer for answer in answers) == 2
    assert answers[-1] == "video: talk/chat-0.gif"
    assert (home / "talk" / "chat-0.gif").read_bytes().startswith(b"GIF8")


def test_chat_without_a_goal_leaves_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert _Said(["chat", "tiny", "--output", "silence"], capsys).code == 0
    assert not (home / "silence").exists()


def test_eval_measures_words_refusal_and_the_stock_protocol(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "own.tsv"
    path.write_text("go to row 6, column 5\t6,5\n")
    command = "eval tiny --episodes 4 --ogbench-episodes 1 --json --output result.json --phrases"
    said = _Said([*command.split(), str(path)], capsys)
    assert said.code == 0
    report = said.json
    assert report["agent"] == "pointmaze-medium"
    assert report["episodes"] == 4
    assert report["seeds"] == [1000]
    intervals = [report["success"], report["ogbench"]["success"], report["phrases"]["success"]]
    kinds = ("true", "held_out", "shuffled", "empty", "contradictory")
    intervals += [report["language"][kind] for kind in kinds]
    intervals += report["ogbench"]["tasks"]
    for interval in intervals:
        assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
    assert report["success"] == report["language"]["true"]
    assert len(report["ogbench"]["tasks"]) == 5
    # Refusing needs no trained planner: it is as good as it will be.
    assert report["refusal"]["auroc"]["mean"] > 0.95
    assert json.loads((home / "runs" / "tiny" / "eval.json").read_text()) == report
    result = json.loads((home / "result.json").read_text())
    assert {"command", "commit", "machine", "seeds", "rows"} <= set(result)


def test_resuming_a_finished_run_changes_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _files(trained)
    assert _Said(["train", "--resume", "runs/tiny", "--quiet"], capsys).code == 0
    after = _files(trained)
    assert sorted(after) == sorted(before)
    changed = {name for name in after if after[name] != before[name]}
    # Refusal is fit anew, on token states that may differ by rounding (padding of other batches).
    assert changed <= {"agent/known_goals/diffusion_pytorch_model.safetensors"}


def test_a_run_is_not_trained_over(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(trained)
    said = _Said(["train", "pointmaze-medium", "--output", "runs/tiny", *TINY], capsys)
    assert said.code == 2
    assert "--resume" in said.err
    assert _files(trained) == before


def test_another_task_is_another_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(trained)
    said = _Said(["train", "--resume", "runs/tiny", "--denoiser.width", "64"], capsys)
    assert said.code == 2
    assert "denoiser.width" in said.err
    assert _files(trained) == before


def test_a_damaged_agent_is_named(
    home: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    broken = home / "broken"
    shutil.copytree(trained / "agent", broken)
    weights = next((broken / "network").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    said = _Said(["run", "broken", GOAL], capsys)
    assert said.code == 2
    assert "cannot be loaded" in said.err


def test_bench_times_a_trained_agent(capsys: pytest.CaptureFixture[str]) -> None:
    said = _Said(["bench", "plan", "--agent", "tiny", "--repeats", "2", "--json"], capsys)
    assert said.code == 0
    for row in said.json["rows"]:
        assert 0 < row["ms"]["low"] <= row["ms"]["mean"] <= row["ms"]["high"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_shipped_agent_obeys_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "pointmaze-medium", "--quiet"]) == 0
    command = "eval pointmaze-medium --episodes 60 --ogbench-episodes 0 --json"
    report = _Said(command.split(), capsys).json
    assert report["language"]["true"]["mean"] >= 0.8
    assert report["language"]["shuffled"]["mean"] >= 0.7
    assert report["language"]["empty"]["mean"] <= 0.4
