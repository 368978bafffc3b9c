import copy
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.goals.encoder import GoalEncoder, GoalTokens

FAMILIES = ["bert", "t5", "llama", "qwen2"]
SHORT, LONG = "top", "please go to the upper left corner in row 1 column 3"


class Pipe(DiffusionPipeline):
    def __init__(self, goal_encoder: GoalEncoder, scheduler: FlowMatchEulerDiscreteScheduler):
        super().__init__()
        self.register_modules(goal_encoder=goal_encoder, scheduler=scheduler)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_equals_single(tiny, family):
    encoder = GoalEncoder(tiny[family])
    batch = encoder([SHORT, LONG, SHORT])
    assert batch.states.shape[:2] == batch.mask.shape
    assert batch.states.shape[-1] == encoder.width == 32
    assert batch.states.dtype == torch.float32
    for i, phrase in enumerate([SHORT, LONG, SHORT]):
        alone = GoalEncoder(tiny[family])([phrase])  # a fresh one: nothing comes from a cache
        n = int(batch.mask[i].sum())
        assert alone.mask.all()
        assert alone.mask.shape == (1, n)
        assert batch.mask[i, :n].all()
        torch.testing.assert_close(batch.states[i, :n], alone.states[0], rtol=0, atol=1e-5)
        assert not batch.states[i, n:].any()


def test_only_the_encoder_of_an_encoder_decoder(tiny):
    names = [name for name, _ in GoalEncoder(tiny["t5"]).named_parameters()]
    assert not any("decoder" in name for name in names)


def test_phrases_without_tokens(tiny):
    encoder = GoalEncoder(tiny["llama"])  # adds no special tokens
    tokens = encoder(["", "top"])
    assert tokens.mask.tolist() == [[False], [True]]
    assert encoder([""]).mask.tolist() == [[False]]
    assert torch.equal(GoalEncoder.pooled(encoder([""])), torch.zeros(1, 32))


def test_null_and_pooled(tiny):
    encoder = GoalEncoder(tiny["bert"])
    null = encoder.null(3)
    assert null.states.shape == (3, 1, 32)
    assert not null.states.any()
    assert not null.mask.any()
    tokens = GoalTokens(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    assert GoalEncoder.pooled(tokens).item() == 2.0


def test_frozen_is_frozen_and_cached(tiny):
    encoder = GoalEncoder(tiny["bert"]).train()
    assert not encoder.text_model.training
    assert list(encoder.trainable_parameters()) == []
    first = encoder([LONG]).states
    calls = []
    encoder.text_model.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(encoder([LONG]).states, first)
    assert calls == []
    encoder([LONG, SHORT])
    assert calls == [1]
    encoder.to(torch.float64)  # what is kept is of the old precision
    assert encoder([LONG]).states.dtype == torch.float32
    assert calls == [1, 1]


def test_a_move_to_where_it_is_forgets_nothing(tiny):
    """Else a resumed training would encode its phrases in other company: other last digits."""
    encoder = GoalEncoder(tiny["bert"])
    first = encoder(["go", "go to the left"]).states
    kept = dict(encoder._cache)
    encoder.to("cpu")
    encoder.float()
    assert encoder._cache.keys() == kept.keys()
    assert torch.equal(encoder(["go", "go to the left"]).states, first)
    encoder.half()
    assert not encoder._cache


def test_the_cache_is_bounded(tiny, monkeypatch):
    monkeypatch.setattr("lmdiff.goals.encoder._CACHE_BYTES", 20 * 32 * 4)
    encoder = GoalEncoder(tiny["llama"])
    for i in range(1, 12):
        encoder(["top " * i])
    assert encoder._cached_bytes == sum(s.nbytes for s in encoder._cache.values())
    assert encoder._cached_bytes <= 20 * 32 * 4
    assert "top " * 11 in encoder._cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_training_and_the_round_trip(tiny, tmp_path, family, adaptation):
    encoder = GoalEncoder(tiny[family], adaptation=adaptation, lora_rank=2)
    base = encoder.base([LONG]).states
    parameters = list(encoder.trainable_parameters())
    everything = sum(p.numel() for p in encoder.parameters())
    assert (sum(p.numel() for p in parameters) < everything / 2) == (adaptation == "lora")
    optimizer = torch.optim.SGD(parameters, lr=0.3)
    target = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        encoder.train()([LONG, SHORT]).states.matmul(target).mean().backward()
        optimizer.step()
    trained = encoder.eval()([LONG]).states
    assert (trained - base).abs().max() > 1e-3
    if adaptation == "lora":  # the base is what it was
        assert torch.equal(encoder.base([LONG]).states, base)
    encoder.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    again = GoalEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(again([LONG]).states, trained, rtol=0, atol=1e-6)
    assert again.config["adaptation"] == adaptation
    assert len(list(again.trainable_parameters())) == len(parameters)
    twin = copy.deepcopy(encoder)
    torch.testing.assert_close(twin([LONG]).states, trained)


def test_training_has_no_dropout_of_its_own(tiny):
    encoder = GoalEncoder(tiny["bert"], adaptation="full").train()  # BERT's own dropout is 0.1
    assert torch.equal(encoder([LONG]).states, encoder([LONG]).states)
    encoder = GoalEncoder(tiny["bert"], adaptation="lora", lora_dropout=0.5).train()
    for parameter in encoder.trainable_parameters():
        torch.nn.init.normal_(parameter)
    assert not torch.equal(encoder([LONG]).states, encoder([LONG]).states)
    encoder.eval()
    assert torch.equal(encoder([LONG]).states, encoder([LONG]).states)


@pytest.mark.parametrize("adaptation", ["frozen", "lora", "full"])
def test_as_a_component_of_a_pipeline(tiny, tmp_path, adaptation):
    encoder = GoalEncoder(tiny["bert"], adaptation=adaptation)
    pipe = Pipe(encoder, FlowMatchEulerDiscreteScheduler())
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["goal_encoder"] == ["lmdiff.goals.encoder", "GoalEncoder"]
    again = Pipe.from_pretrained(tmp_path).to("cpu")
    assert torch.equal(again.goal_encoder([LONG]).states, encoder([LONG]).states)
    if adaptation == "frozen":
        assert [p.name for p in (tmp_path / "goal_encoder").iterdir()] == ["config.json"]


def test_a_changed_base_is_noticed(tiny, tmp_path):
    base = shutil.copytree(tiny["bert"], tmp_path / "base")
    GoalEncoder(str(base), adaptation="lora").save_pretrained(tmp_path / "saved")
    weights = load_file(base / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="not the one this agent was trained with"):
        GoalEncoder.from_pretrained(tmp_path / "saved")


def test_pickled_weights_are_not_read(tiny, tmp_path):
    base = shutil.copytree(tiny["bert"], tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        GoalEncoder(str(base))


def test_long_goals_are_refused_not_cut(tiny):
    encoder = GoalEncoder(tiny["bert"], max_tokens=8)
    encoder(["go to the top left corner"])  # 6 words, [CLS] and [SEP]
    with pytest.raises(GoalNotUnderstood, match="too long"):
        encoder(["go to the top left corner please"])
    with pytest.raises(GoalNotUnderstood, match="too long"):
        encoder(["go " * 1_000_000])


def test_mistakes_say_how_to_mend_them(tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="max-tokens 64"):
        GoalEncoder(tiny["bert"], max_tokens=65)
    with pytest.raises(UserError, match="does not exist"):
        GoalEncoder("./no/such/folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="embedded"):
        GoalEncoder("lmdiff-tests/there-is-no-such-model")
    with pytest.raises(UserError, match=r"config\.json"):
        GoalEncoder.from_pretrained(tmp_path)


def test_a_relative_path_survives_a_change_of_folder(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny["bert"], tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    GoalEncoder("./base").save_pretrained("saved")
    monkeypatch.chdir("/")
    GoalEncoder.from_pretrained(tmp_path / "saved")
