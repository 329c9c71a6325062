"""The tokenizer: round trips, special tokens of several makers, and what it refuses."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors
from twins import CAPTIONS, tiny_tokenizer

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.errors import UserError

TRICKY = (
    "Café № 5 – ½ ﬁne",
    "ＦＵＬＬ width",
    "日本語 and emoji 🐈\N{ZERO WIDTH JOINER}⬛",
    "tabs\tand\nlines",
    "'quotes' \"and\" #tags",
    "ÅNGSTRÖM",
)


def word_level(words: dict[str, int], unk: str | None = "<unk>") -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token=unk))  # pyright: ignore[reportCallIssue]
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def save(backend: tokenizers.Tokenizer, path: Path) -> Path:
    backend.save(str(path))
    return path


@pytest.mark.parametrize("text", [*CAPTIONS, *TRICKY])
def test_trained_bpe_gives_every_text_back_normalised(text):
    tokenizer = tiny_tokenizer()
    ids, is_special = tokenizer.encode(text, 200)
    assert ids.dtype == np.int64
    assert ids[0] == tokenizer.cls_id
    assert is_special.tolist() == [True] + [False] * (len(ids) - 1)
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text).lower()


def test_case_and_compatibility_forms_make_no_difference():
    tokenizer = tiny_tokenizer()
    expected, _ = tokenizer.encode("a fine red circle", 50)
    for text in ("A FINE Red Circle", "a ﬁne red circle", "ａ fine red circle"):
        assert tokenizer.encode(text, 50)[0].tolist() == expected.tolist()


def test_training_is_deterministic_and_learns_frequent_words():
    first, second = tiny_tokenizer(), tiny_tokenizer()
    assert first.to_json() == second.to_json()
    assert first.vocab_size <= 300
    assert len({first.pad_id, first.cls_id, first.mask_id}) == 3
    ids, _ = first.encode("a circle", 50)
    assert [first.word(token) for token in ids] == ["[CLS]", "a", "circle"]
    small = Tokenizer.train(["a"], 64_000)
    assert small.vocab_size < 300  # an upper bound: there is nothing more to merge
    assert small.decode(small.encode("words it has never seen", 99)[0]) == "words it has never seen"


def test_it_travels_in_a_file(tmp_path):
    tokenizer = tiny_tokenizer()
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    again = Tokenizer.load(path)
    assert again.to_json() == tokenizer.to_json()
    for role in ("pad_id", "cls_id", "mask_id", "vocab_size"):
        assert getattr(again, role) == getattr(tokenizer, role)
    for text in (*CAPTIONS, *TRICKY):
        assert again.encode(text, 40)[0].tolist() == tokenizer.encode(text, 40)[0].tolist()


@pytest.mark.parametrize("length", [2, 3, 5, 100])
def test_long_texts_are_cut(length):
    tokenizer = tiny_tokenizer()
    whole, _ = tokenizer.encode(CAPTIONS[1], 1000)
    ids, is_special = tokenizer.encode(CAPTIONS[1], length)
    assert len(ids) == len(is_special) == min(length, len(whole))
    assert ids.tolist() == whole[:length].tolist()


def test_special_tokens_written_in_a_caption_are_plain_text():
    tokenizer = tiny_tokenizer()
    ids, is_special = tokenizer.encode("a [MASK] [PAD] [CLS] circle", 100)
    assert ids[0] == tokenizer.cls_id
    assert not set(ids[1:].tolist()) & {tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id}
    assert is_special.sum() == 1
    assert tokenizer.decode(ids) == "a [mask] [pad] [cls] circle"


def test_word_level_file_with_other_special_names(tmp_path):
    words = {"<pad>": 0, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4, "circle": 5}
    path = save(word_level(words), tmp_path / "words.json")
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.vocab_size) == (0, 2, 3, 6)
    ids, is_special = tokenizer.encode("red green circle", 10)
    assert ids.tolist() == [2, 4, 1, 5]  # it adds no [CLS] by itself: we do
    assert is_special.tolist() == [True, False, False, False]
    assert tokenizer.encode("red green circle", 3)[0].tolist() == [2, 4, 1]


def test_a_file_that_adds_its_own_start_and_end_is_left_to_it(tmp_path):
    words = {"<pad>": 7, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4, "circle": 5, "</s>": 0}
    backend = word_level(words)
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


def test_bert_vocabulary(tmp_path):
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "##s", "cafe"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.vocab_size) == (0, 3, 5, 11)
    ids, is_special = tokenizer.encode("A red Circles café zebra", 20)
    assert [words[token] for token in ids] == ["[CLS]", "a", "red", "circle", "##s", "cafe", "[UNK]", "[SEP]"]
    assert is_special.tolist() == [True, False, False, False, False, False, False, True]
    assert tokenizer.decode(ids) == "a red circles cafe"
    again = tmp_path / "tokenizer.json"
    again.write_text(tokenizer.to_json())
    assert Tokenizer.load(again).encode("a red circles", 20)[0].tolist() == tokenizer.encode("a red circles", 20)[0].tolist()


@pytest.mark.parametrize(("missing", "role"), [("<pad>", "pad"), ("<s>", "cls"), ("<mask>", "mask")])
def test_missing_special_token_is_refused_by_name(tmp_path, missing, role):
    words = {word: i for i, word in enumerate(w for w in ("<pad>", "<unk>", "<s>", "<mask>", "red") if w != missing)}
    path = save(word_level(words), tmp_path / "words.json")
    with pytest.raises(UserError, match=rf"words\.json: the tokenizer has no {role} token \(looked for .*{missing}"):
        Tokenizer.load(path)


def test_a_vocabulary_that_fails_on_unknown_words_is_refused_before_training(tmp_path):
    path = save(word_level({"<pad>": 0, "<s>": 1, "<mask>": 2, "a": 3}, unk="<unk>"), tmp_path / "closed.json")
    with pytest.raises(UserError, match=r"closed\.json: the tokenizer cannot encode unknown words"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"a": 1}'),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("vocab.txt", b"\xff\xfe"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        Tokenizer.load(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(UserError, match="no such tokenizer file"):
            Tokenizer.load(path)


@pytest.mark.parametrize(
    ("text", "like"),
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
def test_masks_stand_where_words_would(text, like):
    """The tokens are those of the text with a word for each mask, as if that word had been masked in training."""
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    (red,) = tokenizer.encode("red", 32)[0][1:]
    ids, is_special, is_masked = tokenizer.encode_with_masks(text, 32)
    expected, expected_special = tokenizer.encode(like, 32)
    np.testing.assert_array_equal(ids, np.where(expected == red, tokenizer.mask_id, expected))
    np.testing.assert_array_equal(is_masked, expected == red)
    np.testing.assert_array_equal(is_special, expected_special)


def test_masks_of_other_tokenizers(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "circle", ",", "-"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    bert = Tokenizer.load(tmp_path / "vocab.txt")
    ids, is_special, is_masked = bert.encode_with_masks("A [MASK]-[MASK], zebra [MASK]", 20)
    assert " ".join(words[token] for token in ids) == "[CLS] a [MASK] - [MASK] , [UNK] [MASK] [SEP]"
    assert is_masked.tolist() == [word == "[MASK]" for word in map(words.__getitem__, ids)]
    assert is_special.nonzero()[0].tolist() == [0, 8]
    assert bert.encode_with_masks("a [MASK] [MASK]", 3)[2].tolist() == [False, False, True]
    names = {"<pad>": 0, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4}
    plain = Tokenizer.load(save(word_level(names), tmp_path / "words.json"))
    assert plain.encode_with_masks("red [MASK] red", 9)[0].tolist() == [2, 4, 3, 4]


def test_spans_point_at_the_characters_of_each_token():
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    text = "Purple triangle, ｒｅｄ heart"
    pieces = [text[start:end].strip() for start, end in tokenizer.spans(text, 32)]
    assert pieces == ["", "Purple", "triangle", ",", "ｒｅｄ", "heart"]
    assert tokenizer.spans(text, 3) == tokenizer.spans(text, 32)[:3]
