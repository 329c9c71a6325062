"""The byte-level BPE that is trained on captions."""

import json
import os
import signal
import threading
import unicodedata

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.synthetic.scenes.rows import ScenePairs
from helpers.tiny_rows import CAPTIONS, tiny_tokenizer
from helpers.tokenizer_files import TRICKY_TEXTS

CJK_TEXTS = (
    "一只黑猫坐在木椅子上",
    "一只白猫坐在木椅子上",
    "一匹の黒い猫が椅子に座っている",
    "海辺で犬と遊ぶ二人の子供",
    "猫 and dog 𠀀𠀁",
)


def is_ideograph(letter: str) -> bool:
    return "CJK UNIFIED" in unicodedata.name(letter)


def test_training_is_deterministic_and_learns_frequent_words():
    first = tiny_tokenizer()
    assert tiny_tokenizer().to_json() == first.to_json()
    assert first.vocab_size <= 300
    assert len({first.pad_id, first.cls_id, first.mask_id}) == 3
    ids, _ = first.encode("a circle", 50)
    assert [first.word(token) for token in ids] == ["[CLS]", "a", "circle"]
    assert first.word(first.backend.get_vocab()["Ġ"]) == "' '"


def test_the_vocabulary_is_no_larger_than_the_merges():
    small = Tokenizer.train(["a"], 64_000)
    assert small.vocab_size < 300
    assert small.decode(small.encode("words it has never seen", 99)[0]) == "words it has never seen"


def test_ctrl_c_interrupts_training():
    has_ended = threading.Event()
    threads = []

    class Captions(list[str]):
        def __iter__(self):
            threads.append(threading.current_thread())
            os.kill(os.getpid(), signal.SIGINT)  # to the process, as a terminal does
            assert has_ended.wait(60)
            return super().__iter__()

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Tokenizer.train(Captions(CAPTIONS), 300)
    finally:
        has_ended.set()
        signal.signal(signal.SIGINT, previous)
    assert threads != [threading.main_thread()]


def test_no_token_holds_two_ideographs():
    """However often captions repeat; decoding gives them back."""
    tokenizer = Tokenizer.train([*CJK_TEXTS, *CAPTIONS] * 20, 2000)
    for text in CJK_TEXTS:
        ids = tokenizer.encode(text, 99)[0]
        assert tokenizer.decode(ids) == text
        words = [tokenizer.word(token) for token in ids[1:]]
        ideographs = [letter for letter in text if is_ideograph(letter)]
        assert len(ideographs) > 2
        assert [word for word in words if is_ideograph(word[0])] == ideographs

    text = CJK_TEXTS[0]
    pieces = [text[start:end] for start, end in tokenizer.spans(text, 99)]
    assert pieces == ["", *text]
    expected = tokenizer.encode(text, 99)[0]
    expected[3] = tokenizer.mask_id
    ids, _, is_masked = tokenizer.encode_with_masks(text.replace("黑", "[MASK]"), 99)
    assert ids.tolist() == expected.tolist()
    assert is_masked.nonzero()[0].tolist() == [3]


def test_texts_without_ideographs_are_those_of_an_ordinary_bpe():
    """Vocabulary and ids are those of a byte-level BPE without the split at ideographs."""
    rows = ScenePairs(split="train", image_size=16)
    captions = [caption for row in range(200) for caption in rows[row].captions]
    captions += [text for text in TRICKY_TEXTS if "日" not in text]
    tokenizer = Tokenizer.train(captions, 700)
    plain = tokenizers.Tokenizer(models.BPE())
    plain.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])  # pyright: ignore
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=700,  # pyright: ignore[reportCallIssue]
        special_tokens=["[PAD]", "[CLS]", "[MASK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(captions, trainer)
    assert tokenizer.backend.get_vocab() == plain.get_vocab()
    for text in (*captions, "ещё naïve 한국어 ไทย"):
        assert tokenizer.encode(text, 999)[0][1:].tolist() == plain.encode(text).ids
    # a file without the split keeps its ids
    old = Tokenizer.from_json(json.dumps(json.loads(plain.to_str())))
    assert old.encode(CJK_TEXTS[0], 99)[0][1:].tolist() == plain.encode(CJK_TEXTS[0]).ids
