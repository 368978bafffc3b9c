"""Two and three real ranks over gloo: the same run as one rank, whatever is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from lmdiff.errors import UserError
from lmdiff.training.checkpoints import latest_checkpoint
from lmdiff.training.launch import check_rank_environment, check_world_size
from lmdiff.training.manifest import read_run
from lmdiff.training.metrics import read_metrics
from lmdiff.training.ranks import gather_numbers, raising_together, shard_of

PROGRAM = str(Path(__file__).with_name("rank_program.py"))
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the ranks left: run folders, and a report of each rank."""
    path = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, PROGRAM, str(path)],
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path


# Toy counts its own forwards, of which each rank does half. A bias of attention's keys changes no
# attention: its gradient is rounding alone, which Adam scales up to whole steps.
NOT_COMPARED = ("steps", "goal_prior.key_value.bias", "self.key.bias", "num_tokens")


def reports(folder, group):
    paths = sorted(folder.glob(f"{group}-*.json"))
    assert paths
    return [json.loads(path.read_text()) for path in paths]


def parameters(run_dir):
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    tensors = checkpoint.tensors["module"]
    return {name: value for name, value in tensors.items() if not name.endswith(NOT_COMPARED)}


def assert_close(one, other, tolerance=1e-5):
    first, second = parameters(one), parameters(other)
    assert first.keys() == second.keys()
    gap = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert gap <= tolerance, gap


def test_there_are_as_many_ranks_as_were_started(folder):
    assert [report["processes"] for report in reports(folder, "two_ranks")] == [2, 2]
    assert [report["processes"] for report in reports(folder, "three_ranks")] == [3, 3, 3]


@pytest.mark.parametrize("name", ["frozen", "lora", "policy", "critic", "sft", "text_rl", "toy"])
def test_two_ranks_are_one_rank_with_the_doubled_batch(folder, name):
    """After 20 steps: planner and goal prior, frozen and LoRA; policies by imitation and with a
    critic (FQL) and its slow copy; text; a toy with dropout."""
    assert_close(folder / name, folder / f"{name}-one")
    two, one = (read_metrics(folder / run / "metrics.jsonl") for run in (name, f"{name}-one"))
    for line, other in zip(two, one, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_other_noise_would_be_another_run(folder):
    """The equality above is one of data and noise, too: a single skipped step breaks it."""
    with pytest.raises(AssertionError):
        assert_close(folder / "toy", folder / "noise")


KINDS = ("frozen", "lora", "policy", "critic", "idql", "fpo", "sft", "text_rl", "toy", "skipped")


@pytest.mark.parametrize("name", KINDS)
def test_ranks_have_equal_parameters(folder, name):
    for report in reports(folder, "two_ranks"):
        assert report[f"spread_{name}"] == 0


def test_every_rank_and_step_has_its_own_noise(folder):
    for report in reports(folder, "two_ranks"):
        assert report["equal_noise"] == 0
        assert report["draws"] == 2 * 20


def test_a_bad_number_on_one_rank_is_skipped_by_all_and_named(folder):
    for report in reports(folder, "two_ranks"):
        assert report["skipped"] == [
            "Step 7 is skipped: the loss of batch 13 (rank 1) is not finite."
        ]
    assert read_metrics(folder / "noise" / "metrics.jsonl")[-1]["skipped"] == 1
    assert all(torch.isfinite(value).all() for value in parameters(folder / "noise").values())


def test_episodes_are_shared_and_every_result_is_known_to_all(folder):
    first, second = reports(folder, "two_ranks")
    for report in (first, second):
        assert report["shared_7"] == [[i, i % 2] for i in range(7)]
        assert report["shared_1"] == [[0, 0]]
        assert report["shared_0"] == []
    assert first["noise_seed"] == 5 != second["noise_seed"]


@pytest.mark.parametrize("name", ["idql", "fpo"])
def test_ranks_live_their_own_episodes_and_all_learn_from_all_of_them(folder, name):
    """Two ranks explore otherwise than one (the noise of a roll-out is its rank's), so that they
    cannot be the same run. What must hold: each rank plays with noise of its own, both have all
    episodes of both, and, by batches that differ, come to equal parameters (above): a loss that
    went past the prepared module would let them drift apart.
    """
    first, second = reports(folder, "two_ranks")
    assert not set(first[f"drawn_{name}"]) & set(second[f"drawn_{name}"])
    assert first[f"lived_{name}"] == second[f"lived_{name}"]
    steps = first[f"environment_steps_{name}"]
    assert steps == second[f"environment_steps_{name}"] >= 2 * 5
    assert read_metrics(folder / name / "metrics.jsonl")[-1]["step"] == 20


def test_an_evaluation_of_text_is_shared_and_has_the_same_figures_on_any_number_of_ranks(folder):
    (figures, first), (others, second) = (r["evaluated"] for r in reports(folder, "two_ranks"))
    alone, count = reports(folder, "one_rank")[0]["evaluated"]
    assert (first, second, count) == (4, 3, 7)
    assert figures == others == pytest.approx(alone)
    assert set(figures) == {
        "reward",
        "rewards/counted/mean",
        "rewards/sometimes/mean",
        "completions/mean_length",
    }


def test_prompts_are_shared_and_answered_alike_on_any_number_of_ranks(folder):
    first, second = reports(folder, "two_ranks")
    (alone,) = reports(folder, "one_rank")
    assert first["measured"] == second["measured"]
    rewards, forwards = alone["measured"]
    assert first["measured"] == [rewards, pytest.approx(forwards)]
    assert [len(values) for values in rewards.values()] == [7, 7]
    assert len(set(rewards["sudoku"])) > 1
    assert forwards > 1


def test_an_evaluation_that_fails_on_one_rank_ends_on_all(folder):
    first, second = reports(folder, "two_ranks")
    assert first["failed"] == "The evaluation failed on another process, which says why."
    assert second["failed"] == "division by zero"


def test_nobody_waits_for_a_main_process_whose_disk_refuses(folder):
    first, second = reports(folder, "two_ranks")
    assert "Could not save a checkpoint" in first["refused"]
    assert "rank 0" in second["refused"]


def test_a_run_of_two_ranks_goes_on_the_same_on_one_that_accumulates(folder):
    (report,) = reports(folder, "one_rank")
    changed = " ".join(report["warned_accumulating"])
    assert "world size (2 before, 1 now)" in changed
    assert "gradient accumulation (1 before, 2 now)" in changed
    assert_close(folder / "toy-accumulating", folder / "toy-thirty")


def test_resume_on_two_then_one_then_three_ranks(folder):
    (one,) = reports(folder, "one_rank")
    assert len(one["warned"]) == 1
    assert "world size (2 before, 1 now)" in one["warned"][0]
    for report in reports(folder, "three_ranks"):
        assert any("world size (1 before, 3 now)" in text for text in report["warned"])
        assert report["spread"] == 0
    run = read_run(folder / "resumed")
    assert run is not None
    assert run["launch"]["processes"] == run["world_size"] == 3
    assert run["launch"]["backend"] == "gloo"
    assert [line["launch"]["processes"] for line in run["resumed"]] == [1, 3]
    steps = [line["step"] for line in read_metrics(folder / "resumed" / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30


def test_what_accelerate_turns_into_one_process_is_refused():
    """The environment that `accelerate launch --cpu --num_processes 2` leaves, as observed."""
    seen = {
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_MIXED_PRECISION": "no",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    with pytest.raises(UserError, match=r"ignores N .*--processes N.*--multi_gpu"):
        check_rank_environment(seen)
    check_rank_environment({"ACCELERATE_MIXED_PRECISION": "no"})
    check_rank_environment(seen | {"WORLD_SIZE": "2", "RANK": "1"})


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_weights_are_refused(name):
    """As `accelerate launch --use_fsdp` sets it; on a CPU Accelerate would ignore it in silence."""
    with pytest.raises(UserError, match=f"asked for {name}.*training.shard.*lora"):
        check_rank_environment({f"ACCELERATE_USE_{name}": "true"})
    check_rank_environment({f"ACCELERATE_USE_{name}": "false"})
    sharding = SimpleNamespace(distributed_type=DistributedType(name), num_processes=1)
    with pytest.raises(UserError, match=name):
        check_world_size(cast(Accelerator, sharding))


@pytest.mark.parametrize(
    ("size", "rank"), [("2", ""), ("two", "0"), ("2", "2"), ("0", "0"), ("-1", "0")]
)
def test_a_senseless_world_is_refused(size, rank):
    with pytest.raises(UserError, match="which no launcher sets"):
        check_rank_environment({"WORLD_SIZE": size, "RANK": rank})


def test_alone_there_is_nothing_to_gather():
    accelerator = Accelerator(cpu=True)
    assert gather_numbers(accelerator, [1.0, 2.0]).tolist() == [[1.0, 2.0]]
    assert [shard_of(accelerator, number) for number in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="mine"), raising_together(accelerator):
        raise UserError("mine")
