"""`lmdiff bench text-memory`: does the number of Monte Carlo samples move an update's peak memory?

Every figure is that of a fresh process, which makes one update of one sample (to load what is
loaded once, and to have an optimiser with its moments) and then one of S. On Linux the process runs
with MALLOC_MMAP_THRESHOLD_=262144: else glibc's allocator keeps some of what was freed.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lmdiff.algos.likelihood import DrawOptions
from lmdiff.algos.policy_loss import (
    OBJECTIVES,
    PolicyConfig,
    check_policy,
    needs_reference,
    policy_loss,
)
from lmdiff.algos.two_pass import recomputed, two_pass_backward, values
from lmdiff.denoisers.masked_text import MaskedTextDenoiser
from lmdiff.denoisers.text_models import bert_spec
from lmdiff.errors import UserError
from lmdiff.evaluation.bench_text import MASK, Size, Table

SAMPLES = (1, 2, 4, 8, 16)
WAYS = ("recomputed", "two-pass", "one graph")
"""The trainer's way (one backward through checkpoints), the explicit two passes, and neither."""


def text_memory(
    size: Size | None = None,
    samples: Sequence[int] = SAMPLES,
    objectives: Sequence[str] = OBJECTIVES,
) -> Table:
    """Peak MiB by samples.

    The trainer's way for each objective, and for the last of them the other two ways as well.
    """
    size = size or Size()
    rows = []
    pairs = [(objective, WAYS[0]) for objective in objectives]
    for objective, way in pairs + [(objectives[-1], other) for other in WAYS[1:]]:
        # Ratios of single tokens need an estimate of every token; the others take an ELBO.
        estimator = "mean-field" if objective == "token-ratio" else "elbo"
        peaks = {}
        start = 0.0
        for count in samples:
            found = _fresh_process(size, objective, estimator, way, count)
            peaks[count], start = found["peak"], found["start"]
        few, many = peaks[samples[0]], peaks[samples[-1]]
        rows.append(
            {"objective": objective, "estimator": estimator, "way": way}
            | {f"samples_{count}": round(peak, 1) for count, peak in peaks.items()}
            | {"start": round(start, 1), "ratio": round(many / few, 3)}
        )
    title = "Peak memory (MiB) of one update of text RL, by Monte Carlo samples"
    columns = {"objective": "objective", "estimator": "estimator", "way": "gradient"}
    columns |= {f"samples_{n}": f"{n}" for n in samples}
    columns |= {"start": "before the update", "ratio": f"{samples[-1]} against {samples[0]}"}
    return title, columns, rows


def _fresh_process(
    size: Size, objective: str, estimator: str, way: str, samples: int
) -> dict[str, float]:
    words = ["--objective", objective, "--estimator", estimator, "--way", way]
    words += ["--samples", str(samples), "--size", json.dumps(dataclasses.asdict(size))]
    done = subprocess.run(
        [sys.executable, "-m", "lmdiff.evaluation.bench_memory", *words],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise UserError(f"The measuring process failed ({' '.join(words)}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """The most memory that this process has had at once (resident set), in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's, from before exec
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 1024


def measure(size: Size, objective: str, estimator: str, way: str, samples: int) -> dict[str, float]:
    """Peak MiB of this process after one update, and before any."""
    torch.set_num_threads(1)
    model = size.model()
    denoiser = MaskedTextDenoiser(model, bert_spec(model, MASK))
    optimizer = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(0)
    x, advantages = size.texts(), size.advantages()
    start = peak_mib()

    def update(count: int) -> None:
        config = PolicyConfig(
            estimator=estimator,
            objective=next(name for name in OBJECTIVES if name == objective),
            samples=count,
            group_size=size.batch,
        )
        draw = check_policy(config).draw(x, DrawOptions(count), generator)

        def evaluate(sample: int) -> Tensor:
            return denoiser.log_probs(x, draw, sample)

        reference = values(evaluate, len(draw)) if needs_reference(config) else None

        def loss(table: Tensor) -> Tensor:
            rows = policy_loss(
                config, table, draw, advantages, x.completion_mask, reference=reference
            )
            return rows.loss.mean()

        if way == "two-pass":
            two_pass_backward(evaluate, len(draw), loss)
        elif way == "recomputed":
            loss(recomputed(evaluate, len(draw))).backward()
        else:
            loss(torch.stack([evaluate(sample) for sample in range(len(draw))])).backward()
        optimizer.step()
        optimizer.zero_grad()

    update(1)
    update(samples)
    return {"start": start, "peak": peak_mib()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The measuring process: prints one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--objective", required=True, choices=OBJECTIVES)
    parser.add_argument("--estimator", required=True)
    parser.add_argument("--way", required=True, choices=WAYS)
    parser.add_argument("--samples", required=True, type=int)
    parser.add_argument("--size", required=True, type=json.loads)
    options = parser.parse_args(arguments)
    size = Size(**options.size)
    found = measure(size, options.objective, options.estimator, options.way, options.samples)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
