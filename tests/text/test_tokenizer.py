import pytest
from transformers import AutoTokenizer

from lmdiff.errors import UserError
from lmdiff.text import countdown
from lmdiff.text.tokenizer import (
    PRINTABLE,
    char_tokenizer,
    decode_completion,
    encode_completion,
    encode_prompt,
    end_id,
    token_texts,
)

TEXTS = ["3*7+25", " a  b ", "two\nlines", "it 's , a . test !", "<answer>(1 + 2)</answer>"]


@pytest.fixture(scope="module", params=["fresh", "loaded"])
def tokenizer(request, tmp_path_factory):
    """Everything below also holds of the tokenizer that AutoTokenizer loads."""
    fresh = char_tokenizer()
    if request.param == "fresh":
        return fresh
    folder = tmp_path_factory.mktemp("tokenizer")
    fresh.save_pretrained(folder)
    assert {path.suffix for path in folder.iterdir()} == {".json"}
    return AutoTokenizer.from_pretrained(folder)


def test_one_token_a_character_and_back(tokenizer):
    for text in [*TEXTS, PRINTABLE]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert token_texts(tokenizer, ids) == list(text)


def test_a_prompt_ends_with_a_separator(tokenizer):
    ids = encode_prompt(tokenizer, "1 -> 4")
    assert ids[-1] == tokenizer.sep_token_id
    assert len(ids) == 7


def test_the_names_of_special_tokens_are_plain_text(tokenizer):
    for word in ("[MASK]", "[EOS]", "[PAD]"):
        ids = encode_prompt(tokenizer, word)[:-1]
        assert len(ids) == len(word)
        assert not set(ids) & set(tokenizer.all_special_ids)


def test_other_characters_are_unknown_one_each(tokenizer):
    ids = encode_prompt(tokenizer, "é４😀")
    assert ids[:3] == [tokenizer.unk_token_id] * 3
    assert tokenizer.unk_token_id != tokenizer.mask_token_id


def test_a_completion_is_filled_with_its_end(tokenizer):
    end = end_id(tokenizer)
    ids = encode_completion(tokenizer, "3+4", 6)
    assert ids[3:] == [end] * 3
    assert decode_completion(tokenizer, ids) == "3+4"
    assert encode_completion(tokenizer, "3+4") == ids[:4]
    assert encode_completion(tokenizer, "3+4", 3) == ids[:3]
    with pytest.raises(UserError, match="4 tokens, generation_length is 3"):
        encode_completion(tokenizer, "3+44", 3)


def test_what_follows_the_first_end_is_not_text(tokenizer):
    ids = encode_completion(tokenizer, "3+4")
    assert decode_completion(tokenizer, ids + ids) == "3+4"


def test_batches_are_padded_on_the_left(tokenizer):
    rows = tokenizer(["1", "123"], padding=True).input_ids
    assert rows[0][:2] == [tokenizer.pad_token_id] * 2


def test_an_alphabet_of_a_task():
    tokenizer = char_tokenizer(countdown.ALPHABET)
    assert len(tokenizer) == len(countdown.ALPHABET) + 5
    prompt = "3 7 25 -> 46"
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)[:-1]) == prompt
    parts = token_texts(tokenizer, encode_prompt(tokenizer, "10*(3+125)")[:-1])
    assert parts == ["10", "*", "(", "3", "+", "12", "5", ")"]


@pytest.mark.parametrize("alphabet", ["", "aa"])
def test_alphabets_that_are_none(alphabet):
    with pytest.raises(UserError, match="alphabet"):
        char_tokenizer(alphabet)


def test_a_mask_token_in_a_prompt_is_refused():
    tokenizer = char_tokenizer("0123")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.split_special_tokens = False  # as most tokenizers are
    for prompt in ("1[MASK]2", [{"role": "user", "content": "1[MASK]2"}]):
        with pytest.raises(UserError, match="mask token"):
            encode_prompt(tokenizer, prompt)
    with pytest.raises(UserError, match="mask token"):
        encode_completion(tokenizer, "1[MASK]2")


def test_a_tokenizer_without_eos_ends_with_sep():
    tokenizer = char_tokenizer("0123")
    tokenizer.eos_token = None
    assert end_id(tokenizer) == tokenizer.sep_token_id
    tokenizer.sep_token = None
    assert end_id(tokenizer) is None
    with pytest.raises(UserError, match="neither an eos nor a sep"):
        encode_completion(tokenizer, "1")
