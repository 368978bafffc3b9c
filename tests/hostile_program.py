"""Load hostile folders under an audit hook, as a program: python hostile_program.py FOLDER.

The last line of its output is a JSON object: what each attack raised, and what ran that must not.
An audit hook cannot be taken off again, hence a process of its own.
"""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lmdiff.data.normalizer import Normalizer
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.text_models import bert_model
from lmdiff.evaluation.agents import load_pipeline
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.tokenizer import char_tokenizer
from lmdiff.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint

FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "shutil.rm")
MARK = "it-ran"


def payload(folder: Path) -> bytes:
    """A pickle that leaves a mark when it is read (protocol 0: os.system as a global)."""
    return f"cos\nsystem\n(S'touch {folder / MARK}'\ntR.".encode()


def evil_python(folder: Path) -> str:
    return f"open({str(folder / MARK)!r}, 'w').close()\nclass Evil: pass\n"


def goal_agent(folder: Path) -> Path:
    """A tiny whole GoalPipeline, saved."""
    words = ["[PAD]", "[UNK]", "go", "to", "the", "left"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    bert = folder / "bert"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(bert)
    config = BertConfig(
        vocab_size=6,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(bert)
    pipe = GoalPipeline(
        network=TrajectoryTransformer(2, 8, 1, 2, 16, 6, 16, 1, 2),
        normalizer=Normalizer(mean=[0.0] * 11, std=[1.0] * 11),
        goal_encoder=GoalEncoder(str(bert)),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        stride=4,
        task="pointmaze-medium",
    )
    pipe.save_pretrained(folder / "agent")
    return folder / "agent"


def text_agent(folder: Path) -> Path:
    tokenizer = char_tokenizer("0123")
    pad = tokenizer.pad_token_id
    model = bert_model(len(tokenizer), pad, 16, hidden=16, layers=1, heads=2)
    TextPipeline(model, tokenizer).save_pretrained(folder / "text")
    return folder / "text"


def edit(path: Path, change: Callable[[dict], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def with_pickle(agent: Path) -> None:
    """Weights as a pickle, in the place of safetensors."""
    for weights in [*agent.rglob("*.safetensors")]:
        weights.unlink()
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
            (weights.parent / name).write_bytes(payload(agent.parent))


def renamed_pickle(agent: Path) -> None:
    for weights in agent.rglob("*.safetensors"):
        weights.write_bytes(payload(agent.parent))


def huge_header(agent: Path) -> None:
    """A safetensors file that announces a header of 10 GB."""
    for weights in agent.rglob("*.safetensors"):
        weights.write_bytes((10 * 10**9).to_bytes(8, "little") + b"{}")


def deep_json(agent: Path) -> None:
    (agent / "model_index.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def deep_component(agent: Path) -> None:
    component = next(path for path in sorted(agent.iterdir()) if (path / "config.json").exists())
    (component / "config.json").write_text("[" * 100_000)


def own_code(agent: Path) -> None:
    """A component whose class comes with the folder."""
    index = json.loads((agent / "model_index.json").read_text())
    name = next(key for key, value in index.items() if isinstance(value, list) and value[0])
    (agent / name / "evil.py").write_text(evil_python(agent.parent))
    edit(agent / "model_index.json", lambda index: index.update({name: ["evil", "Evil"]}))


def own_pipeline(agent: Path) -> None:
    """A pipeline whose class comes with the folder."""
    (agent / "evil.py").write_text(evil_python(agent.parent))
    edit(agent / "model_index.json", lambda index: index.update(_class_name=["evil", "Evil"]))


def os_system(agent: Path) -> None:
    """Any module that is imported already, as a component."""
    edit(agent / "model_index.json", lambda index: index.update(scheduler=["os", "system"]))


def upwards(agent: Path) -> None:
    """A component outside of the folder."""
    (agent.parent / "outside").mkdir()
    (agent.parent / "outside" / "evil.py").write_text(evil_python(agent.parent))
    edit(
        agent / "model_index.json",
        lambda index: index.update({"../outside": ["evil", "Evil"]}),
    )


def link_to_nowhere(agent: Path) -> None:
    for weights in agent.rglob("*.safetensors"):
        weights.unlink()
        weights.symlink_to("/etc/hostname")


def language_model_code(agent: Path) -> None:
    """A language model that brings code of its own, for transformers' Auto classes to run."""
    bert = agent.parent / "bert" if (agent.parent / "bert").exists() else agent / "model"
    (bert / "evil.py").write_text(evil_python(agent.parent))
    auto = {
        "AutoConfig": "evil.Evil",
        "AutoModel": "evil.Evil",
        "AutoModelForMaskedLM": "evil.Evil",
    }
    edit(bert / "config.json", lambda c: c.update(auto_map=auto, model_type="evil"))


ATTACKS = [
    with_pickle,
    renamed_pickle,
    huge_header,
    deep_json,
    deep_component,
    own_code,
    own_pipeline,
    os_system,
    upwards,
    link_to_nowhere,
    language_model_code,
]


def checkpoint_attacks(run_dir: Path) -> dict[str, Callable[[], object]]:
    """Checkpoints whose manifest is right, and whose files are not what they seem."""
    attacks: dict[str, Callable[[], object]] = {}
    for name, content in {
        "pickle": payload(run_dir.parent),
        "huge_header": (10 * 10**9).to_bytes(8, "little") + b"{}",
        "deep_header": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    }.items():
        folder = run_dir / name
        path = save_checkpoint(folder, 1, {"module": {"x": torch.zeros(2)}}, {})
        (path / "module.safetensors").write_bytes(content)
        from lmdiff.training.checkpoints import _describe  # the attacker writes a right manifest

        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["module.safetensors"] = _describe(path / "module.safetensors")
        (path / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        attacks[name] = lambda path=path: load_checkpoint(path)
    folder = run_dir / "accelerate"
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"):
        (folder / "checkpoints" / "step-00000001" / name).write_bytes(payload(run_dir.parent))
    save_file({"x": torch.zeros(1)}, folder / "checkpoints/step-00000001/model.safetensors")
    attacks["accelerate"] = lambda: latest_checkpoint(folder)
    return attacks


def main(folder: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    sources = {"goal": goal_agent(folder), "text": text_agent(folder)}
    loads: dict[str, Callable[[Path], object]] = {
        "goal": GoalPipeline.from_pretrained,
        "goal_by_name": load_pipeline,
        "text": TextPipeline.from_pretrained,
    }
    for kind, load in loads.items():
        load(sources[kind.split("_")[0]])  # what is not attacked loads; and imports are done
    run_dir = folder / "runs"
    cases = {f"checkpoint {name}": load for name, load in checkpoint_attacks(run_dir).items()}
    for kind, load in loads.items():
        for attack in ATTACKS:
            home = folder / f"{kind}-{attack.__name__}"
            home.mkdir()
            source = sources[kind.split("_")[0]]
            shutil.copytree(source, home / source.name)
            if kind.startswith("goal"):
                shutil.copytree(folder / "bert", home / "bert")
                edit(
                    home / "agent" / "goal_encoder" / "config.json",
                    lambda c, home=home: c.update(language_model=str(home / "bert"), sha256=None),
                )
            attack(home / source.name)
            cases[f"{kind} {attack.__name__}"] = lambda load=load, at=home / source.name: load(at)

    ran: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple) -> None:
        if watching and event.startswith(FORBIDDEN):
            ran.append(f"{event} {arguments!r:.100}")
        if watching and event == "exec" and str(folder) in str(arguments[0].co_filename):
            ran.append(f"exec {arguments[0].co_filename}")

    sys.addaudithook(hook)
    report = {}
    for name, load in cases.items():
        ran.clear()
        watching = True
        try:
            load()
            raised, message = "", ""
        except Exception as error:
            raised, message = type(error).__name__, str(error)[:300]
        watching = False
        report[name] = {"raised": raised, "message": message, "ran": list(ran)}
    marks = [str(path) for path in folder.rglob(MARK)]
    print(json.dumps({"report": report, "marks": marks}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
