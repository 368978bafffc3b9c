"""Text agents by the verbs that users type: train, resume, start from another, run, evaluate."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

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


# A model that brings its own code, with LLaDA's interface: it takes tokens and a [B, L] mask, no
# positions; its layers have LLaDA's names; its tokenizer names no mask token.
_OWN_CODE = """
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class LLaDAConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, d_model=16, vocab_size=16, **kwargs):
        self.d_model = d_model
        super().__init__(vocab_size=vocab_size, **kwargs)


class LLaDAModelLM(PreTrainedModel):
    config_class = LLaDAConfig

    def __init__(self, config):
        super().__init__(config)
        width = config.d_model
        self.wte = nn.Embedding(config.vocab_size, width)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None):
        x = self.wte(input_ids)
        seen = attention_mask.bool()[:, None, :].expand(-1, x.shape[1], -1)
        mixed = F.scaled_dot_product_attention(
            self.q_proj(x), self.k_proj(x), self.v_proj(x), attn_mask=seen
        )
        x = x + self.attn_out(mixed)
        x = x + self.ff_out(F.silu(self.ff_proj(x)) * self.up_proj(x))
        return CausalLMOutputWithPast(logits=self.head(x))
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    tokenizer = char_tokenizer("0123456789+ =")
    torch.manual_seed(0)
    tensors = {f"{name}.weight": 0.3 * torch.randn(16, 16) for name in _LAYERS}
    for name in ("wte", "head"):
        tensors[f"{name}.weight"] = torch.randn(len(tokenizer), 16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    classes = {"AutoConfig": "modeling_own.LLaDAConfig", "AutoModel": "modeling_own.LLaDAModelLM"}
    config = {"model_type": "llada", "vocab_size": len(tokenizer), "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.mask_token = None
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} ={% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "modeling_own.py").write_text(_OWN_CODE)
    rows = [{"question": f"{i} + 1", "answer": str(i + 1)} for i in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


_LAYERS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")


def test_the_recipe_of_llada_with_a_small_model(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "llada")
    small = ["--model.source", str(own), "--model.mask-token", "[MASK]"]
    small += ["--model.pad-token", "[PAD]", "--model.lora-rank", "2"]
    small += ["--task.source", str(own / "rows.jsonl"), "--task.held-out", str(own / "rows.jsonl")]
    small += ["--sampling.generation-length", "8", "--sampling.num-inference-steps", "4"]
    small += ["--sampling.block-length", "4", "--training.max-steps", "2"]
    small += ["--training.learning-rate", "0.1", "--training.warmup-steps", "0"]
    command = ["train", "llada-8b-sft", "--output", run, "--quiet", *small]
    assert cli.main(command) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert cli.main([*command, "--model.trust-remote-code"]) == 0
    saved = _weights(tmp_path / "llada")
    before = {n: w.bfloat16() for n, w in load_file(own / "model.safetensors").items()}
    changed = {name for name in before if not torch.equal(saved[name], before[name])}
    assert changed == {f"{name}.weight" for name in _LAYERS if name != "ff_out"}
    # What was saved brings its code along, and still asks before it runs.
    assert cli.main(["run", run, "3 + 1", "--no-video"]) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert cli.main(["run", run, "3 + 1", "--no-video", "--trust-remote-code", "--json"]) == 0
    result = _last_json(capsys)
    assert (result["prompt"], result["success"], result["steps"]) == ("3 + 1", None, 4)
    assert cli.main(["eval", run, "--trust-remote-code"]) == 2
    assert "--reward" in capsys.readouterr().err


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
