"""The RL trainer of text, on a model that learns a trivial reward in seconds."""

import copy
import itertools
import json
import math
import os
import signal

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import TrainerCallback

from lmdiff.algos.likelihood import ESTIMATORS
from lmdiff.algos.policy_loss import OBJECTIVES, check_policy, policy_loss
from lmdiff.denoisers.text_models import bert_model
from lmdiff.errors import UserError
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.rewards import RewardFailure
from lmdiff.text.rl_config import TextRLConfig
from lmdiff.text.tokenizer import char_tokenizer
from lmdiff.training.checkpoints import latest_checkpoint, list_checkpoints
from lmdiff.training.metrics import read_metrics
from lmdiff.training.text.rl import TextRLTrainer
from lmdiff.training.text.rl_logs import Signs
from lmdiff.training.text.rl_module import policy_config

L = 6
ROWS = [{"prompt": text, "answer": text[0]} for text in ("12", "3", "31", "2213")]
LORA = LoraConfig(r=4, target_modules=["query", "value"])


def share_of_threes(prompts, completions, **columns):
    return [text.count("3") / L for text in completions]


def make_pipe(seed=0):
    torch.manual_seed(seed)
    tokenizer = char_tokenizer("0123")
    model = bert_model(len(tokenizer), tokenizer.pad_token_id, 32, hidden=32, layers=1, heads=2)
    return TextPipeline(model, tokenizer)


def make_args(tmp_path, **settings):
    defaults = {
        "output_dir": str(tmp_path / "run"),
        "max_completion_length": L,
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "samples": 2,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "save_steps": 2,
    }
    return TextRLConfig(**(defaults | settings))


def make_trainer(tmp_path, rewards=share_of_threes, extras=None, **settings):
    args = make_args(tmp_path, **settings)
    return TextRLTrainer(make_pipe(), rewards, args, ROWS, **(extras or {}))


def lines(folder):
    entries = read_metrics(folder / "run" / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in entries]


def gradients(module):
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return found


def test_the_reward_rises(tmp_path):
    settings = {"learning_rate": 5e-3, "per_device_train_batch_size": 64}
    trainer = make_trainer(tmp_path, max_steps=16, **settings)
    before = trainer.evaluate(ROWS)["reward"]
    trainer.train(quiet=True)
    found = lines(tmp_path)
    assert found[0]["reward"] < 0.4 < 0.8 < found[-1]["reward"]
    assert trainer.evaluate(ROWS)["reward"] > max(0.9, before)


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_iterations": 2, "gradient_accumulation_steps": 2, "objective": "sequence-ratio"}],
)
def test_a_resumed_run_is_bit_identical(tmp_path, settings):
    make_trainer(tmp_path / "whole", max_steps=6, **settings).train(quiet=True)

    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    crashing = {"callbacks": [Crash()]}
    cut = make_trainer(tmp_path / "cut", max_steps=6, extras=crashing, **settings)
    with pytest.raises(KeyboardInterrupt):
        cut.train(quiet=True)
    make_trainer(tmp_path / "cut", max_steps=6, **settings).train(True, quiet=True)
    whole, cut = (latest_checkpoint(tmp_path / name / "run") for name in ("whole", "cut"))
    assert whole.state == cut.state
    assert whole.tensors["module"]["num_tokens"] > 0
    for group, tensors in whole.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, cut.tensors[group][name]), f"{group} {name}"
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    texts = [(tmp_path / name / "run/completions.jsonl").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]


def test_ctrl_c_waits_for_the_round_and_keeps_a_checkpoint(tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    trainer = make_trainer(
        tmp_path, max_steps=9, num_iterations=3, extras={"callbacks": [Interrupt()]}
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train(quiet=True)
    assert [step for step, _ in list_checkpoints(tmp_path / "run")] == [3]


def allowed_pairs():
    for estimator, objective in itertools.product(ESTIMATORS, OBJECTIVES):
        samples = 1 if estimator == "trace" else 2
        settings = {"estimator": estimator, "objective": objective, "samples": samples}
        try:
            check_policy(policy_config(TextRLConfig(**settings)))
        except UserError:
            continue
        yield pytest.param(settings, id=f"{estimator}-{objective}")


@pytest.mark.parametrize("settings", list(allowed_pairs()))
def test_every_pair_has_the_gradient_of_one_graph(tmp_path, settings):
    iterations = 1 if settings["objective"] == "preference" else 2
    settings = settings | {"beta": 0.1, "num_iterations": iterations, "max_steps": 2}
    trainer = make_trainer(tmp_path, **settings)
    module, generator = trainer.module, torch.Generator()
    # Another policy than the reference, and for the second update than the one that sampled.
    torch.nn.init.normal_(module.policy.model.cls.predictions.bias, std=0.3)
    batch = trainer.batch(0)
    if iterations == 2:
        torch.nn.init.normal_(module.policy.model.cls.predictions.bias, std=0.3)
        batch = trainer.batch(1)
    module(batch, generator)["loss"].backward()
    kept_nothing = gradients(module)
    # The loss again, in one graph and by the formula.
    table = torch.stack(
        [module.policy.log_probs(batch.x, batch.draw, s) for s in range(len(batch.draw))]
    )
    reference = torch.stack(
        [module.reference.log_probs(batch.x, batch.draw, s) for s in range(len(batch.draw))]
    )
    given = batch.advantages, batch.x.completion_mask, batch.old, reference.detach()
    policy_loss(module.config, table, batch.draw, *given).loss.mean().backward()
    assert len(kept_nothing) > 5
    assert max(g.abs().max() for g in kept_nothing) > 1e-5
    for one, other in zip(kept_nothing, gradients(module), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_first_update_is_on_policy_and_later_ones_are_not(tmp_path):
    trainer = make_trainer(tmp_path, num_iterations=2, objective="sequence-ratio", epsilon=0.0)
    first, second = trainer.batch(0), trainer.batch(1)
    assert first.old is None
    assert second.x is first.x
    assert not torch.equal(second.draw.masks, first.draw.masks)
    assert torch.equal(second.old, trainer.module.table(second.x, second.draw))
    out = trainer.module(first, torch.Generator())
    assert out["ratio/mean"] == out["ratio/max"] == 1
    torch.nn.init.normal_(trainer.module.policy.model.cls.predictions.bias, std=0.3)
    out = trainer.module(second, torch.Generator())
    assert out["ratio/max"] > 1.01
    assert out["clip_ratio/region_mean"] > 0


def test_places_that_were_never_written_stay_masked_and_do_not_count(tmp_path):
    trainer = make_trainer(tmp_path, num_inference_steps=6, order="left_to_right")
    bias = trainer.module.policy.model.cls.predictions.bias
    bias.data[trainer.pipe.tokenizer.eos_token_id] = 1.0  # texts that end early
    rollout = trainer.rollouts(0)
    mask_id, end = trainer.pipe.spec.mask_id, trainer.pipe.tokenizer.eos_token_id
    open_places = rollout.x.ids == mask_id
    assert open_places.any()
    assert not (open_places & rollout.x.completion_mask).any()
    ids = rollout.x.ids[:, -L:]
    for row in ids:
        written = row[row != mask_id].tolist()
        # The row was left when its end was written.
        assert (end in written) == (end in written[-1:])
        assert len(written) == L or written[-1] == end
    # Left to right: a token's step is its place.
    steps = rollout.step_map[:, -L:][rollout.x.completion_mask[:, -L:]]
    places = torch.arange(L).expand(len(ids), L)[rollout.x.completion_mask[:, -L:]]
    assert torch.equal(steps, places)


def test_a_threshold_writes_sure_tokens_together(tmp_path):
    trainer = make_trainer(tmp_path, num_inference_steps=6)
    at_once = make_trainer(tmp_path, num_inference_steps=6, threshold=0.0)
    assert trainer.rollouts(0).figures["tokens_per_step"] == 1
    assert at_once.rollouts(0).figures["tokens_per_step"] == L


def test_attention_is_plain_where_the_fused_one_is_slow(tmp_path):
    for bf16, name in ((False, "sdpa"), (True, "eager")):
        trainer = make_trainer(tmp_path, bf16=bf16)
        assert trainer.pipe.model.config._attn_implementation == name


def test_lora_trains_adapters_compares_with_none_and_saves_a_whole_model(tmp_path):
    trainer = make_trainer(tmp_path, beta=0.1, learning_rate=1e-2, extras={"peft_config": LORA})
    base = copy.deepcopy(trainer.pipe.model.get_base_model().state_dict())
    assert trainer.module.reference is None
    trainer.train(quiet=True)
    found = lines(tmp_path)
    assert found[-1]["kl"] > 0
    after = trainer.pipe.model.get_base_model().state_dict()
    assert all(torch.equal(base[name], after[name]) for name in base if "lora" not in name)
    # The reference is the model without adapters: the initial one.
    batch = trainer.batch(0)
    reference = trainer.module._reference_table(batch.x, batch.draw)
    fresh = make_trainer(tmp_path).module.table(batch.x, batch.draw)
    torch.testing.assert_close(reference, fresh)
    trainer.save_model(tmp_path / "agent")
    loaded = TextPipeline.from_pretrained(tmp_path / "agent")
    assert not isinstance(loaded.model, PeftModel)
    assert (tmp_path / "agent/adapter/adapter_model.safetensors").is_file()
    prompts = [row["prompt"] for row in ROWS]
    settings = {"generation_length": L}
    assert loaded(prompts, **settings).text == trainer.pipe(prompts, **settings).text


KEYS = {
    *("reward", "reward_std", "frac_reward_zero_std", "loss", "lr", "grad_norm", "num_tokens"),
    *("rewards/share_of_threes/mean", "rewards/share_of_threes/std", "kl", "entropy"),
    *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "eval/reward"),
    *("completions/mean_length", "completions/min_length", "completions/max_length"),
    "completions/clipped_ratio",
}


def test_what_is_logged_and_shown(tmp_path, capsys):
    class Seen(TrainerCallback):
        events = []  # noqa: RUF012

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.events.append(("log", state.global_step, logs["reward"]))

        def on_save(self, args, state, control, **kwargs):
            self.events.append(("save", state.global_step))

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    trainer = make_trainer(
        tmp_path,
        max_steps=50,
        eval_steps=4,
        beta=0.01,
        log_completions=True,
        num_completions_to_print=3,
        extras={"callbacks": [Seen()], "eval_dataset": ROWS},
    )
    trainer.train(quiet=True)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [2, 4, 5]
    assert set(found[1]) >= KEYS
    saves_and_logs = [("save", 2), ("log", 2), ("save", 4), ("log", 4), ("save", 5), ("log", 5)]
    assert [event[:2] for event in Seen.events] == saves_and_logs
    # Every prompt comes four times a step: 3 + 2 + 3 + 5 tokens with [SEP].
    lengths = [16 * line["completions/mean_length"] for line in found]
    tokens = [2 * (52 + lengths[0]), 2 * (52 + lengths[1]), 52 + lengths[2]]
    assert [line["num_tokens"] for line in found] == [
        pytest.approx(sum(tokens[: i + 1])) for i in range(3)
    ]
    assert found[0]["entropy"] == pytest.approx(math.log(8), abs=0.5)
    shown = [json.loads(t) for t in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    assert len(shown) == 9
    assert shown[0]["rewards"]["share_of_threes"] == shown[0]["completion"].count("3") / L
    assert "Step 4" in capsys.readouterr().out


def test_failing_rewards_are_dropped_and_counted_or_stop_the_run(tmp_path):
    def moody(prompts, completions, answer, **columns):
        return [math.nan if a == "1" else 0.5 for a in answer]

    def never(prompts, completions, **columns):
        while True:
            pass

    def none(prompts, completions, **columns):
        return [None if p == "12" else 0.5 for p in prompts]

    settings = {"on_reward_error": "drop", "reward_time_limit": 0.05, "shuffle_dataset": False}
    trainer = make_trainer(tmp_path, [moody, none], **settings)
    with pytest.warns(UserWarning, match="left out"):
        rollout = trainer.rollouts(0)
    # The prompt 12 has the answer 1: its four samples are left out.
    assert rollout.known.tolist() == [0] * 4 + [1] * 12
    assert rollout.figures["rewards/moody/dropped"] == 4
    assert rollout.advantages[:4].tolist() == [0] * 4
    trainer = make_trainer(tmp_path, never, max_steps=1, **settings)
    with pytest.warns(UserWarning, match="limit"):
        trainer.train(quiet=True)
    assert lines(tmp_path)[-1]["rewards/never/dropped"] == 16
    assert lines(tmp_path)[-1]["loss"] == 0
    assert "reward" not in lines(tmp_path)[-1]


def test_a_reward_that_fails_late_costs_no_checkpoint(tmp_path):
    count = itertools.count()

    def late(prompts, completions, **columns):
        if next(count) == 3:
            raise ValueError("out of luck")
        return share_of_threes(prompts, completions)

    with pytest.raises(RewardFailure, match="out of luck"):
        make_trainer(tmp_path, late).train(quiet=True)
    assert latest_checkpoint(tmp_path / "run").step == 2
    make_trainer(tmp_path, late).train(True, quiet=True)
    assert lines(tmp_path)[-1]["step"] == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"objective": "token-ratio"}, "token-ratio cannot use elbo"),
        ({"per_device_train_batch_size": 10}, "whole groups"),
        ({"num_generations": 1}, "two are the least"),
        ({"num_iterations": 0}, "num_iterations = 0: must be at least 1"),
        ({"num_iterations": 3}, "choose 3"),
        ({"temperature": 0.0}, "without chance"),
        ({"delta": 1.1}, "above 1 \\+ epsilon_high"),
        ({"objective": "preference", "num_iterations": 2}, "num_iterations = 1"),
        ({"block_length": 7}, "choose 1 to 6"),
        ({"num_inference_steps": 7}, "at most one a token"),
        ({"reward_weights": (1.0, 2.0)}, "one for each"),
        ({"max_completion_length": 0}, "max_completion_length = 0: must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: must be above 0"),
    ],
)
def test_bad_combinations_are_refused(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        make_trainer(tmp_path, **settings)


def test_models_and_data_may_come_as_files(tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "sft" / "agent")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    args = make_args(tmp_path)
    by_path = TextRLTrainer(tmp_path / "sft", share_of_threes, args, rows)
    by_model = TextRLTrainer(
        pipe.model, share_of_threes, args, ROWS, processing_class=pipe.tokenizer
    )
    one, other = by_path.rollouts(0), by_model.rollouts(0)
    assert one.completions == other.completions
    assert one.prompts == other.prompts
    with pytest.raises(UserError, match="processing_class"):
        TextRLTrainer(pipe.model, share_of_threes, args, ROWS)
    with pytest.raises(UserError, match="train_dataset"):
        TextRLTrainer(pipe, share_of_threes, args)
    with pytest.raises(UserError, match="own folder"):
        by_path.train(str(tmp_path / "elsewhere"))


def test_a_run_is_not_resumed_as_another(tmp_path):
    make_trainer(tmp_path, max_steps=2).train(quiet=True)
    with pytest.raises(UserError, match="other settings of objective, temperature"):
        make_trainer(tmp_path, objective="wd1", temperature=0.5).train(True, quiet=True)
    shown = (tmp_path / "run/completions.jsonl").read_text()
    with pytest.raises(UserError, match="holds a run already"):
        make_trainer(tmp_path, max_steps=2).train(quiet=True)
    assert (tmp_path / "run/completions.jsonl").read_text() == shown != ""
    make_trainer(tmp_path, max_steps=3, save_steps=1).train(True, quiet=True)
    assert lines(tmp_path)[-1]["step"] == 3


def test_prompts_come_once_an_epoch_in_an_order_of_their_own(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=4)
    epochs = [[trainer.rollouts.order(4 * epoch + i, 1)[0] for i in range(4)] for epoch in range(6)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert trainer.rollouts.order(2, 8) == [*epochs[0][2:], *epochs[1], *epochs[2][:2]]


def test_careless_settings_are_warned_of_once(tmp_path, recwarn):
    signs = Signs(make_args(tmp_path, learning_rate=5e-5))
    signs.look({"tokens_per_step": 4.0, "ratio/max": 1.2, "frac_reward_zero_std": 0.5})
    Signs(make_args(tmp_path, learning_rate=2e-4)).look({"tokens_per_step": 1.0})
    sure = make_args(tmp_path, learning_rate=2e-4, threshold=0.9)
    Signs(sure).look({"tokens_per_step": 4.0})
    # Where nothing is compared, groups that are solved throughout teach, too.
    Signs(make_args(tmp_path, baseline="none")).look({"frac_reward_zero_std": 1.0})
    assert not recwarn.list
    both = Signs(make_args(tmp_path, learning_rate=2e-4))
    for _ in range(2):
        both.look({"tokens_per_step": 4.0, "ratio/max": 13.0, "frac_reward_zero_std": 1.0})
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == 3
    assert "num_inference_steps to 6" in told[0]
    assert "num_iterations = 1" in told[1]
    assert "100% of the groups" in told[2]


def test_a_careless_run_warns(tmp_path):
    trainer = make_trainer(tmp_path, num_inference_steps=2, learning_rate=1e-2, max_steps=2)
    with pytest.warns(UserWarning, match="3.0 tokens a denoising step"):
        trainer.train(quiet=True)
