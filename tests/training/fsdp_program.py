"""Sharded training (FSDP2) on two gloo ranks, as a program: python fsdp_program.py FOLDER.

LoRA on a small BERT, and all of its weights, by the loop that trains every agent. The same is
trained whole in one process, on both ranks' batches; and one process goes on from what two wrote.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rank_program import STEPS, fork_ranks, text_parts
from torch.distributed.tensor import DTensor
from training_toy import make_config

from lmdiff.errors import UserError
from lmdiff.training.checkpoints import latest_checkpoint
from lmdiff.training.launch import make_accelerator
from lmdiff.training.loop import train
from lmdiff.training.ranks import shard_of
from lmdiff.training.sharding import blocks, trained_weights
from lmdiff.training.text.sft import Examples, SFTModule


def learn(run_dir, accelerator, adaptation, shard, end=STEPS, **options):
    config, parts, rows = text_parts()
    if adaptation == "lora":
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules=["query", "value"])
        parts = replace(parts, model=get_peft_model(parts.model, lora))
    module, examples = SFTModule(parts, config.sft), Examples(parts, rows, 16, 40)
    train(
        make_config(
            max_steps=end, learning_rate=1e-3, lr_schedule="constant_with_warmup", shard=shard
        ),
        module,
        lambda number: examples.batch(0, shard_of(accelerator, number), 8),
        run_dir,
        accelerator=accelerator,
        quiet=True,
        **options,
    )
    return module


def sharded(folder, report):
    accelerator = make_accelerator()
    for adaptation in ("lora", "full"):
        module = learn(folder / adaptation, accelerator, adaptation, True, STEPS // 2)
        report[adaptation] = {
            "sharded": sum(isinstance(p, DTensor) for p in module.parameters()),
            "parameters": sum(1 for _ in module.parameters()),
            "blocks": len(blocks(module)),
        }
        if accelerator.is_main_process:
            shutil.copytree(folder / adaptation, folder / f"{adaptation}-half")
        accelerator.wait_for_everyone()
        # Others go on from what was saved: here the same ranks, with a new module.
        module = learn(folder / adaptation, accelerator, adaptation, True, resume=True)
        weights = trained_weights(module)
        if accelerator.is_main_process:
            torch.save(weights, folder / f"{adaptation}.pt")
    try:
        learn(folder / "no", accelerator, "full", True, evaluate=lambda module, step: {})
    except UserError as error:
        report["refused"] = str(error)


def gap(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def main(folder):
    torch.set_num_threads(1)
    fork_ranks(2, sharded, folder)
    report = {}
    for adaptation in ("lora", "full"):
        twice = Accelerator(cpu=True, gradient_accumulation_steps=2)
        whole = trained_weights(learn(folder / f"{adaptation}-1", twice, adaptation, False))
        start = trained_weights(learn(folder / f"{adaptation}-0", twice, adaptation, False, 1))
        found = torch.load(folder / f"{adaptation}.pt", weights_only=True)
        half = learn(folder / f"{adaptation}-half", twice, adaptation, True, resume=True)
        one, two = (latest_checkpoint(folder / f"{adaptation}{end}") for end in ("-1", ""))
        report[adaptation] = {
            "gap": gap(found, whole),
            "gone_on_alone": gap(trained_weights(half), whole),
            "moved": gap(start, whole),
            "optimizer": gap(two.tensors["optimizer"], one.tensors["optimizer"]),
        }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
