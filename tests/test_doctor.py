"""`lmdiff doctor`, run for real once; and each trap that it is to see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmdiff import doctor
from lmdiff.goals import embedded

ROOT = Path(__file__).resolve().parents[1]


def names(findings):
    return {finding.name for finding in findings if not finding.ok}


def test_this_machine_is_well(tmp_path):
    """Two real gloo ranks by Accelerate's launcher, a real kill -9, a real speed."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ACCELERATE_", "MASTER_", "WORLD_SIZE", "RANK"))
    }
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = "import sys; from lmdiff.doctor import doctor; sys.exit(doctor(as_json=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=280
    )
    report = json.loads(done.stdout.splitlines()[-1])
    details = {finding["name"]: finding["detail"] for finding in report["findings"]}
    assert report["ok"], report
    assert done.returncode == 0
    assert details["all-reduce"].startswith("2 ranks over gloo") or "nccl" in details["all-reduce"]
    assert "which loads" in details["save-kill-load"]
    assert float(details["speed"].split()[0]) > 0
    assert "torch 2" in details["versions"]


def test_old_packages_are_seen(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    bad = [finding for finding in doctor._versions() if not finding.ok]
    assert {"pip install 'diffusers<0.44,>=0.42'", "pip install 'accelerate>=1.15'"} <= {
        finding.mend for finding in bad
    }


@pytest.mark.parametrize(
    ("name", "value"), [("ACCELERATE_USE_CPU", "true"), ("FSDP_VERSION", "2"), ("RANK", "0")]
)
def test_variables_that_steer_accelerate_are_seen(monkeypatch, name, value):
    for other in [key for key in os.environ if key.startswith("ACCELERATE_")]:
        monkeypatch.delenv(other)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not names(doctor._environment())
    monkeypatch.setenv(name, value)
    (finding,) = doctor._environment()
    assert not finding.ok
    assert finding.mend == f"unset {name}"


def test_a_launch_that_lost_its_processes_is_seen(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (finding,) = doctor._environment()
    assert "accelerate#2741" in finding.detail


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("num_processes: 1\nuse_cpu: true\n", True),
        ("num_processes: 2\nuse_cpu: true\n", False),
        ("num_processes: 2\ndistributed_type: MULTI_CPU\n", False),
        ("num_processes: 4\ndistributed_type: MULTI_GPU\nuse_cpu: false\n", True),
        ("num_processes: [", False),
        ("- 1", False),
        ("!!python/object/apply:os.system ['false']", False),
    ],
)
def test_a_config_that_starts_one_process_is_seen(monkeypatch, tmp_path, text, ok):
    from accelerate.commands.config import config_args

    path = tmp_path / "default_config.yaml"
    path.write_text(text)
    monkeypatch.setattr(config_args, "default_config_file", str(path))
    (finding,) = doctor._accelerate_config()
    assert finding.ok is ok
    assert ok or str(path) in finding.mend


def test_a_full_disk_is_seen(monkeypatch):
    usage = doctor.shutil.disk_usage(".")._replace(free=10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert names(doctor._disk()) == {"disk"}


def test_a_tampered_language_model_is_seen(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(embedded, "folder", lambda: embedded.verify(tmp_path / "model.safetensors"))
    assert names(doctor._language_model()) == {"language model"}


def test_what_fails_is_a_finding(monkeypatch):
    def check():
        raise RuntimeError("gloo is out of paste")

    (finding,) = doctor._tried(check)
    assert not finding.ok
    assert "out of paste" in finding.detail


def test_a_checkpoint_that_does_not_load_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "latest_checkpoint", lambda _: None)
    assert not doctor._save_kill_load().ok
