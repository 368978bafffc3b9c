import json
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForMaskedLM, dynamic_module_utils

from lmdiff.denoisers.text_loading import load_text_model
from lmdiff.denoisers.text_models import (
    TextModelSpec,
    bert_model,
    bert_spec,
    check_text_model,
    llama_model,
    modernbert_model,
    token_log_probs,
    token_logits,
)
from lmdiff.errors import UserError

V, MASK, PAD = 12, 10, 11
TINY = {"vocab_size": V, "pad_id": PAD, "max_length": 64, "hidden": 16, "layers": 3, "heads": 2}

FAMILIES = {
    "bert": (bert_model, {}, {}),
    "modernbert": (modernbert_model, {"local_attention": 6}, {}),
    "llada-like": (llama_model, {}, {"attention": "full4d"}),
    "dream-like": (llama_model, {}, {"attention": "full4d", "shifted": True}),
}


def build(family):
    make, settings, fields = FAMILIES[family]
    torch.manual_seed(0)
    model = make(**TINY, **settings).double().eval()
    # Fresh models say nearly the same everywhere; larger weights make a difference show.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model, TextModelSpec(MASK, PAD, **fields)


@pytest.fixture
def ids():
    ids = torch.randint(0, 10, (2, 9), generator=torch.Generator().manual_seed(1))
    ids[:, 4:7] = MASK
    return ids


def padded(ids, left, right):
    batch = len(ids)
    pads = [torch.full((batch, n), PAD) for n in (left, right)]
    real = torch.ones_like(ids, dtype=torch.bool)
    nothing = [torch.zeros(batch, n, dtype=torch.bool) for n in (left, right)]
    return torch.cat([pads[0], ids, pads[1]], 1), torch.cat([nothing[0], real, nothing[1]], 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 3), (2, 4), (15, 15)])
def test_padding_changes_nothing(family, ids, left, right):
    model, spec = build(family)
    plain = token_logits(model, spec, *padded(ids, 0, 0))
    wide_ids, mask = padded(ids, left, right)
    wide = token_logits(model, spec, wide_ids, mask)
    assert wide[..., :MASK].isfinite().all()
    torch.testing.assert_close(wide[:, left : left + ids.shape[1]], plain, atol=1e-9, rtol=0)
    # What stands in the padding does not matter either.
    other = torch.where(mask, wide_ids, 3)
    again = token_logits(model, spec, other, mask)[:, left : left + ids.shape[1]]
    torch.testing.assert_close(again, plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_survive_padding(family, ids):
    model, spec = build(family)
    wide_ids, mask = padded(ids, 15, 15)
    token_log_probs(model, spec, wide_ids, mask, wide_ids * 0, mask).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", ["bert", "dream-like"])
def test_rows_of_different_padding_in_one_batch(family, ids):
    model, spec = build(family)
    plain = token_logits(model, spec, *padded(ids, 0, 0))
    (left_ids, left_mask), (right_ids, right_mask) = padded(ids, 4, 0), padded(ids, 0, 4)
    batch = torch.cat([left_ids, right_ids]), torch.cat([left_mask, right_mask])
    logits = token_logits(model, spec, *batch)
    torch.testing.assert_close(logits[:2, 4:], plain, atol=1e-9, rtol=0)
    torch.testing.assert_close(logits[2:, :9], plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_tokens_are_seen(family, ids):
    model, spec = build(family)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 10
    full = torch.ones_like(ids)
    before, after = (token_logits(model, spec, row, full) for row in (ids, changed))
    assert (before - after)[:, 0, :MASK].abs().max() > 1e-4


def test_the_shift():
    model, spec = build("dream-like")
    straight = TextModelSpec(MASK, PAD, "full4d")
    ids = torch.tensor([[1, 2, MASK, 4]])
    full = torch.ones_like(ids)
    plain = token_logits(model, straight, ids, full)
    shifted = token_logits(model, spec, ids, full)
    torch.testing.assert_close(shifted[:, 1:], plain[:, :-1])
    torch.testing.assert_close(shifted[:, 0], plain[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_token_is_never_an_answer(family, ids):
    model, spec = build(family)
    logits = token_logits(model, spec, ids, torch.ones_like(ids))
    assert (logits[..., MASK] == -torch.inf).all()
    assert logits[..., torch.arange(V) != MASK].isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_logits(family, ids):
    model, spec = build(family)
    wide_ids, mask = padded(ids, 2, 1)
    where = (wide_ids == MASK) & mask
    targets = torch.where(where, 5, wide_ids)
    values = token_log_probs(model, spec, wide_ids, mask, targets, where)
    logits = token_logits(model, spec, wide_ids, mask).log_softmax(-1)
    expected = logits.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(values[where], expected[where])
    assert (values[~where] == 0).all()
    values.sum().backward()


HEADS = [
    ("bert", "cls"),
    ("bert", "bert.encoder.layer.2.attention.output"),
    ("modernbert", "head"),
    ("llada-like", "lm_head"),
    ("dream-like", "lm_head"),
]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_the_head_alone_where_asked(family, head, lora, ids):
    """Naming the head changes neither numbers nor gradients, and leaves no hook behind."""
    model, spec = build(family)
    if lora:
        targets = {"bert": ["query"], "modernbert": ["Wqkv"]}.get(family, ["q_proj"])
        model = get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False))
        model = model.double()
    wide_ids, mask = padded(ids, 2, 1)
    where = (wide_ids == MASK) & mask
    targets = torch.where(where, 5, wide_ids)

    def both(spec):
        values = token_log_probs(model, spec, wide_ids, mask, targets, where)
        values.sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return values, gradients

    values, gradients = both(spec)
    fewer, same = both(replace(spec, head=head))
    torch.testing.assert_close(fewer, values)
    assert len(same) == len(gradients) > 0
    for left, right in zip(same, gradients, strict=True):
        torch.testing.assert_close(left, right)
    assert token_logits(model, replace(spec, head=head), wide_ids, mask).shape[:2] == (
        wide_ids.shape
    )
    with pytest.raises(UserError, match="no such part"):
        both(replace(spec, head="nowhere"))


def test_the_spec_of_the_default():
    model, _ = build("bert")
    spec = bert_spec(model, MASK)
    assert (spec.mask_id, spec.pad_id, spec.head) == (MASK, PAD, HEADS[1][1])


@pytest.mark.parametrize("head", [None, "cls"])
def test_log_probs_of_nothing(head):
    model, spec = build("bert")
    spec = replace(spec, head=head)
    ids = torch.ones(2, 3, dtype=torch.long)
    values = token_log_probs(model, spec, ids, ids, ids, torch.zeros(2, 3, dtype=torch.bool))
    values.sum().backward()
    assert (values == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_check_lets_pass_what_is_right(family):
    model, spec = build(family)
    model.train()
    check_text_model(model, spec, V)
    assert model.training


@pytest.mark.parametrize(
    ("family", "fields", "names"),
    [
        ("llada-like", {"attention": "padding"}, "full4d"),
        ("bert", {"positions": False}, "positions"),
    ],
)
def test_check_sees_a_wrong_spec(family, fields, names):
    model, _ = build(family)
    with pytest.raises(UserError, match=names):
        check_text_model(model, TextModelSpec(MASK, PAD, **fields), V)


def test_spec_refuses_nonsense():
    with pytest.raises(UserError, match="both 3"):
        TextModelSpec(3, 3)
    with pytest.raises(UserError, match="padding, full4d or prefix"):
        TextModelSpec(3, 4, attention="causal")  # pyright: ignore[reportArgumentType]


def test_load(tmp_path):
    model, _ = build("bert")
    model.save_pretrained(tmp_path / "bert")
    loaded = load_text_model(str(tmp_path / "bert"), "masked", dtype=torch.float64)
    assert isinstance(loaded, BertForMaskedLM)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    with pytest.raises(UserError, match="missing"):
        load_text_model(str(tmp_path / "bert"), "own", dtype=torch.float64)
    with pytest.raises(UserError, match="could not be loaded"):
        load_text_model(str(tmp_path / "nothing"), "masked")


OWN_CODE = """
open({ran!r}, "w").close()
from transformers import BertConfig, BertForMaskedLM

class OwnConfig(BertConfig):
    model_type = "own-kind"

class Own(BertForMaskedLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_if_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model, spec = build("bert")
    folder, ran = tmp_path / "own", tmp_path / "ran"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-kind", "architectures": ["Own"]}
    config["auto_map"] = {"AutoModel": "code.Own", "AutoConfig": "code.OwnConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(OWN_CODE.format(ran=str(ran)))
    with pytest.raises(UserError, match="trust_remote_code"):
        load_text_model(str(folder), "own")
    assert not ran.exists()
    own = load_text_model(str(folder), "own", trust_remote_code=True, dtype=torch.float64).eval()
    assert ran.exists()
    ids = torch.tensor([[1, MASK, 3]])
    full = torch.ones_like(ids)
    torch.testing.assert_close(
        token_logits(own, spec, ids, full), token_logits(model, spec, ids, full)
    )
