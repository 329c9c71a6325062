"""The tokenizer: round trips, special tokens of several makers, and what it refuses."""

import json
import os
import signal
import threading
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.utils.errors import UserError, explained
from helpers.twins import CAPTIONS, tiny_tokenizer

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
    assert first.word(first.backend.get_vocab()["Ġ"]) == "' '"
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


LONG = (
    " ".join(CAPTIONS) * 30,
    "a" + " \n" * 2000 + "red circle",
    f"see https://example.org/{'a1-' * 90}, a red circle {' heart' * 300}",
    "\ufdfa" * 2000,
    "日本語の説明文。" * 300,
    "a [MASK] red [MASK]-[MASK] " * 200,
)


@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("make", ["bpe", "bert", "words"])
def test_only_the_start_of_a_long_text_is_encoded_and_gives_the_same(text, make, tmp_path):
    """The same as its first tokens, if all of it is encoded."""
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "##a", "circle"])
    )
    save(
        word_level({"<pad>": 0, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4}),
        tmp_path / "words.json",
    )
    tokenizer = (
        tiny_tokenizer()
        if make == "bpe"
        else Tokenizer.load(tmp_path / {"bert": "vocab.txt"}.get(make, "words.json"))
    )
    for length in (3, 12, 40):
        whole = tokenizer.backend.encode(text)
        assert tokenizer.encode(text, length)[0].tolist() == whole.ids[:length]
        assert tokenizer.spans(text, length)[1:] == whole.offsets[1:length]
        assert tokenizer.words(text, length).tolist() == [
            -1 if word is None else word for word in whole.word_ids[:length]
        ]
        for part, of_all in zip(
            tokenizer.encode_with_masks(text, length),
            tokenizer.encode_with_masks(text, 10**9),
            strict=True,
        ):
            np.testing.assert_array_equal(part, of_all[:length])
        if make == "bpe" and " \n" not in text:
            assert tokenizer.encoding(text, length).offsets[-2][1] < len(text)


def test_a_tokenizer_that_trains_hears_of_ctrl_c():
    ended, threads = threading.Event(), []

    class Captions(list[str]):
        def __iter__(self):
            threads.append(threading.current_thread())
            os.kill(os.getpid(), signal.SIGINT)  # to the process, as a terminal does
            assert ended.wait(60)
            return super().__iter__()

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Tokenizer.train(Captions(CAPTIONS), 300)
    finally:
        ended.set()
        signal.signal(signal.SIGINT, previous)
    assert threads != [threading.main_thread()]


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
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.vocab_size) == (
        0,
        2,
        3,
        6,
    )
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
    words = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "circle",
        "##s",
        "cafe",
    ]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.vocab_size) == (
        0,
        3,
        5,
        11,
    )
    ids, is_special = tokenizer.encode("A red Circles café zebra", 20)
    assert [words[token] for token in ids] == [
        "[CLS]",
        "a",
        "red",
        "circle",
        "##s",
        "cafe",
        "[UNK]",
        "[SEP]",
    ]
    assert is_special.tolist() == [True, False, False, False, False, False, False, True]
    assert tokenizer.decode(ids) == "a red circles cafe"
    again = tmp_path / "tokenizer.json"
    again.write_text(tokenizer.to_json())
    assert (
        Tokenizer.load(again).encode("a red circles", 20)[0].tolist()
        == tokenizer.encode("a red circles", 20)[0].tolist()
    )


@pytest.mark.parametrize(
    ("missing", "name"), [("<pad>", "[PAD]"), ("<s>", "[CLS]"), ("<mask>", "[MASK]")]
)
def test_a_missing_special_token_is_added(tmp_path, missing, name):
    words = {
        word: i
        for i, word in enumerate(
            w for w in ("<pad>", "<unk>", "<s>", "<mask>", "red") if w != missing
        )
    }
    tokenizer = Tokenizer.load(save(word_level(words), tmp_path / "words.json"))
    assert tokenizer.added == (name,)
    assert tokenizer.vocab_size == 5
    assert sorted(
        [tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, words["red"], words["<unk>"]]
    ) == [*range(5)]
    assert tokenizer.encode(f"red {name}", 9)[0][:2].tolist() == [tokenizer.cls_id, words["red"]]
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.added == ()
    assert (again.pad_id, again.cls_id, again.mask_id) == (
        tokenizer.pad_id,
        tokenizer.cls_id,
        tokenizer.mask_id,
    )


def test_a_start_and_an_end_of_its_own_stay_behind_our_cls(tmp_path):
    """As CLIP's and GPT-2's tokenizers, which have one special token for everything, are completed."""
    backend = word_level({"<unk>": 0, "<|start|>": 1, "<|end|>": 2, "red": 3})
    backend.add_special_tokens(["<|start|>", "<|end|>"])
    own = processors.RobertaProcessing(
        ("<|end|>", 2), ("<|start|>", 1), trim_offsets=False, add_prefix_space=False
    )
    backend.post_processor = own  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = Tokenizer.load(save(backend, tmp_path / "tokenizer.json"))
    assert tokenizer.added == ("[PAD]", "[CLS]", "[MASK]")
    for again in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        ids, is_special = again.encode("red " * 9, 30)
        assert ids.tolist() == [again.cls_id, 1, *[3] * 9, 2]
        assert is_special.tolist() == [True, True, *[False] * 9, True]
        assert again.encode_with_masks("red [MASK]", 9)[0].tolist() == [
            again.cls_id,
            1,
            3,
            again.mask_id,
            2,
        ]


def test_folders_as_transformers_saves_them(tmp_path):
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "red": 5, "Red": 6}
    backend = tokenizers.BertWordPieceTokenizer(words, lowercase=False)._tokenizer
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", mask_token="[MASK]"
    )
    fast.save_pretrained(tmp_path / "fast")
    assert Tokenizer.load(tmp_path / "fast").encode("Red red", 9)[0].tolist() == [2, 6, 5, 3]
    for name, config, ids in (
        ("old", None, [2, 5, 5, 3]),
        ("cased", {"do_lower_case": False}, [2, 6, 5, 3]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text("\n".join(words) + "\n")
        if config is not None:
            (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
        assert Tokenizer.load(tmp_path / name).encode("Red red", 9)[0].tolist() == ids
    (tmp_path / "cased/tokenizer_config.json").write_text("[")
    with pytest.raises(
        UserError, match=r"cased/tokenizer_config\.json: cannot be read \(not valid JSON"
    ):
        Tokenizer.load(tmp_path / "cased")
    with pytest.raises(UserError, match=r"holds no tokenizer\.json and no vocab\.txt"):
        Tokenizer.load(tmp_path)


def test_ids_that_would_ask_for_huge_tables_are_refused(tmp_path):
    path = save(
        word_level({"<pad>": 0, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4}),
        tmp_path / "words.json",
    )
    text = path.read_text()
    for largest in (2**32 - 1, 5000):
        path.write_text(text.replace('"red": 4', f'"red": {largest}'))
        with pytest.raises(
            UserError, match=rf"the ids of its 5 tokens go up to {largest}, with too many gaps"
        ):
            Tokenizer.load(path)
    words = {"<unk>": 0, "<s>": 1, "red": 3}  # the library would give a second token the id 3
    with pytest.raises(UserError, match="the ids of its 3 tokens go up to 3, with too many gaps"):
        Tokenizer.load(save(word_level(words), tmp_path / "words.json"))


def test_a_panic_of_the_library_is_a_user_error(tmp_path):
    values = json.loads(tiny_tokenizer().to_json())
    values["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(
        UserError,
        match=r"tokenizer\.json: not a tokenizer\.json or BERT vocab\.txt \(PanicException: Precompiled: .*charsmap",
    ):
        Tokenizer.load(tmp_path / "tokenizer.json")


def changed(path: Path, **parts: object) -> Path:
    """A tokenizer.json with other parts."""
    path.write_text(json.dumps(json.loads(tiny_tokenizer().to_json()) | parts))
    return path


def test_a_template_with_an_id_beyond_the_vocabulary_is_refused(tmp_path):
    template = json.loads(tiny_tokenizer().to_json())["post_processor"]
    for ids in ([1, 2**32 - 1], [300]):
        template["special_tokens"]["[CLS]"] |= {"ids": ids, "tokens": ["[CLS]"] * len(ids)}
        path = changed(tmp_path / "tokenizer.json", post_processor=template)
        with pytest.raises(
            UserError,
            match=rf"json: its post_processor adds token id {ids[-1]}, beyond the last one, 299",
        ):
            Tokenizer.load(path)


def test_a_normalizer_that_panics_is_a_user_error(tmp_path):
    pattern = {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": ""}
    tokenizer = Tokenizer.load(changed(tmp_path / "tokenizer.json", normalizer=pattern))
    text = "a" * 100 + "b"
    for call in (tokenizer.encode, tokenizer.words, tokenizer.spans, tokenizer.encode_with_masks):
        with pytest.raises(UserError, match=rf"tokenizer\.json: cannot encode '{text[:80]}' \("):
            call(text, 20)


# Scripts without spaces

CJK = (
    "一只黑猫坐在木椅子上",
    "一只白猫坐在木椅子上",
    "一匹の黒い猫が椅子に座っている",
    "海辺で犬と遊ぶ二人の子供",
    "猫 and dog 𠀀𠀁",
)


def test_ideographs_are_split():
    """However often captions repeat, no token holds two ideographs, and decoding gives them back."""
    tokenizer = Tokenizer.train([*CJK, *CAPTIONS] * 20, 2000)
    for text in CJK:
        ids = tokenizer.encode(text, 99)[0]
        assert tokenizer.decode(ids) == text
        words = [tokenizer.word(token) for token in ids[1:]]
        ideographs = [letter for letter in text if "CJK UNIFIED" in unicodedata.name(letter)]
        assert len(ideographs) > 2
        assert [word for word in words if "CJK UNIFIED" in unicodedata.name(word[0])] == ideographs
    assert "ている" in "".join(tokenizer.word(token) for token in tokenizer.encode(CJK[2], 99)[0])
    pieces = [CJK[0][start:end] for start, end in tokenizer.spans(CJK[0], 99)]
    assert pieces == ["", *CJK[0]]


def test_a_mask_among_ideographs_stands_for_one():
    tokenizer = Tokenizer.train([*CJK, *CAPTIONS] * 20, 2000)
    expected = tokenizer.encode(CJK[0], 99)[0]
    ids, _, is_masked = tokenizer.encode_with_masks(CJK[0].replace("黑", "[MASK]"), 99)
    assert is_masked.nonzero()[0].tolist() == [3]
    expected[3] = tokenizer.mask_id
    assert ids.tolist() == expected.tolist()


def test_other_scripts_are_split_as_before():
    """The vocabulary and the ids of texts without ideographs are those of a byte-level BPE without the split."""
    captions = [
        caption
        for row in range(200)
        for caption in ScenePairs(split="train", image_size=16)[row].captions
    ]
    captions += [text for text in TRICKY if "日" not in text]
    tokenizer = Tokenizer.train(captions, 700)
    plain = tokenizers.Tokenizer(models.BPE())
    plain.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])  # pyright: ignore
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore[reportAttributeAccessIssue]
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["[PAD]", "[CLS]", "[MASK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )  # pyright: ignore
    plain.train_from_iterator(captions, trainer)
    assert tokenizer.backend.get_vocab() == plain.get_vocab()
    for text in (*captions, "ещё naïve 한국어 ไทย"):
        assert tokenizer.encode(text, 999)[0][1:].tolist() == plain.encode(text).ids
    old = json.loads(plain.to_str())  # a file of before the split gives the ids that it gave
    assert (
        Tokenizer.from_json(json.dumps(old)).encode(CJK[0], 99)[0][1:].tolist()
        == plain.encode(CJK[0]).ids
    )


# Whatever a file holds

VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    2**32 - 1,
    2**64,
    "",
    "\ud800",
    "x" * 999,
    "(",
    "AAAA",
    [],
    {},
    [[]],
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as keys and indices."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, each in items for place in places(each, (*path, key)))]


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_file_is_a_tokenizer_or_an_error_of_the_user(data, tmp_path_factory):
    backend = word_level({"<pad>": 0, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4})
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("a", "b")])  # pyright: ignore
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )  # pyright: ignore
    value = json.loads(backend.to_str())
    for _ in range(data.draw(st.integers(0, 3))):
        *path, last = data.draw(st.sampled_from(places(value)[1:]))
        parent = value
        for key in path:
            parent = parent[key]
        parent[last] = data.draw(st.sampled_from(VALUES))
        value = json.loads(json.dumps(value))
    content = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content[: data.draw(st.sampled_from([None, None, 50, 500]))])
    try:
        tokenizer = Tokenizer.load(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        return
    assert tokenizer.vocab_size < 3000
    for text in ("a red [MASK] circle 日本", "x"):
        assert tokenizer.encode(text, 20)[0][0] == tokenizer.cls_id
        tokenizer.encode_with_masks(text, 20)


def test_a_vocabulary_that_fails_on_unknown_words_is_refused_before_training(tmp_path):
    path = save(
        word_level({"<pad>": 0, "<s>": 1, "<mask>": 2, "a": 3}, unk="<unk>"),
        tmp_path / "closed.json",
    )
    with pytest.raises(UserError, match=r"closed\.json: the tokenizer cannot encode unknown words"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"a": 1}'),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b"[" * 99_999),
        ("tokenizer.json", b'{"model": ' * 9999),
        ("vocab.txt", b"\xff\xfe"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        Tokenizer.load(path)


def test_missing_files_are_refused(tmp_path):
    for name in ("nothing.json", "n" * 300, "\ud800", "a\0b"):
        with pytest.raises(UserError, match=r": cannot be read \("):
            Tokenizer.load(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="is not an ordinary file"):
        Tokenizer.load(tmp_path / "pipe.json")


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


def test_masks_need_a_letter_that_the_text_lacks():
    with pytest.raises(UserError, match="all letters of the Vai script"):
        tiny_tokenizer().encode_with_masks("".join(map(chr, range(0xA500, 0xA600))) + "[MASK]", 9)


def test_spans_point_at_the_characters_of_each_token():
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    text = "Purple triangle, ｒｅｄ heart"
    pieces = [text[start:end].strip() for start, end in tokenizer.spans(text, 32)]
    assert pieces == ["", "Purple", "triangle", ",", "ｒｅｄ", "heart"]
    assert tokenizer.spans(text, 3) == tokenizer.spans(text, 32)[:3]


def test_loading_a_tokenizer_leaves_the_stderr_of_other_threads_alone(capfd):
    with explained("t.json: broken", BaseException):  # what loading runs in
        os.write(2, b"from another thread")
    assert capfd.readouterr().err == "from another thread"
