import dataclasses
import functools
import json
import math
import os
import signal
import warnings

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training_toy import Toy, batches, make_config

from lmdiff.errors import UserError
from lmdiff.training import run as run_module
from lmdiff.training.checkpoints import latest_checkpoint, list_checkpoints, load_checkpoint
from lmdiff.training.loop import train
from lmdiff.training.metrics import read_metrics
from lmdiff.training.seeds import derived_seed, noise_generator


def newest(run_dir):
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    return checkpoint


def assert_same_run(one, other):
    """The newest checkpoints agree in every bit: weights, EMA, optimizer, counters."""
    first, second = newest(one), newest(other)
    assert first.state == second.state
    assert first.step == second.step
    for group, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors[group][name]), f"{group} {name}"


def lines(run_dir):
    entries = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in e.items() if k != "steps_per_second"} for e in entries]


class Crashed(Exception):  # noqa: N818
    pass


def until(end, given=batches):
    def limited(step):
        if step >= end:
            raise Crashed
        return given(step)

    return limited


@pytest.mark.parametrize("settings", [{}, {"mixed_precision": "bf16"}])
def test_resumed_run_is_bit_identical(tmp_path, settings):
    config = make_config(evaluate_every=6, **settings)

    def evaluate(module, step):
        # Draws, to show that an evaluation does not disturb training.
        return {"noise": float(torch.randn(())), "bias": float(module.net[0].bias.sum())}

    whole = Toy()
    result = train(config, whole, batches, tmp_path / "whole", evaluate=evaluate, quiet=True)
    for end in (3, 7, 13):
        with pytest.raises(Crashed):
            train(
                config,
                Toy(),
                until(end),
                tmp_path / "cut",
                evaluate=evaluate,
                resume=end > 3,
                quiet=True,
            )
    cut = Toy()
    resumed = train(
        config, cut, batches, tmp_path / "cut", evaluate=evaluate, resume=True, quiet=True
    )
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    assert resumed["eval/noise"] == result["eval/noise"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name]), name


def test_the_module_ends_with_ema_weights(tmp_path):
    module = Toy()
    train(make_config(), module, batches, tmp_path, quiet=True)
    for name, value in newest(tmp_path).tensors["ema"].items():
        assert torch.equal(module.state_dict()[name], value)
    assert not torch.equal(newest(tmp_path).tensors["module"]["net.0.weight"], value)


def test_ema_is_the_average_that_diffusers_defines(tmp_path):
    """By hand: decay (1 + n) / (10 + n) up to 0.9, after every update."""
    seen = []

    class Watched(Toy):
        def forward(self, batch, generator):
            seen.append(self.net[0].bias.detach().clone())
            return super().forward(batch, generator)

    train(make_config(max_steps=6), Watched(), batches, tmp_path, quiet=True)
    checkpoint = newest(tmp_path)
    weights = [*seen[1:], checkpoint.tensors["module"]["net.0.bias"]]
    average = weights[0]
    for n, weight in enumerate(weights[1:], start=1):
        decay = min((1 + n) / (10 + n), 0.9)
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(checkpoint.tensors["ema"]["net.0.bias"], average)


def test_resume_after_completion_does_nothing(tmp_path):
    first = Toy()
    result = train(make_config(), first, batches, tmp_path, quiet=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = Toy()
    again = train(make_config(), second, until(0), tmp_path, resume=True, quiet=True)
    assert again == result
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert torch.equal(first.net[0].weight, second.net[0].weight)


def test_resume_can_go_further(tmp_path):
    train(
        make_config(lr_schedule="constant_with_warmup"), Toy(), batches, tmp_path / "a", quiet=True
    )
    longer = make_config(lr_schedule="constant_with_warmup", max_steps=30)
    train(longer, Toy(), batches, tmp_path / "a", resume=True, quiet=True)
    train(longer, Toy(), batches, tmp_path / "b", quiet=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_resume_before_the_first_checkpoint_starts_again(tmp_path):
    with pytest.raises(Crashed):
        train(make_config(), Toy(), until(3), tmp_path / "a", quiet=True)
    train(make_config(), Toy(), batches, tmp_path / "a", resume=True, quiet=True)
    train(make_config(), Toy(), batches, tmp_path / "b", quiet=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_resume_passes_over_a_damaged_checkpoint(tmp_path):
    for name in "ab":
        train(make_config(), Toy(), batches, tmp_path / name, quiet=True)
    (tmp_path / "a" / "checkpoints" / "step-00000020" / "ema.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"step-00000020 is damaged: ema.safetensors is missing"):
        train(make_config(), Toy(), batches, tmp_path / "a", resume=True, quiet=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_metrics_have_each_step_once(tmp_path):
    config = make_config()
    with pytest.raises(Crashed):
        train(config, Toy(), until(14), tmp_path, quiet=True)
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 12]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "lo')  # a process killed in the middle of a line
    train(config, Toy(), batches, tmp_path, resume=True, quiet=True)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [4, 8, 12, 16, 20]
    wanted = {"step", "loss", "rmse", "lr", "grad_norm", "steps_per_second", "skipped"}
    assert set(json.loads(text.splitlines()[0])) == wanted


def test_a_crash_after_a_line_counts_no_step_twice(tmp_path):
    config = make_config(max_steps=14, checkpoint_every=4, log_every=4)
    with pytest.raises(Crashed):
        train(config, Toy(), until(9), tmp_path / "cut", quiet=True)  # step 8 is saved and told
    train(config, Toy(), batches, tmp_path / "cut", resume=True, quiet=True)
    train(config, Toy(), batches, tmp_path / "whole", quiet=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_failing_evaluation_is_repeated_on_resume(tmp_path):
    def fails(module, step):
        raise Crashed

    with pytest.raises(Crashed):
        train(make_config(), Toy(), batches, tmp_path, evaluate=fails, quiet=True)
    assert newest(tmp_path).step == 20
    result = train(
        make_config(),
        Toy(),
        until(0),
        tmp_path,
        evaluate=lambda module, step: {"score": step},
        resume=True,
        quiet=True,
    )
    assert result["eval/score"] == 20
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 12, 16, 20]


def test_evaluation_sees_ema_weights_in_eval_mode_and_restores(tmp_path):
    module, seen = Toy(), {}
    module.net[1].eval()

    def evaluate(module, step):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        seen[step] = module.net[0].weight.clone()
        return {"score": 1.0}

    train(make_config(evaluate_every=5), module, batches, tmp_path, evaluate=evaluate, quiet=True)
    assert list(seen) == [5, 10, 15, 20]
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "step-00000015")
    assert torch.equal(seen[15], checkpoint.tensors["ema"]["net.0.weight"])
    assert not torch.equal(seen[15], checkpoint.tensors["module"]["net.0.weight"])
    assert module.net[2].training
    assert not module.net[1].training


class Poisoned(Toy):
    """The loss is NaN or infinite, or only the gradient is, at chosen steps."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, batch, generator):
        out = super().forward(batch, generator)
        step = int(self.steps) - 1
        if step in self.bad:
            # sqrt at 0: a finite loss whose gradient is not.
            hidden = (self.net[0].weight.square().sum() * 0).sqrt() * 0
            out["loss"] = hidden if step % 3 == 0 else out["loss"] * (math.nan, math.inf)[step % 2]
        return out


def test_non_finite_steps_touch_nothing(tmp_path):
    config = make_config(checkpoint_every=1, keep_checkpoints=20)
    bad = {3, 4, 9, 10, 11}
    result = train(config, Poisoned(bad), batches, tmp_path, quiet=True)
    assert result["skipped"] == len(bad)
    saved = {step: load_checkpoint(path) for step, path in list_checkpoints(tmp_path)}
    for step in range(1, 20):
        before, after = saved[step], saved[step + 1]
        for group in ("module", "ema", "optimizer"):
            for name, tensor in after.tensors[group].items():
                assert torch.isfinite(tensor).all(), (step, group, name)
                if name != "steps":
                    same = torch.equal(tensor, before.tensors[group][name])
                    assert same or step not in bad, (step, group, name)
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path))
    assert saved[20].state["progress"]["updates"] == 20 - len(bad)


def test_too_many_non_finite_steps_abort(tmp_path):
    config = make_config(max_steps=60)
    with pytest.raises(UserError, match=r"Step 33: .* 21 steps in a row.*learning-rate"):
        train(config, Poisoned(range(12, 60)), batches, tmp_path, quiet=True)
    assert newest(tmp_path).step == 30
    assert all(torch.isfinite(t).all() for t in newest(tmp_path).tensors["ema"].values())


def test_world_size_guard(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes .* sees 1.*--multi_gpu --num_processes 2"):
        train(make_config(), Toy(), batches, tmp_path, accelerator=Accelerator(cpu=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signals_save_and_name_the_way_back(tmp_path, capsys, number, error):
    before = signal.getsignal(number)

    def interrupting(step):
        if step == 6:
            os.kill(os.getpid(), number)
        return batches(step)

    with pytest.raises(error) as raised:
        train(make_config(), Toy(), interrupting, tmp_path / "a", quiet=True)
    assert signal.getsignal(number) is before
    assert f"lmdiff train --resume {tmp_path / 'a'}" in capsys.readouterr().err
    if error is SystemExit:
        assert raised.value.code == 128 + signal.SIGTERM
    assert newest(tmp_path / "a").step == 7
    train(make_config(), Toy(), batches, tmp_path / "a", resume=True, quiet=True)
    train(make_config(), Toy(), batches, tmp_path / "b", quiet=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_a_second_interrupt_stops_at_once(tmp_path):
    def interrupting(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")
        return batches(step)

    with pytest.raises(KeyboardInterrupt, match="at once"):
        train(make_config(), Toy(), interrupting, tmp_path, quiet=True)
    assert newest(tmp_path).step == 5


def test_an_existing_run_is_not_trained_over(tmp_path):
    train(make_config(), Toy(), batches, tmp_path, quiet=True)
    with pytest.raises(UserError, match=r"--resume .*another --output"):
        train(make_config(), Toy(), batches, tmp_path, quiet=True)
    with pytest.raises(UserError, match="There is no run"):
        train(make_config(), Toy(), batches, tmp_path / "none", resume=True, quiet=True)


def test_resume_refuses_other_settings_and_networks(tmp_path):
    train(make_config(), Toy(), batches, tmp_path, quiet=True)
    with pytest.raises(UserError, match=r"learning_rate \(was 0.01, now 0.5\)"):
        train(make_config(learning_rate=0.5), Toy(), batches, tmp_path, resume=True)
    allowed = make_config(log_every=5, checkpoint_every=7, keep_checkpoints=3, evaluate_every=2)
    train(allowed, Toy(), batches, tmp_path, resume=True, quiet=True)
    with pytest.warns(UserWarning, match="another batch size"):
        train(make_config(batch_size=3), Toy(), batches, tmp_path, resume=True, quiet=True)
    other = Toy()
    other.net[3] = nn.Linear(16, 3)
    with pytest.raises(UserError, match=r"'net.3.weight' is \(2, 16\) .*, \(3, 16\)"):
        train(make_config(), other, batches, tmp_path, resume=True)
    smaller = Toy()
    smaller.net[3] = nn.Identity()
    with pytest.raises(UserError, match=r"also has 'net.3.bias'"):
        train(make_config(), smaller, batches, tmp_path, resume=True)


def test_frozen_weights_are_not_saved_but_recognised(tmp_path):
    def frozen(scale):
        module = Toy()
        module.net[0].requires_grad_(False).weight.data.mul_(scale)
        return module

    train(make_config(), frozen(1), batches, tmp_path, quiet=True)
    assert set(newest(tmp_path).tensors["module"]) == {"net.3.weight", "net.3.bias", "steps"}
    with pytest.raises(UserError, match="other frozen weights"):
        train(make_config(max_steps=30), frozen(2), batches, tmp_path, resume=True)


def test_nothing_to_train(tmp_path):
    with pytest.raises(UserError, match="Nothing to train"):
        train(make_config(), Toy().requires_grad_(False), batches, tmp_path, quiet=True)


@pytest.mark.parametrize("name", ["max_steps", "batch_size", "log_every", "keep_checkpoints"])
def test_senseless_settings(tmp_path, name):
    with pytest.raises(UserError, match=f"training.{name} = 0"):
        train(make_config(**{name: 0}), Toy(), batches, tmp_path)


def test_negative_seed(tmp_path):
    with pytest.raises(UserError, match=r"training\.seed = -1: must be at least 0"):
        train(make_config(seed=-1), Toy(), batches, tmp_path, quiet=True)


def test_compiled_checkpoints_have_the_same_names(tmp_path, monkeypatch):
    # The eager backend needs no C compiler; the wrapper, and its names, are the same.
    eager = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(run_module.torch, "compile", eager)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/c++")
    module = Toy()
    names = list(module.state_dict())
    train(make_config(compile=True), module, batches, tmp_path / "a", quiet=True)
    train(make_config(), Toy(), batches, tmp_path / "b", quiet=True)
    assert list(module.state_dict()) == names
    compiled, plain = newest(tmp_path / "a"), newest(tmp_path / "b")
    for group, tensors in plain.tensors.items():
        assert tensors.keys() == compiled.tensors[group].keys()
        assert not any("_orig_mod" in name for name in tensors)


def test_compile_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match="needs a C"):
        train(make_config(compile=True), Toy(), batches, tmp_path)


def test_what_cannot_be_sharded_is_refused(tmp_path):
    with pytest.raises(UserError, match="one forward pass of the whole module"):
        train(make_config(shard=True), Toy(), batches, tmp_path)
    toy = Toy()
    toy.shardable = True
    with pytest.raises(UserError, match="evaluate-every 0"):
        train(make_config(shard=True), toy, batches, tmp_path, evaluate=lambda module, step: {})
    with pytest.raises(UserError, match="do not go together"):
        train(make_config(shard=True, compile=True), toy, batches, tmp_path)
    assert not any(tmp_path.iterdir())
    # One process has every part anyway.
    train(make_config(shard=True, max_steps=2), toy, batches, tmp_path, quiet=True)


def test_bf16_computes_in_bf16_and_keeps_fp32(tmp_path):
    seen = set()

    class Watched(Toy):
        def forward(self, batch, generator):
            seen.add(self.net[0](batch[0]).dtype)
            return super().forward(batch, generator)

    module = Watched()
    train(make_config(mixed_precision="bf16"), module, batches, tmp_path, quiet=True)
    assert seen == {torch.bfloat16}
    floats = newest(tmp_path).tensors
    assert all(t.dtype == torch.float32 for t in [*floats["module"].values()])
    assert module.net[0](torch.zeros(1, 4)).dtype == torch.float32


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "no")])
def test_auto_precision_is_settled_once_and_written_down(tmp_path, monkeypatch, fast, precision):
    monkeypatch.setattr("lmdiff.training.precision.fast_bf16", lambda device: fast)
    seen = set()

    class Watched(Toy):
        def forward(self, batch, generator):
            seen.add(self.net[0](batch[0]).dtype)
            return super().forward(batch, generator)

    train(make_config(mixed_precision="auto"), Watched(), batches, tmp_path, quiet=True)
    assert seen == {torch.bfloat16 if fast else torch.float32}
    assert f'"mixed_precision": "{precision}"' in (tmp_path / "run.json").read_text()


def test_accumulated_batches_are_one_batch(tmp_path):
    """Two batches of 8 accumulated are one of 16, for a module without noise."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(4, 2)

        def forward(self, batch, generator):
            return {"loss": (self.net(batch[0]) - batch[1]).square().mean()}

    def joined(step):
        pairs = [batches(2 * step), batches(2 * step + 1)]
        return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))

    one, two = Plain(), Plain()
    train(make_config(), one, joined, tmp_path / "one", quiet=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    train(make_config(), two, batches, tmp_path / "two", accelerator=accelerator, quiet=True)
    torch.testing.assert_close(one.net.weight, two.net.weight)
    assert newest(tmp_path / "two").state["progress"]["updates"] == 20


def test_tensorboard_and_missing_trackers(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    train(make_config(tracker="tensorboard"), Toy(), batches, tmp_path, quiet=True)
    assert list(tmp_path.rglob("events.out.tfevents*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install wandb"):
        train(make_config(tracker="wandb"), Toy(), batches, tmp_path / "b")


def test_run_json(tmp_path):
    extras = {"agent": "toy", "shape": (2, 3)}
    train(make_config(), Toy(), batches, tmp_path, manifest=extras, quiet=True)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["config"] == dataclasses.asdict(make_config())
    assert run["manifest"] == {"agent": "toy", "shape": [2, 3]}
    assert run["versions"]["torch"] == torch.__version__
    assert run["world_size"] == 1
    assert run["machine"]["threads"] == 1
    train(make_config(max_steps=24), Toy(), batches, tmp_path, resume=True, quiet=True)
    again = json.loads((tmp_path / "run.json").read_text())
    assert again["started"] == run["started"]
    assert len(again["resumed"]) == 1
    with pytest.raises(UserError, match="plain JSON"):
        train(make_config(), Toy(), batches, tmp_path / "b", manifest={"x": object()})


def test_a_read_only_directory_is_explained(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmdiff.training.checkpoints.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        train(make_config(), Toy(), batches, tmp_path, quiet=True)


def test_no_warnings_in_a_plain_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make_config(), Toy(), batches, tmp_path, quiet=True)


def test_seeds_differ_by_seed_step_and_rank():
    seeds = {derived_seed(s, t, r) for s in range(4) for t in range(50) for r in range(4)}
    assert len(seeds) == 800
    first = torch.randn(5, generator=noise_generator(1, 2, 3))
    assert torch.equal(first, torch.randn(5, generator=noise_generator(1, 2, 3, "cpu")))


def test_no_average_is_the_present_weights_to_the_last_bit(tmp_path):
    module = Toy()
    config = make_config(ema_decay=0.0, learning_rate=0.3)
    seen = []

    def evaluate(module, step):
        seen.append([p.clone() for p in module.parameters()])
        return {}

    train(config, module, batches, tmp_path, evaluate=evaluate, quiet=True)
    saved = newest(tmp_path).tensors
    for name, tensor in saved["ema"].items():
        assert torch.equal(tensor, saved["module"][name])
    for one, other in zip(seen[-1], module.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("every", [2, 5])
def test_checkpoints_and_stops_wait_for_the_round_to_end(tmp_path, every):
    config = make_config(max_steps=12, checkpoint_every=every, keep_checkpoints=9)
    train(config, Toy(), batches, tmp_path / "whole", round_steps=3, quiet=True)
    steps = [step for step, _ in list_checkpoints(tmp_path / "whole")]
    assert sorted(steps) == ([3, 6, 9, 12] if every == 2 else [6, 12])

    def interrupted(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batches(step)

    with pytest.raises(KeyboardInterrupt):
        train(config, Toy(), interrupted, tmp_path / "cut", round_steps=3, quiet=True)
    assert newest(tmp_path / "cut").step == 6
    train(config, Toy(), batches, tmp_path / "cut", round_steps=3, resume=True, quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    config = make_config(max_steps=13)
    with pytest.raises(UserError, match="choose 12"):
        train(config, Toy(), batches, tmp_path / "odd", round_steps=3, quiet=True)


def test_a_watcher_sees_all_adds_figures_and_ends_the_run(tmp_path):
    events = []

    def watch(event, step, figures):
        events.append((event, step))
        if event == "log":
            figures["tokens"] = 10 * step
        return event == "step" and step == 7

    config = make_config(checkpoint_every=5, log_every=4)
    last = train(config, Toy(), batches, tmp_path, watch=watch, round_steps=2, quiet=True)
    assert [e for e in events if e[0] != "step"] == [
        ("log", 4),
        ("save", 6),
        ("save", 8),
        ("log", 8),
    ]
    assert (last["step"], last["tokens"]) == (8, 80)
    assert newest(tmp_path).step == 8
