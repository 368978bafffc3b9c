import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

WORDS = ["go", "to", "the", "top", "left", "upper", "corner", "row", "column", "1", "3", "please"]

# OGBench's medium maze: 1 = wall.
MEDIUM = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 1, 1, 0, 0, 1],
        [1, 0, 0, 1, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 1, 0, 1],
        [1, 0, 0, 0, 1, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
)


def save_tiny(folder, family):
    """A tiny random text model of a family, with a word-level tokenizer, as a local folder."""
    set_seed(0)
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family == "qwen2":  # transformers gives this family a byte-level BPE, whatever is saved
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
        )
        tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
        vocabulary = tokenizer.get_vocab()
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 64, "vocab_size": len(vocabulary)}
    if family == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        model = BertModel(BertConfig(**size, max_position_embeddings=64))
    elif family == "t5":
        config = T5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=len(vocabulary)
        )
        model = T5ForConditionalGeneration(config)
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=64))
    else:
        model = Qwen2ForCausalLM(
            Qwen2Config(**size, num_key_value_heads=2, max_position_embeddings=64)
        )
    # Decoder-only models come without a padding token, and some ask for padding on the left.
    special = {"pad_token": "[PAD]"} if family in ("bert", "t5") else {"padding_side": "left"}
    unknown = "<|endoftext|>" if family == "qwen2" else "[UNK]"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, **special)
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Family -> folder of a tiny model."""
    return {
        family: save_tiny(tmp_path_factory.mktemp(family), family)
        for family in ("bert", "t5", "llama", "qwen2")
    }


@pytest.fixture(scope="session")
def places():
    """A small stand-in for the task's geometry: what a maze calls its cells."""
    rows, columns = MEDIUM.shape
    free = [(int(r), int(c)) for r, c in np.argwhere(MEDIUM == 0)]

    def where(test):
        return frozenset(cell for cell in free if test(*cell))

    inside = {
        "top": lambda r, c: r < rows / 2,
        "bottom": lambda r, c: r >= rows / 2,
        "left": lambda r, c: c < columns / 2,
        "right": lambda r, c: c >= columns / 2,
    }
    ends = {"top": (0, 1), "bottom": (0, rows - 2), "left": (1, 1), "right": (1, columns - 2)}
    found = {("centre",): where(lambda r, c: 3 <= r <= 4 and 3 <= c <= 4)}
    found["dead_end",] = frozenset({(6, 5)})
    found["dead_end", "bottom", "right"] = frozenset({(6, 5)})
    for side, test in inside.items():
        axis, value = ends[side]
        found["half", side] = where(test)
        found["edge", side] = where(lambda r, c, a=axis, n=value: (r, c)[a] == n)
    for v in ("top", "bottom"):
        for h in ("left", "right"):
            found["quadrant", v, h] = found["half", v] & found["half", h]
            found["corner", v, h] = frozenset({(ends[v][1], ends[h][1])})
    for r in range(rows):
        found["row", r] = where(lambda row, _, r=r: row == r)
        for c in range(columns):
            found["cell", r, c] = where(lambda row, column, r=r, c=c: (row, column) == (r, c))
    for c in range(columns):
        found["column", c] = where(lambda _, column, c=c: column == c)
    return found
