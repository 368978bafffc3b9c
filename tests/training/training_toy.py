"""A toy to train, also as a program: python training_toy.py RUN_DIR KILLS SECONDS."""

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from torch import nn

from lmdiff.config import TrainingConfig
from lmdiff.training.checkpoints import list_checkpoints
from lmdiff.training.loop import train


class Toy(nn.Module):
    """Draws from the generator and, through dropout, from the global one; has a buffer."""

    steps: torch.Tensor

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 2)]
        self.net = nn.Sequential(*layers)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, batch, generator):
        x, y = batch
        if self.training:
            self.steps += 1
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        loss = (self.net(x) - y).square().mean()
        return {"loss": loss, "rmse": loss.detach().sqrt()}


def batches(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=generator)
    return x, x[:, :2]


def make_config(**settings):
    defaults = {
        "max_steps": 20,
        "warmup_steps": 4,
        "checkpoint_every": 5,
        "log_every": 4,
        "learning_rate": 1e-2,
        "ema_decay": 0.9,
    }
    return TrainingConfig(**(defaults | settings))


def run(run_dir):
    """Train with a save at every second step, from wherever `run_dir` is."""
    warnings.simplefilter("error", UserWarning)  # a damaged checkpoint would be warned of
    config = make_config(max_steps=200, checkpoint_every=2, log_every=3)
    resume = (run_dir / "run.json").exists()
    train(config, Toy(), batches, run_dir, resume=resume, quiet=True)


def main(run_dir, kills, seconds):
    """Fork runs and kill them at random moments, until one comes to its end.

    Forked, because importing torch for each run would take a hundred times as long as the run.
    This process must not train itself: autograd's threads do not survive a fork.
    """
    torch.set_num_threads(1)
    chance, deadline, killed, torn = random.Random(0), time.monotonic() + seconds, 0, 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                run(run_dir)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if killed < kills and time.monotonic() < deadline:
            time.sleep(chance.uniform(0.02, 0.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
        torn += bool(list(run_dir.glob("checkpoints/.tmp-*")))
    print(json.dumps({"killed": killed, "torn": torn, "last": latest_step(run_dir)}))
    sys.exit(os.waitstatus_to_exitcode(status))


def latest_step(run_dir):
    return max((step for step, _ in list_checkpoints(run_dir)), default=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), kills=int(sys.argv[2]), seconds=float(sys.argv[3]))
