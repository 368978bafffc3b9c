"""The comparison's bookkeeping, on runs that are done; what a run is, other tests train."""

import json
from pathlib import Path

import pytest

from lmdiff.evaluation.intervals import wilson
from lmdiff.training.text.comparison import PAIRS, Comparison

SOLVED = {  # run folder -> prompts solved, of 100
    "sudoku-sft-0": ("held_out", 40),
    "sudoku-sft-1": ("held_out", 60),
    "sudoku-elbo+bgpo-5e-05-20-100": ("validation", 30),
    "sudoku-elbo+bgpo-0.0001-20-100": ("validation", 31),
    "sudoku-mean-field+wd1-5e-05-20-100": ("validation", 9),
    "sudoku-mean-field+wd1-0.0001-20-100": ("validation", 2),
    "sudoku-elbo+bgpo-0.0001-160-0": ("held_out", 70),
    "sudoku-elbo+bgpo-0.0001-160-1": ("held_out", 80),
    "sudoku-mean-field+wd1-5e-05-160-0": ("held_out", 10),
    "sudoku-mean-field+wd1-5e-05-160-1": ("held_out", 0),
}


@pytest.fixture
def done(tmp_path: Path) -> Path:
    for name, (split, solved) in SOLVED.items():
        run = tmp_path / name
        (run / "agent").mkdir(parents=True)
        record = {"solved": solved, "prompts": 100}
        seed = name.rpartition("-")[2]
        (run / f"solved-{split}-100-{seed}.json").write_text(json.dumps(record))
    (tmp_path / "sudoku-sft-100" / "agent").mkdir(parents=True)
    return tmp_path


def test_the_best_rate_is_told_and_only_its_runs_count(done: Path) -> None:
    """Every run that it needs is there: a missing one would be trained, and the test time out."""
    output = done / "result.json"
    Comparison(
        pairs=("elbo+bgpo", "mean-field+wd1"),
        seeds=(0, 1),
        rates=(5e-5, 1e-4),
        search_steps=20,
        prompts=100,
        runs=done,
        output=output,
    ).run()
    result = json.loads(output.read_text())
    bgpo, wd1 = result["rows"]
    assert (bgpo["estimator"], bgpo["objective"]) == ("elbo", "bgpo")
    assert (bgpo["learning_rate"], wd1["learning_rate"]) == (1e-4, 5e-5)
    assert bgpo["before"] == wd1["before"] == wilson(100, 200).to_dict()
    assert bgpo["after"] == wilson(150, 200).to_dict()
    assert wd1["after"] == wilson(10, 200).to_dict()
    assert (bgpo["each_before"], bgpo["each_after"]) == ("40, 60", "70, 80")
    assert result["seeds"] == [0, 1]
    assert "--rates 5e-05 0.0001" in result["command"]
    assert "--prompts 100" in result["command"]
    assert bgpo["completions"] == 128


def test_one_rate_is_not_searched(done: Path) -> None:
    for name in [path.name for path in done.iterdir() if path.name.endswith("-100")]:
        assert name == "sudoku-sft-100" or (done / name).rename(done / f"gone-{name}")
    Comparison(pairs=("elbo+bgpo",), seeds=(0,), rates=(1e-4,), prompts=100, runs=done).run()


def test_one_start_may_serve_all_seeds(done: Path) -> None:
    file = done / "sudoku-sft-0" / "solved-held_out-100-1.json"
    file.write_text(json.dumps({"solved": 42, "prompts": 100}))
    output = done / "result.json"
    Comparison(
        pairs=("elbo+bgpo",),
        seeds=(0, 1),
        start=0,
        rates=(1e-4,),
        prompts=100,
        runs=done,
        output=output,
    ).run()
    result = json.loads(output.read_text())
    assert result["rows"][0]["each_before"] == "40, 42"  # each seed has prompts of its own
    assert "--start 0" in result["command"]


def test_every_pair_makes_sense() -> None:
    from lmdiff.algos.policy_loss import PolicyConfig, check_policy

    for estimator, objective in PAIRS:
        samples = 1 if estimator in ("coupled", "trace") else 4
        check_policy(PolicyConfig(estimator=estimator, objective=objective, samples=samples))
