import json
import math

import pytest
import torch
from diffusers import BlockRefinementScheduler

from lmdiff.denoisers.masked_text import MaskedTextDenoiser, TextBatch
from lmdiff.denoisers.text_models import (
    TextModelSpec,
    bert_model,
    bert_spec,
    llama_model,
    logits_at,
)
from lmdiff.errors import UserError
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.pipelines.text_sampling import (
    SamplingSettings,
    choose,
    draw_tokens,
    row_generators,
    sample_tokens,
)
from lmdiff.text.tokenizer import char_tokenizer, encode_completion

PROMPTS = ["12", "3", "1122331", "2131"]
ORDERS = ["confidence", "entropy", "random", "left_to_right"]
L = 10


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    tokenizer = char_tokenizer("0123")
    model = bert_model(len(tokenizer), tokenizer.pad_token_id, 32, hidden=32, layers=2, heads=2)
    # Larger weights than fresh ones, so that texts depend on their prompts and orders differ.
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5 if "embeddings" in name else 0.3)
    # The end is likely only where it is meant to be.
    model.cls.predictions.bias.data[tokenizer.eos_token_id] = -20
    return TextPipeline(model.eval(), tokenizer)


class Counted:
    """Logits by a rule, counting rows; the sequence's last `L` places are the completion."""

    def __init__(self, rule, vocabulary=6):
        self.rule, self.vocabulary, self.rows, self.seen = rule, vocabulary, [], []

    def __call__(self, ids, mask, where, rows):
        self.rows.append(len(ids))
        self.seen.append(ids.clone())
        return self.rule(ids)[where]


def rule_of(table):
    return lambda ids: table[: ids.shape[1]].expand(len(ids), -1, -1)


def sample(logits, settings, batch=1, prompt=2, **options):
    ids = torch.full((batch, prompt), 3)
    options = {"mask_id": 0} | options
    return sample_tokens(logits, ids, torch.ones_like(ids).bool(), settings, **options)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("threshold", [None, 0.7])
def test_batch_equals_single(pipe, order, temperature, block_length, threshold):
    settings = {
        "generation_length": L,
        "num_inference_steps": 7,
        "block_length": block_length,
        "order": order,
        "temperature": temperature,
        "threshold": threshold,
    }
    batch = pipe(PROMPTS, generator=[seeded(i) for i in range(4)], **settings)
    assert batch.ids.shape == batch.step_map.shape == (4, L)
    for i, prompt in enumerate(PROMPTS):
        single = pipe(prompt, generator=[seeded(i)], **settings)
        assert torch.equal(batch.ids[i], single.ids[0])
        assert torch.equal(batch.step_map[i], single.step_map[0])
        assert batch.text[i] == single.text[0]
    assert (batch.ids != pipe.spec.mask_id).all()
    assert (batch.ids != pipe.spec.pad_id).all()
    if block_length:  # blocks start at the completion and come one after the other
        steps = [batch.step_map[:, a:b] for a, b in ((0, 4), (4, 8), (8, 10))]
        assert steps[0].max() < steps[1].min()
        assert steps[1].max() < steps[2].min()
        assert steps[2].max() < 7


def test_texts_differ_with_prompts_and_seeds(pipe):
    greedy = pipe(PROMPTS, generation_length=L)
    assert len(set(greedy.text)) > 1
    drawn = [
        pipe(PROMPTS, generation_length=L, temperature=1.0, generator=seeded(seed)).text
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(pipe(["12"] * 8, generation_length=L, temperature=1.0).text)) > 1


def test_greedy_is_deterministic_and_touches_no_global_generator(pipe):
    before = torch.get_rng_state()
    first, second = (pipe(PROMPTS, generation_length=L) for _ in range(2))
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(before, torch.get_rng_state())


def test_the_step_map_replays_what_the_model_saw(pipe):
    ids, mask = pipe.encode(PROMPTS)
    seen = []

    def logits(ids, mask, where, rows):
        seen.append(ids[:, -L:].clone())
        return logits_at(pipe.model, pipe.spec, ids, mask, where)

    settings = SamplingSettings(L, num_inference_steps=4, order="entropy")
    result = sample_tokens(logits, ids, mask, settings, mask_id=pipe.spec.mask_id)
    assert len(seen) == 4
    for step, state in enumerate(seen):
        replayed = torch.where(result.step_map < step, result.ids, pipe.spec.mask_id)
        assert torch.equal(state, replayed)
    assert result.row_forwards == 4 * len(PROMPTS)


def test_later_blocks_are_seen_as_masks_and_the_schedule_is_even():
    logits = Counted(rule_of(torch.randn(12, 6, generator=seeded(0))))
    result = sample(logits, SamplingSettings(L, 5, block_length=4))
    assert all(ids.shape == (1, 12) for ids in logits.seen)
    masked = [int((ids == 0).sum()) for ids in logits.seen]
    assert masked == [10, 8, 6, 4, 2]
    assert (logits.seen[0][:, 2:] == 0).all()
    assert result.step_map[0].bincount().tolist() == [2, 2, 2, 2, 2]


def test_later_blocks_can_be_hidden():
    logits = Counted(rule_of(torch.randn(12, 6, generator=seeded(0))))
    sample(logits, SamplingSettings(L, 5, block_length=4, hide_later_blocks=True))
    assert [ids.shape[1] for ids in logits.seen] == [6, 6, 10, 10, 12]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_computing_only_what_is_asked_changes_no_text(pipe, temperature):
    """The head at masked places alone; and, with prefix attention, the prompt only once."""
    for attention in ("padding", "full4d", "prefix"):
        settings = {"generation_length": L, "block_length": 5, "temperature": temperature}
        plain, lean = (
            TextPipeline(pipe.model, pipe.tokenizer, attention=attention, head=head)
            for head in (None, bert_spec(pipe.model, 1).head)
        )
        first, second = (p(PROMPTS, generator=seeded(1), **settings) for p in (plain, lean))
        assert torch.equal(first.ids, second.ids)
        assert torch.equal(first.step_map, second.step_map)


def test_reused_prompts_give_the_text_of_the_whole_model(pipe):
    prefix = TextPipeline(pipe.model, pipe.tokenizer, attention="prefix")
    ids, mask = prefix.encode(PROMPTS)
    prompt = torch.arange(ids.shape[1] + L) < ids.shape[1]

    def logits(ids, mask, where, rows):
        return logits_at(prefix.model, prefix.spec, ids, mask, where, prompt.expand_as(mask))

    settings = SamplingSettings(L, num_inference_steps=7, block_length=4, threshold=0.5)
    whole = sample_tokens(logits, ids, mask, settings, mask_id=1, end_id=2, never=[0])
    reused = prefix(
        PROMPTS, generation_length=L, num_inference_steps=7, block_length=4, threshold=0.5
    )
    assert torch.equal(whole.ids, reused.ids)
    assert torch.equal(whole.step_map, reused.step_map)
    assert not torch.equal(pipe(PROMPTS, generation_length=L).ids, reused.ids)


@pytest.mark.parametrize("length", range(1, 12))
def test_every_split_into_blocks_and_steps_fills_all(length):
    for block in range(1, length + 1):
        blocks = SamplingSettings(length, block_length=block).blocks()
        for steps in range(len(blocks), length + 1):
            settings = SamplingSettings(length, steps, block)
            shares = [settings.steps_of(b) for b in blocks]
            assert sum(shares) == steps
            assert all(1 <= n <= b - a for n, (a, b) in zip(shares, blocks, strict=True))
            logits = Counted(rule_of(torch.zeros(length + 2, 6)))
            result = sample(logits, settings)
            assert len(logits.rows) == steps
            assert (result.step_map >= 0).all()


def test_orders():
    # Place 0: two tokens of 0.48; place 1: one of 0.5 and many others; place 2: sure.
    p = torch.tensor(
        [
            [0.0, 0.48, 0.48, 0.02, 0.01, 0.01],
            [0.0, 0.5, 0.125, 0.125, 0.125, 0.125],
            [0.0, 0.97, 0.01, 0.01, 0.005, 0.005],
        ]
    )
    masked = torch.ones(1, 3, dtype=torch.bool)
    noise = torch.tensor([[[0.5, 0.5, 0.5], [0.9, 0.1, 0.5]]])

    def first(order, count=1):
        settings = SamplingSettings(3, order=order)
        _, chosen = choose(p.log()[None], masked, count, settings, noise)
        return chosen[0].nonzero().flatten().tolist()

    assert first("confidence") == [2]
    assert first("confidence", 2) == [1, 2]
    assert first("entropy", 2) == [0, 2]
    assert first("random", 2) == [0, 2]
    assert first("left_to_right", 2) == [0, 1]


def test_written_places_are_never_chosen_again():
    masked = torch.tensor([[True, False, True]])
    for order in ORDERS:
        settings = SamplingSettings(3, order=order, threshold=0.0)
        logits, noise = torch.randn(1, 3, 6), torch.rand(1, 2, 3)
        assert torch.equal(choose(logits, masked, 3, settings, noise)[1], masked)


def test_the_threshold_of_confidence_writes_what_is_sure():
    p = torch.tensor([[0.0, 0.6, 0.4], [0.0, 0.95, 0.05], [0.0, 0.1, 0.9]])
    masked = torch.ones(1, 3, dtype=torch.bool)
    for order, threshold, expected in [
        ("confidence", 0.8, [False, True, True]),
        ("confidence", 0.99, [False, True, False]),
        ("left_to_right", 0.93, [True, True, False]),  # ForkGRPO: the leftmost comes anyway
    ]:
        settings = SamplingSettings(3, order=order, threshold=threshold)
        assert choose(p.log()[None], masked, 1, settings, None)[1][0].tolist() == expected


def test_the_entropy_bound_equals_its_definition():
    generator = seeded(5)
    for bound in (0.0, 0.3, 1.0, 3.0):
        logits = 3 * torch.randn(4, 7, 6, generator=generator)
        masked = torch.rand(4, 7, generator=generator) < 0.7
        settings = SamplingSettings(7, order="entropy", threshold=bound)
        _, chosen = choose(logits, masked, 1, settings, None)
        for row in range(4):
            h = torch.distributions.Categorical(logits=logits[row]).entropy()
            places = sorted(masked[row].nonzero().flatten().tolist(), key=lambda i: h[i])
            accepted = [
                place
                for k, place in enumerate(places)
                if k == 0 or sum(h[i] for i in places[:k]) <= bound  # H - h of the first k + 1
            ]
            assert chosen[row].nonzero().flatten().tolist() == sorted(accepted)


def test_diffusers_scheduler_and_ours_agree(pipe):
    """The canary of diffusers' discrete schedulers, which are being rewritten upstream."""
    ours = pipe.scheduler
    for settings in (
        {"num_inference_steps": 4},
        {"num_inference_steps": 6, "block_length": 4},
        {"threshold": 0.7},
        {"threshold": 0.7, "block_length": 5, "num_inference_steps": 3},
    ):
        plain = pipe(PROMPTS, generation_length=L, **settings)
        pipe.scheduler = BlockRefinementScheduler(threshold=0.5, editing_threshold=0.1)
        try:
            theirs = pipe(PROMPTS, generation_length=L, **settings)
        finally:
            pipe.scheduler = ours
        assert torch.equal(plain.ids, theirs.ids)
        assert torch.equal(plain.step_map, theirs.step_map)


def test_the_mask_token_is_never_written_however_likely():
    table = torch.zeros(L + 2, 6)
    table[:, 0] = 100.0
    for temperature in (0.0, 5.0):
        settings = SamplingSettings(L, temperature=temperature)
        result = sample(
            Counted(rule_of(table)), settings, 3, generators=[seeded(i) for i in range(3)]
        )
        assert (result.ids != 0).all()


def test_tokens_are_drawn_from_the_tempered_distribution():
    logits = torch.tensor([0.0, 1.0, -float("inf"), 2.0])
    uniform = torch.linspace(0, 1, 20001)[:-1]
    drawn = draw_tokens((logits / 0.7).expand(1, 20000, -1), uniform[None])
    shares = torch.bincount(drawn[0], minlength=4) / 20000
    assert torch.allclose(shares, (logits / 0.7).softmax(-1), atol=1e-3)
    assert shares[2] == 0


def test_impossible_tokens_are_not_drawn_at_the_very_ends():
    logits = torch.full((1, 1, 5), -float("inf"))
    logits[..., 2] = 0.0
    for uniform in (0.0, math.nextafter(1.0, 0.0), 1.0):
        assert draw_tokens(logits, torch.tensor([[uniform]])).item() == 2


def test_a_random_order_is_uniform():
    logits = Counted(rule_of(torch.zeros(6, 6)))
    generators = row_generators(seeded(0), 3000)
    steps = sample(logits, SamplingSettings(4, order="random"), 3000, generators=generators)
    shares = steps.step_map.float().mean(0)
    assert torch.allclose(shares, torch.full((4,), 1.5), atol=0.1)
    assert len({tuple(row) for row in steps.step_map.tolist()}) == 24


def test_finished_rows_cost_nothing():
    end = 5

    def rule(ids):
        # Row by its first prompt token: the first writes its end at place 2, the other never.
        logits = torch.zeros(*ids.shape, 6)
        logits[..., 1] = 1.0
        logits[ids[:, 0] == 4, 4, end] = 9.0
        return logits

    logits = Counted(rule)
    ids = torch.tensor([[4, 3], [3, 3]])
    settings = SamplingSettings(8, order="left_to_right")
    result = sample_tokens(logits, ids, ids > 0, settings, mask_id=0, end_id=end)
    assert logits.rows == [2, 2, 2, 1, 1, 1, 1, 1]
    assert result.row_forwards == 11
    assert result.lengths.tolist() == [3, 8]
    assert result.ids[0].tolist() == [1, 1, *[end] * 6]
    assert result.step_map[0].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]


def test_an_end_before_open_places_does_not_finish_a_row():
    table = torch.zeros(6, 6)
    table[:, 1] = 1.0
    table[4, 5] = 9.0  # the end, written first, at place 2
    logits = Counted(rule_of(table))
    result = sample(logits, SamplingSettings(4), end_id=5)
    assert len(logits.rows) == 3
    assert result.step_map[0].tolist() == [1, 2, 0, -1]
    assert result.lengths.tolist() == [3]


def test_sure_rows_do_not_wait_for_unsure_ones():
    def rule(ids):
        logits = torch.zeros(*ids.shape, 6)
        logits[ids[:, 0] == 4, :, 1] = 20.0
        return logits

    logits = Counted(rule)
    ids = torch.tensor([[4, 3], [3, 3]])
    sample_tokens(logits, ids, ids > 0, SamplingSettings(4, threshold=0.9), mask_id=0)
    assert logits.rows == [2, 1, 1, 1]


def test_logits_that_are_not_numbers_are_an_error():
    with pytest.raises(UserError, match="not numbers"):
        sample(Counted(rule_of(torch.full((6, 6), float("nan")))), SamplingSettings(4))


@pytest.mark.parametrize(
    "settings",
    [
        {"generation_length": 0},
        {"generation_length": 4, "num_inference_steps": 5},
        {"generation_length": 4, "num_inference_steps": 0},
        {"generation_length": 4, "block_length": 2, "num_inference_steps": 1},
        {"generation_length": 4, "block_length": 5},
        {"generation_length": 4, "order": "best"},
        {"generation_length": 4, "temperature": -1.0},
        {"generation_length": 4, "temperature": float("nan")},
        {"generation_length": 4, "threshold": -0.1},
        {},
    ],
)
def test_settings_that_cannot_be_sampled(pipe, settings):
    with pytest.raises(UserError):
        pipe("12", **settings)


def test_prompts_that_cannot_be_sampled(pipe):
    with pytest.raises(UserError, match="No prompt"):
        pipe([], generation_length=4)
    with pytest.raises(UserError, match="exceed the 32"):
        pipe("1" * 30, generation_length=4)
    with pytest.raises(UserError, match="chat template"):
        pipe([{"role": "user", "content": "12"}], generation_length=4)
    with pytest.raises(UserError, match="2 generators for 1"):
        pipe("1", generation_length=4, temperature=1.0, generator=[seeded(0), seeded(1)])


def test_conversations_go_through_the_chat_template(pipe):
    tokenizer = char_tokenizer("0123")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}3"
    chat = TextPipeline(pipe.model, tokenizer)
    talk = [{"role": "user", "content": "12"}]
    ids, mask = chat.encode([talk, talk + talk])
    assert ids[0, 2:].tolist() == tokenizer("123", add_special_tokens=False).input_ids
    assert mask.tolist() == [[False, False, True, True, True], [True] * 5]
    assert chat(talk, generation_length=4).text == chat([talk], generation_length=4).text


def test_a_training_model_samples_without_dropout_and_stays_in_training(pipe):
    tokenizer = char_tokenizer("0123")
    model = bert_model(len(tokenizer), tokenizer.pad_token_id, 32, 16, 1, 2, dropout=0.5).train()
    noisy = TextPipeline(model, tokenizer)
    assert noisy(PROMPTS, generation_length=L).text == noisy(PROMPTS, generation_length=L).text
    assert model.training


def test_a_model_of_another_family(pipe):
    torch.manual_seed(0)
    tokenizer = char_tokenizer("0123")
    model = llama_model(len(tokenizer), tokenizer.pad_token_id, 32, hidden=16, layers=1, heads=2)
    dream = TextPipeline(model.eval(), tokenizer, attention="full4d", shifted=True)
    batch = dream(PROMPTS, generation_length=L)
    assert torch.equal(batch.ids[2:3], dream(PROMPTS[2], generation_length=L).ids)


def test_saved_and_loaded_it_is_the_same(pipe, tmp_path):
    pipe.register_to_config(evaluation={"generation_length": L, "temperature": 0.5}, agent="toy")
    pipe.save_pretrained(tmp_path)
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".jinja"}
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["mask_id"] == pipe.spec.mask_id
    loaded = TextPipeline.from_pretrained(tmp_path)
    assert loaded.spec == pipe.spec == TextModelSpec(1, 0)
    assert loaded.scheduler is None
    same = loaded(PROMPTS, generator=seeded(3))
    assert torch.equal(same.ids, pipe(PROMPTS, generator=seeded(3)).ids)
    assert same.ids.shape[1] == L
    assert loaded(PROMPTS, generation_length=3, generator=seeded(3)).ids.shape[1] == 3


def test_a_scheduler_is_saved_too(pipe, tmp_path):
    TextPipeline(pipe.model, pipe.tokenizer, BlockRefinementScheduler()).save_pretrained(tmp_path)
    loaded = TextPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler, BlockRefinementScheduler)
    assert loaded("12", generation_length=4).text == pipe("12", generation_length=4).text


def test_settings_of_an_agent_that_do_not_exist(pipe):
    strange = TextPipeline(pipe.model, pipe.tokenizer, evaluation={"length": 3})
    with pytest.raises(UserError, match="length"):
        strange("12", generation_length=4)


def test_a_tokenizer_without_a_mask_token(pipe):
    tokenizer = char_tokenizer("0123")
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask_id="):
        TextPipeline(pipe.model, tokenizer)


@pytest.mark.parametrize("order", ["confidence", "entropy", "left_to_right"])
def test_of_equal_places_the_leftmost_comes_first(order):
    table = torch.zeros(L + 2, 6)
    result = sample(Counted(rule_of(table)), SamplingSettings(L, order=order))
    assert result.step_map[0].tolist() == list(range(L))


def test_what_is_trained_is_what_is_sampled():
    """A model that learns to turn a text round does so in the pipeline, in prompts of any length.

    Training and sampling agree on tokens, padding, positions and the end.
    """
    torch.manual_seed(0)
    generator, length = seeded(1), 5
    tokenizer = char_tokenizer("abc")
    model = bert_model(len(tokenizer), tokenizer.pad_token_id, 16, hidden=48, layers=2, heads=2)
    pipe = TextPipeline(model, tokenizer)
    denoiser = MaskedTextDenoiser(model, pipe.spec)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def words(count):
        sizes = torch.randint(1, 5, (count,), generator=generator).tolist()
        draws = torch.randint(3, (count, 4), generator=generator).tolist()
        return ["".join("abc"[i] for i in row[:n]) for row, n in zip(draws, sizes, strict=True)]

    for _ in range(250):
        batch = words(64)
        prompt_ids, mask = pipe.encode(batch)
        answers = [encode_completion(tokenizer, word[::-1], length) for word in batch]
        ids = torch.cat([prompt_ids, torch.tensor(answers)], 1)
        whole = torch.cat([mask, torch.ones(64, length, dtype=torch.bool)], 1)
        asked = torch.zeros_like(whole)
        asked[:, -length:] = True
        x = TextBatch(ids, whole, asked)
        loss = denoiser.loss(x, None, denoiser.draw_noise(x, generator)).mean() / length
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    asked_for = words(100)
    found = pipe(asked_for, generation_length=length)
    right = [text == word[::-1] for text, word in zip(found.text, asked_for, strict=True)]
    assert sum(right) >= 95
    # By confidence the ends behind a word come first. From the left, short words end early.
    quick = pipe(asked_for, generation_length=length, order="left_to_right")
    right = [text == word[::-1] for text, word in zip(quick.text, asked_for, strict=True)]
    assert sum(right) >= 90
    assert quick.row_forwards == quick.lengths.sum() < found.row_forwards
