"""FSDP2 of a text model with LoRA on two gloo ranks, as a program: python fsdp_program.py FOLDER.

lmdiff refuses to train so. This tries what it would need of torch: shard, step, gather adapters
and save them, and load them into a model that is whole.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rank_program import fork_ranks, text_parts
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

STEPS = 3


def adapted():
    """A small BERT with LoRA, always the same weights."""
    _, parts, _ = text_parts()
    torch.manual_seed(1)
    return get_peft_model(parts.model, LoraConfig(r=4, target_modules=["query", "value"]))


def trained(model, batches):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for ids in batches:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def tokens(step, rank):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randint(3, 9, (4, 12), generator=generator)


def sharded(folder, report):
    accelerator = Accelerator(cpu=True)
    rank, model = accelerator.process_index, adapted()
    for layer in model.base_model.model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    report["sharded"] = sum(isinstance(p, DTensor) for p in model.parameters())
    report["parameters"] = sum(1 for _ in model.parameters())
    trained(model, [tokens(step, rank) for step in range(STEPS)])
    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    gathered = get_model_state_dict(model, options=options)
    report["gathered"] = len(gathered)
    if accelerator.is_main_process:
        save_file({name: value.contiguous() for name, value in gathered.items()}, folder / "a")


def main(folder):
    torch.set_num_threads(1)
    fork_ranks(2, sharded, folder)
    whole = adapted()
    trained(whole, [torch.cat([tokens(step, rank) for rank in (0, 1)]) for step in range(STEPS)])
    expected = {name: p.detach() for name, p in whole.named_parameters() if p.requires_grad}
    loaded, fresh = load_file(folder / "a"), adapted()
    missing = fresh.load_state_dict(loaded, strict=False)
    start = {name: p.detach() for name, p in adapted().named_parameters() if p.requires_grad}
    found = {name: p.detach() for name, p in fresh.named_parameters() if p.requires_grad}
    gap = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    moved = max(float((start[name] - expected[name]).abs().max()) for name in expected)
    report = {"gap": gap, "moved": moved, "unexpected": missing.unexpected_keys}
    # torch leaves frozen weights out, but for those that are tied: the head's.
    gathered = {name for name in loaded if ".cls." not in name}
    report["names"] = gathered == set(expected) != set()
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
