"""The careless study: its bookkeeping on runs that are done, and that its settings are trained."""

import json
from pathlib import Path

import pytest

from lmdiff.evaluation.intervals import wilson
from lmdiff.training.text import careless as text_careless
from lmdiff.training.text.careless import CarelessStudy
from lmdiff.training.text.runs import trained


def finished(run: Path, solved: int, ratios: list[float]) -> None:
    (run / "agent").mkdir(parents=True)
    record = {"solved": solved, "prompts": 100}
    seed = run.name.rpartition("-")[2]
    (run / f"solved-held_out-100-{seed}.json").write_text(json.dumps(record))
    lines = [{"step": i, "ratio/max": ratio} for i, ratio in enumerate(ratios, 1)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_row_for_each_combination(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path / f"start-{seed}", 80, [])
        for rate in ("5e-05", "0.0002"):
            for tokens in (1, 4):
                finished(tmp_path / f"{rate}-{tokens}-1-{seed}", 80 + tokens, [1.0])
                finished(tmp_path / f"{rate}-{tokens}-2-{seed}", 50 + seed, [1.0, 3.0 + seed, 2.0])
    output = tmp_path / "result.json"
    CarelessStudy(seeds=(0, 1), prompts=100, runs=tmp_path, output=output).run()
    result = json.loads(output.read_text())
    start, *rows = result["rows"]
    assert start["solved"] == wilson(160, 200).to_dict()
    settings = [(row["learning_rate"], row["tokens"], row["updates"]) for row in rows]
    assert len(set(settings)) == 8
    worst = rows[settings.index((2e-4, 4, 2))]
    assert worst["solved"] == wilson(101, 200).to_dict()
    assert worst["ratio"] == 4.0
    assert rows[settings.index((5e-5, 4, 1))]["solved"] == wilson(168, 200).to_dict()


def test_the_settings_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}

    def remember(config, run_dir, start=None):
        made[run_dir.name] = config, start
        return run_dir

    monkeypatch.setattr(text_careless, "trained", remember)
    monkeypatch.setattr(text_careless, "solved", lambda *_: 1)
    lines = [{"step": 1, "ratio/max": 1.0}]
    monkeypatch.setattr(text_careless, "read_metrics", lambda _: lines)
    CarelessStudy(runs=tmp_path, steps=6, completions=16).run()
    config, start = made["0.0002-4-2-0"]
    assert (config.training.learning_rate, config.rl.num_inference_steps) == (2e-4, 4)
    assert (config.rl.num_iterations, config.training.max_steps) == (2, 6)
    assert start == tmp_path / "start-0"
    assert made["start-0"][0].sft.stop_at == CarelessStudy().start


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    assert trained(None, tmp_path) == tmp_path  # type: ignore[arg-type]  (never looked at)
