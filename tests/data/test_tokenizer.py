"""Texts to tokens and back, with special tokens and masks of several makers."""

import unicodedata

import numpy as np
import pytest
from tokenizers import processors

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import UserError
from helpers.tiny_rows import CAPTIONS, tiny_tokenizer
from helpers.tokenizer_files import (
    TRICKY_TEXTS,
    WORDS,
    bert_tokenizer,
    save,
    word_level,
    word_level_tokenizer,
)

LONG_TEXTS = (
    " ".join(CAPTIONS) * 10,
    "a" + " \n" * 500 + "red circle",
    f"see https://example.org/{'a1-' * 90}, a red circle {' heart' * 300}",
    "\ufdfa" * 200,
    "日本語の説明文。" * 100,
    "a [MASK] red [MASK]-[MASK] " * 40,
)


def special_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    return tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id


# Encoding


def test_every_text_comes_back_normalised_without_special_tokens():
    tokenizer = tiny_tokenizer()
    for text in (*CAPTIONS, *TRICKY_TEXTS, "a [MASK] [PAD] [CLS] circle"):
        ids, is_special = tokenizer.encode(text, 200)
        assert ids.dtype == np.int64
        assert ids[0] == tokenizer.cls_id
        assert not set(ids[1:].tolist()) & set(special_ids(tokenizer))
        assert is_special.tolist() == [True] + [False] * (len(ids) - 1)
        assert ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text).lower()


@pytest.mark.parametrize("maker", ["bpe", "bert", "words"])
def test_the_start_of_a_long_text_has_the_first_tokens_of_the_whole(maker, tmp_path):
    makers = {
        "bpe": lambda _: tiny_tokenizer(),
        "bert": bert_tokenizer,
        "words": word_level_tokenizer,
    }
    tokenizer = makers[maker](tmp_path)
    for text in LONG_TEXTS:
        whole = tokenizer.backend.encode(text)
        words = [-1 if word is None else word for word in whole.word_ids]
        whole_masks = tokenizer.encode_with_masks(text, 10**9)
        for length in (2, 12, 40):
            assert tokenizer.encode(text, length)[0].tolist() == whole.ids[:length]
            assert tokenizer.spans(text, length)[1:] == whole.offsets[1:length]
            assert tokenizer.words(text, length).tolist() == words[:length]
            masks = tokenizer.encode_with_masks(text, length)
            for values, whole_values in zip(masks, whole_masks, strict=True):
                np.testing.assert_array_equal(values, whole_values[:length])


def test_only_the_start_of_a_long_text_is_encoded():
    tokenizer = tiny_tokenizer()
    for text in (LONG_TEXTS[0], LONG_TEXTS[4]):
        assert tokenizer.encoding(text, 12).offsets[-2][1] < len(text)


def test_spans_point_at_the_characters_of_each_token():
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    text = "Purple triangle, ｒｅｄ heart"
    pieces = [text[start:end].strip() for start, end in tokenizer.spans(text, 32)]
    assert pieces == ["", "Purple", "triangle", ",", "ｒｅｄ", "heart"]


# Special tokens


def test_a_file_that_adds_start_and_end_by_itself_is_left_to_it(tmp_path):
    backend = word_level(WORDS | {"<pad>": 7, "</s>": 0})
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<mask>"])
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 0)]
    )
    backend.enable_padding(length=20, pad_id=7, pad_token="<pad>")
    backend.enable_truncation(2)
    tokenizer = Tokenizer.load(save(backend, tmp_path / "own.json"))
    ids, is_special = tokenizer.encode("red circle", 10)
    assert ids.tolist() == [2, 4, 5, 0]  # the file's own padding and truncation are turned off
    assert is_special.tolist() == [True, False, False, True]
    assert tokenizer.vocab_size == 8  # the largest id counts: there is a gap at 6
    assert tokenizer.decode(ids) == "red circle"


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        (None, None),
        ("<pad>", "[PAD]"),
        ("<s>", "[CLS]"),
        ("<mask>", "[MASK]"),
    ],
)
def test_a_missing_special_token_is_added(tmp_path, missing, name):
    present = [word for word in WORDS if word != missing]
    ids = {word: number for number, word in enumerate(present)}
    tokenizer = word_level_tokenizer(tmp_path, ids)
    assert tokenizer.added == (() if missing is None else (name,))
    assert tokenizer.vocab_size == 6
    plain_ids = [ids["<unk>"], ids["red"], ids["circle"]]
    assert sorted([*special_ids(tokenizer), *plain_ids]) == [*range(6)]
    token_ids, is_special = tokenizer.encode(f"red {name}", 9)  # the file adds no [CLS] by itself
    assert token_ids[:2].tolist() == [tokenizer.cls_id, ids["red"]]
    assert is_special[:2].tolist() == [True, False]
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.added == ()
    assert special_ids(again) == special_ids(tokenizer)


def test_our_cls_stands_before_a_start_token_of_the_file(tmp_path):
    """As CLIP's and GPT-2's tokenizers, which have one special token for all, are completed."""
    backend = word_level(
        {
            "<unk>": 0,
            "<|start|>": 1,
            "<|end|>": 2,
            "red": 3,
        }
    )
    backend.add_special_tokens(["<|start|>", "<|end|>"])
    backend.post_processor = processors.RobertaProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        ("<|end|>", 2), ("<|start|>", 1), trim_offsets=False, add_prefix_space=False
    )
    tokenizer = Tokenizer.load(save(backend, tmp_path / "tokenizer.json"))
    assert tokenizer.added == ("[PAD]", "[CLS]", "[MASK]")
    for again in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        ids, is_special = again.encode("red " * 9, 30)
        assert ids.tolist() == [again.cls_id, 1, *[3] * 9, 2]
        assert is_special.tolist() == [True, True, *[False] * 9, True]
        masked_ids = again.encode_with_masks("red [MASK]", 9)[0]
        assert masked_ids.tolist() == [again.cls_id, 1, 3, again.mask_id, 2]


# Masks


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("a [MASK] circle", "a red circle"),
        ("[MASK] circle", "red circle"),
        ("[MASK]", "red"),
        ("purple [MASK], [MASK] heart", "purple red, red heart"),
        ("[MASK] [MASK][MASK] star", "red red red star"),
        ("a[MASK]circle", "a red circle"),
        ("\ua500 [MASK]", "\ua500 red"),
    ],
)
def test_masks_stand_where_words_would(text, filled):
    """The tokens are those of a text with a word for each mask, masked as in training."""
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    (red,) = tokenizer.encode("red", 32)[0][1:]
    ids, is_special, is_masked = tokenizer.encode_with_masks(text, 32)
    expected, expected_special = tokenizer.encode(filled, 32)
    np.testing.assert_array_equal(ids, np.where(expected == red, tokenizer.mask_id, expected))
    np.testing.assert_array_equal(is_masked, expected == red)
    np.testing.assert_array_equal(is_special, expected_special)


def test_masks_of_bert_and_word_level_tokenizers(tmp_path):
    bert = bert_tokenizer(tmp_path)
    ids, is_special, is_masked = bert.encode_with_masks("A [MASK]-[MASK], zebra [MASK]", 20)
    words = [str(bert.backend.id_to_token(token)) for token in ids]
    assert " ".join(words) == "[CLS] a [MASK] - [MASK] , [UNK] [MASK] [SEP]"
    assert is_masked.tolist() == [word == "[MASK]" for word in words]
    assert is_special.nonzero()[0].tolist() == [0, 8]
    assert bert.encode_with_masks("a [MASK] [MASK]", 3)[2].tolist() == [False, False, True]
    plain = word_level_tokenizer(tmp_path)
    assert plain.encode_with_masks("red [MASK] red", 9)[0].tolist() == [2, 4, 3, 4]


def test_masks_need_a_letter_that_the_text_lacks():
    letters = "".join(chr(code) for code in range(0xA500, 0xA600))
    with pytest.raises(UserError, match="all letters of the Vai script"):
        tiny_tokenizer().encode_with_masks(f"{letters}[MASK]", 9)
