"""Text agents by the verbs that users type: train, resume, start from another, run, evaluate."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lmdiff import cli
from lmdiff.denoisers.text_models import llama_model
from lmdiff.errors import UserError
from lmdiff.evaluation.results import read_result
from lmdiff.pipelines.text_agents import load_text_agent, make_text_model
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.config import TextModelConfig
from lmdiff.text.tokenizer import char_tokenizer
from lmdiff.training.metrics import read_metrics

PUZZLE = "1304420101433002"
SMALL = """
kind = "text"
description = "small"
algorithm = "sft"
[task]
name = "sudoku"
blanks = [1, 2]
examples = 300
[model]
width = 32
layers = 2
heads = 2
max_length = 40
[training]
max_steps = 6
batch_size = 16
learning_rate = 3e-3
warmup_steps = 2
checkpoint_every = 2
log_every = 2
evaluate_every = 3
[evaluation]
episodes = 20
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a run of it."""
    folder = tmp_path_factory.mktemp("text-agents")
    (folder / "small.toml").write_text(SMALL)
    assert _train(folder, "run") == 0
    return folder


def _train(folder: Path, name: str, *arguments: str) -> int:
    recipe = [] if "--resume" in arguments else [str(folder / "small.toml")]
    output = [] if "--resume" in arguments else ["--output", str(folder / name)]
    return cli.main(["train", *recipe, *output, "--quiet", *arguments])


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "agent" / "model" / "model.safetensors")


def _last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_what_training_leaves_behind(folder: Path) -> None:
    run = folder / "run"
    lines = list(read_metrics(run / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert all("eval/solved" in line for line in lines if line["step"] in (3, 6))
    card = (run / "agent" / "README.md").read_text()
    assert "# small" in card
    assert "`sudoku`" in card
    assert not list(run.glob(".agent*"))
    files = [path for path in (run / "agent").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_a_saved_agent_is_a_diffusers_pipeline(folder: Path) -> None:
    pipe = TextPipeline.from_pretrained(folder / "run" / "agent")
    ours = load_text_agent(folder / "run" / "agent")
    assert pipe(PUZZLE).text == ours(PUZZLE).text
    assert pipe.config["recipe"]["task"]["blanks"] == [1, 2]


def test_a_resumed_run_is_the_same_to_the_last_bit(folder: Path) -> None:
    arguments = ["--training.max-steps", "4", "--training.lr-schedule", "constant_with_warmup"]
    assert _train(folder, "whole", "--training.max-steps", "6", *arguments[2:]) == 0
    assert _train(folder, "cut", *arguments) == 0
    cut = str(folder / "cut")
    assert _train(folder, "", "--resume", cut, "--training.max-steps", "6") == 0
    whole, resumed = _weights(folder / "whole"), _weights(folder / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    stopped = _weights(folder / "run")
    assert any(not torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_resumed_run_keeps_its_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / "run")
    assert _train(folder, "", "--resume", run, "--task.blanks", "3", "4") == 2
    assert "other settings of task.blanks" in capsys.readouterr().err


def test_init_starts_from_another_agent(folder: Path) -> None:
    init = ["--init", str(folder / "run"), "--training.learning-rate", "1e-12"]
    assert _train(folder, "second", *init, "--algorithm", "pretrain") == 0
    before, after = _weights(folder / "run"), _weights(folder / "second")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    run = json.loads((folder / "second" / "run.json").read_text())
    assert run["manifest"]["init"] == str((folder / "run" / "agent").resolve())


def test_lora_is_merged_into_what_is_saved(folder: Path) -> None:
    arguments = ["--model.adaptation", "lora", "--model.lora-rank", "2"]
    assert _train(folder, "lora", "--init", str(folder / "run"), *arguments) == 0
    before, after = _weights(folder / "run"), _weights(folder / "lora")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("weight") and before[name].ndim == 2 for name in changed)
    assert not any("embeddings" in name for name in changed)
    name = sorted(changed)[0]
    assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2
    TextPipeline.from_pretrained(folder / "lora" / "agent")(PUZZLE)


def test_run_shows_the_denoising(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(folder / "run"), PUZZLE, "--output", str(tmp_path), "--json"]
    code = cli.main(command)
    result = _last_json(capsys)
    assert code == (0 if result["success"] else 4)
    assert (result["prompt"], result["understood"]) == (PUZZLE, True)
    assert result["steps"] == result["forwards"] == len(result["text"]) == 16
    with Image.open(result["video"]) as gif:
        assert gif.n_frames == 16 + 2  # before, after each step, and at rest
    assert cli.main([*command, "--no-video", "--num-inference-steps", "4"]) in (0, 4)
    result = _last_json(capsys)
    assert (result["steps"], result["video"]) == (4, None)


@pytest.mark.parametrize("prompt", ["go to the top left corner", "0" * 16])
def test_what_is_no_prompt_is_refused(
    folder: Path, prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(folder / "run"), prompt, "--json"]) == 3
    result = _last_json(capsys)
    assert (result["understood"], result["success"], result["text"]) == (False, False, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", PUZZLE, "--start", "3,5"], "--start is not for it"),
        (["eval", "--ogbench-episodes", "5"], "--ogbench-episodes is not for it"),
        (["run", PUZZLE, "--temperature", "-1"], "temperature = -1"),
        (["run", PUZZLE, "--num-inference-steps", "99"], "num_inference_steps = 99"),
        (["chat"], "lmdiff run"),
        (["eval", "--reward", "nonsense"], "No reward 'nonsense'"),
    ],
)
def test_a_users_mistake_is_explained(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([arguments[0], str(folder / "run"), *arguments[1:]]) == 2
    assert said in capsys.readouterr().err


def test_eval_measures_held_out_puzzles(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "text.json"
    command = ["eval", str(folder / "run"), "--json", "--output", str(table)]
    assert cli.main([*command, "--temperature", "0.7"]) == 0
    shown = capsys.readouterr().out
    report = json.loads(shown.splitlines()[-1])
    assert re.search(r"solved, held-out prompts +\d+\.\d%", shown)
    assert (report["episodes"], report["seeds"]) == (20, [1000])
    assert report["sampling"]["temperature"] == 0.7
    assert report["solved"]["low"] <= report["solved"]["mean"] <= report["solved"]["high"]
    assert 0 <= report["rewards"]["sudoku"]["mean"] <= 1
    assert report["forwards_per_text"] == 16
    assert json.loads((folder / "run" / "eval.json").read_text()) == report
    # The same seed gives the same figures; the row of the same agent and seed is replaced.
    assert cli.main([*command, "--temperature", "0.7"]) == 0
    again = _last_json(capsys)
    assert (again["solved"], again["rewards"]) == (report["solved"], report["rewards"])
    rows = read_result(table)["rows"]
    assert [(row["agent"], row["seed"]) for row in rows] == [("small", 0)]


def test_a_reward_that_an_agent_names_is_not_imported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    (tmp_path / "evil_rewards.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    name = "evil_rewards:reward"
    assert _train(folder, "foreign", "--task.rewards", name, "--training.max-steps", "1") == 0
    assert cli.main(["eval", str(folder / "foreign"), "--episodes", "5", "--json"]) == 0
    shown = capsys.readouterr().out
    assert f"--reward {name}" in shown
    assert json.loads(shown.splitlines()[-1])["rewards"] == {}


# A model that brings its own code, as LLaDA does: no position ids, attention that sees everything,
# a mask token that its tokenizer does not name as one.
_OWN_CODE = """
from transformers import BertForMaskedLM


class OwnModelLM(BertForMaskedLM):
    def forward(self, input_ids=None, attention_mask=None):
        return super().forward(input_ids, attention_mask)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    from lmdiff.denoisers.text_models import bert_model

    folder = tmp_path_factory.mktemp("own")
    tokenizer = char_tokenizer("01234")
    torch.manual_seed(0)
    model = bert_model(len(tokenizer), tokenizer.pad_token_id, 64, 16, 1, 2)
    model.config.auto_map = {"AutoModel": "modeling_own.OwnModelLM"}
    model.save_pretrained(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    (folder / "modeling_own.py").write_text(_OWN_CODE)
    return str(folder)


def test_a_model_that_brings_its_own_code(
    folder: Path, own: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    settings = ["--model.source", own, "--model.head", "own", "--model.no-positions"]
    settings += ["--model.mask-token", "[MASK]", "--model.adaptation", "lora"]
    settings += ["--training.max-steps", "2"]
    assert _train(folder, "own", *settings) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert _train(folder, "own", *settings, "--model.trust-remote-code") == 0
    agent = str(folder / "own")
    assert cli.main(["run", agent, PUZZLE, "--no-video"]) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    code = cli.main(["run", agent, PUZZLE, "--no-video", "--trust-remote-code", "--json"])
    assert code in (0, 4)
    assert len(_last_json(capsys)["text"]) <= 16


def test_what_a_tokenizer_does_not_name_has_to_be_said(folder: Path, tmp_path: Path) -> None:
    tokenizer = char_tokenizer("01234")
    llama_model(len(tokenizer), tokenizer.pad_token_id, 64, 16, 1, 2).save_pretrained(tmp_path)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    settings = {"source": str(tmp_path), "head": "causal"}
    with pytest.raises(UserError, match=r"--model\.mask-token"):
        make_text_model(TextModelConfig(**settings, attention="full4d"), "")
    with pytest.raises(UserError, match="no such token"):
        make_text_model(TextModelConfig(**settings, mask_token="<mask>"), "")
    with pytest.raises(UserError, match="Try full4d"):
        make_text_model(TextModelConfig(**settings, mask_token="[MASK]"), "")
    made = make_text_model(TextModelConfig(**settings, mask_token="[MASK]", attention="full4d"), "")
    assert made.spec.attention == "full4d"
