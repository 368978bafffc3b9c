"""Ranks over gloo on a CPU, as a program: python rank_program.py FOLDER.

It forks groups of ranks, which import nothing again; each writes what it found to
FOLDER/GROUP-RANK.json. This process itself trains nothing: autograd does not survive a fork.
"""

import faulthandler
import json
import os
import shutil
import socket
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator
from training_toy import Toy, make_config

from lmdiff.config import AgentConfig, DenoiserConfig, GoalConfig, PriorConfig
from lmdiff.data.goal_states import GoalStates
from lmdiff.data.normalizer import Normalizer
from lmdiff.data.windows import Batch
from lmdiff.errors import UserError
from lmdiff.evaluation.sharing import noise_seed, over_ranks
from lmdiff.training.imitation import ImitationBatch, ImitationModule
from lmdiff.training.launch import make_accelerator
from lmdiff.training.loop import train
from lmdiff.training.ranks import gather_numbers, shard_of

STEPS = 20
PHRASES = ["go to the bottom right corner", "row 3, column 4", "stay in the upper half"]


def agent_config(adaptation):
    return AgentConfig(
        denoiser=DenoiserConfig(width=32, layers=1, horizon=6, stride=4),
        goal=GoalConfig(adaptation=adaptation, lora_rank=2),
        prior=PriorConfig(known_states=16, phrases=3, states=2),
    )


def imitation_module(config):
    channels = 2 + 2 * config.denoiser.stride + 1
    torch.manual_seed(0)
    module = ImitationModule(config, Normalizer(mean=[0.0] * channels, std=[1.0] * channels))
    module.remember(torch.randn(16, 2, generator=torch.Generator().manual_seed(1)))
    if config.goal.adaptation == "frozen":
        # As a training does: what a phrase is encoded with decides the last digits of its states.
        module.goal_encoder(PHRASES)
    return module


def imitation_batch(config, shard):
    """Batch number `shard`; every third one has no words at all."""
    generator = torch.Generator().manual_seed(shard)
    size, (horizon, stride) = 4, (config.denoiser.horizon, config.denoiser.stride)
    said = (torch.rand(size, generator=generator) < 0.5) & (shard % 3 > 0)
    windows = Batch(
        observation=torch.randn(size, horizon, 2, generator=generator),
        action=torch.randn(size, horizon, 2 * stride, generator=generator),
        signal=torch.randn(size, horizon, 1, generator=generator),
        goal_state=torch.randn(size, 2, generator=generator),
        state_given=~said,
        phrases=[PHRASES[i % 3] if words else None for i, words in enumerate(said.tolist())],
    )
    return ImitationBatch(windows, GoalStates(PHRASES, torch.randn(3, 2, 2, generator=generator)))


def toy_batch(shard):
    generator = torch.Generator().manual_seed(shard)
    x = torch.randn(8, 4, generator=generator)
    return x, x[:, :2]


def train_toy(run_dir, accelerator, end=STEPS, module=None, **options):
    """Returns the names of the warnings that were given."""
    module = module or Toy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train(
            make_config(max_steps=end, lr_schedule="constant_with_warmup"),
            module,
            lambda number: toy_batch(shard_of(accelerator, number)),
            run_dir,
            accelerator=accelerator,
            quiet=True,
            **options,
        )
    return module, [str(w.message) for w in caught if w.category is UserWarning]


def train_imitation(run_dir, accelerator, adaptation):
    config = agent_config(adaptation)
    module = imitation_module(config)
    train(
        make_config(max_steps=STEPS, learning_rate=1e-3),
        module,
        lambda number: imitation_batch(config, shard_of(accelerator, number)),
        run_dir,
        accelerator=accelerator,
        quiet=True,
    )
    return module


def spread(accelerator, module):
    """The largest difference of any trained parameter between ranks."""
    flat = torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])
    everyone = accelerator.gather(flat[None])
    return float((everyone - everyone[0]).abs().max())


class Recording(Toy):
    """Keeps the first draw of each step's noise; NaN at step 7 on rank 1 alone."""

    def __init__(self, rank):
        super().__init__()
        self.rank, self.noise = rank, []

    def forward(self, batch, generator):
        self.noise.append(float(torch.randn((), generator=generator.clone_state())))
        out = super().forward(batch, generator)
        if self.rank == 1 and len(self.noise) == 7:
            out["loss"] = out["loss"] * torch.nan
        return out


def two_ranks(folder, report):
    accelerator = make_accelerator()
    rank = accelerator.process_index
    report["processes"] = accelerator.num_processes
    for adaptation in ("frozen", "lora"):
        module = train_imitation(folder / adaptation, accelerator, adaptation)
        report[f"spread_{adaptation}"] = spread(accelerator, module)
    module, _ = train_toy(folder / "toy", accelerator)
    report["spread_toy"] = spread(accelerator, module)
    train_toy(folder / "toy-thirty", accelerator, end=30)

    recording, warned = train_toy(folder / "noise", accelerator, module=Recording(rank))
    noise = gather_numbers(accelerator, recording.noise)
    report["equal_noise"] = int((noise[0] == noise[1]).sum())
    report["draws"] = noise.unique().numel()
    report["skipped"] = warned
    report["spread_skipped"] = spread(accelerator, recording)

    # Seven episodes on two ranks, one on two, and none.
    for count in (7, 1, 0):
        shared = over_ranks(count, lambda mine: [[index, rank] for index in mine])
        report[f"shared_{count}"] = shared.tolist()
    report["noise_seed"] = noise_seed(5)

    # The disk of the main process refuses: nobody may wait for it.
    if accelerator.is_main_process:
        (folder / "refused").mkdir()
        (folder / "refused" / "checkpoints").write_text("a file where a folder should be")
    accelerator.wait_for_everyone()
    try:
        train_toy(folder / "refused", accelerator)
    except UserError as error:
        report["refused"] = str(error)


def one_rank(folder, report):
    """One rank that accumulates two batches; then the run of two ranks goes on as one."""
    accumulating = Accelerator(cpu=True, gradient_accumulation_steps=2)
    for adaptation in ("frozen", "lora"):
        train_imitation(folder / f"{adaptation}-one", accumulating, adaptation)
    train_toy(folder / "toy-one", accumulating)
    shutil.copytree(folder / "toy", folder / "toy-accumulating")
    _, report["warned_accumulating"] = train_toy(
        folder / "toy-accumulating", accumulating, end=30, resume=True
    )
    accumulating.gradient_accumulation_steps = 1
    shutil.copytree(folder / "toy", folder / "resumed")
    _, report["warned"] = train_toy(folder / "resumed", accumulating, end=25, resume=True)


def three_ranks(folder, report):
    accelerator = make_accelerator()
    module, report["warned"] = train_toy(folder / "resumed", accelerator, end=30, resume=True)
    report["spread"] = spread(accelerator, module)
    report["processes"] = accelerator.num_processes


def fork_ranks(size, work, folder):
    """Run `work(folder, report)` in `size` ranks; returns their reports, or fails with theirs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            code = 1
            faulthandler.dump_traceback_later(100, exit=True)  # a deadlock says where
            try:
                report = {}
                work(folder, report)
                (folder / f"{work.__name__}-{rank}.json").write_text(json.dumps(report))
                torch.distributed.destroy_process_group()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"{work.__name__}: exit codes {codes}")


def main(folder):
    torch.set_num_threads(1)
    for size, work in ((2, two_ranks), (1, one_rank), (3, three_ranks)):
        fork_ranks(size, work, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
