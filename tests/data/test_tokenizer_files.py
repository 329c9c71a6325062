"""Files of tokenizers: what is read, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import tokenizers
import transformers

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import UserError, explained
from helpers.tiny_rows import CAPTIONS, tiny_tokenizer
from helpers.tokenizer_files import TRICKY_TEXTS, WORDS, bert_tokenizer, save, word_level


def assert_refused(message: str, path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Tokenizer.load(path)


def test_a_written_tokenizer_is_read_again(tmp_path):
    tokenizer = tiny_tokenizer()
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    again = Tokenizer.load(path)
    assert again.to_json() == tokenizer.to_json()
    for attribute in ("pad_id", "cls_id", "mask_id", "vocab_size"):
        assert getattr(again, attribute) == getattr(tokenizer, attribute)
    for text in (*CAPTIONS, *TRICKY_TEXTS):
        assert again.encode(text, 40)[0].tolist() == tokenizer.encode(text, 40)[0].tolist()


def test_bert_vocabulary(tmp_path):
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["a", "red", "circle", "##s", "cafe"]
    tokenizer = bert_tokenizer(tmp_path, words)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id) == (0, 3, 5)
    assert tokenizer.vocab_size == 11
    text = "A red Circles café zebra"
    ids, is_special = tokenizer.encode(text, 20)
    expected = "[CLS] a red circle ##s cafe [UNK] [SEP]"
    assert " ".join(words[token] for token in ids) == expected
    assert is_special.nonzero()[0].tolist() == [0, 7]
    assert tokenizer.decode(ids) == "a red circles cafe"
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.encode(text, 20)[0].tolist() == ids.tolist()


def test_folders_as_transformers_saves_them(tmp_path):
    words = {
        "[PAD]": 0,
        "[UNK]": 1,
        "[CLS]": 2,
        "[SEP]": 3,
        "[MASK]": 4,
        "red": 5,
        "Red": 6,
    }
    backend = tokenizers.BertWordPieceTokenizer(words, lowercase=False)._tokenizer
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", mask_token="[MASK]"
    )
    fast.save_pretrained(tmp_path / "fast")
    assert Tokenizer.load(tmp_path / "fast").encode("Red red", 9)[0].tolist() == [2, 6, 5, 3]
    folder = tmp_path / "slow"
    folder.mkdir()
    assert bert_tokenizer(folder, [*words]).encode("Red red", 9)[0].tolist() == [2, 5, 5, 3]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(folder).encode("Red red", 9)[0].tolist() == [2, 6, 5, 3]
    (folder / "tokenizer_config.json").write_text("[")
    problem = r"slow/tokenizer_config\.json: cannot be read \(not valid JSON"
    assert_refused(problem, folder)
    assert_refused(r"holds no tokenizer\.json and no vocab\.txt", tmp_path)


@pytest.mark.parametrize(
    ("ids", "largest"),
    [
        (WORDS | {"red": 2**32 - 1}, 2**32 - 1),
        (WORDS | {"red": 5000}, 5000),
        ({"<unk>": 0, "<s>": 1, "red": 3}, 3),  # the library would give a second token the id 3
    ],
)
def test_ids_that_need_huge_tables_are_refused(tmp_path, ids, largest):
    path = save(word_level(ids | {"red": 99}), tmp_path / "words.json")
    path.write_text(path.read_text().replace('"red": 99', f'"red": {largest}'))
    problem = f"the ids of its {len(ids)} tokens go up to {largest}, with too many gaps"
    assert_refused(problem, path)


def test_a_vocabulary_that_fails_on_unknown_words_is_refused(tmp_path):
    ids = {
        "<pad>": 0,
        "<s>": 1,
        "<mask>": 2,
        "a": 3,
    }
    path = save(word_level(ids), tmp_path / "closed.json")
    assert_refused(r"closed\.json: the tokenizer cannot encode unknown words", path)


def write_changed(path: Path, **parts: object) -> Path:
    """Write the file of a tokenizer with other parts."""
    path.write_text(json.dumps(json.loads(tiny_tokenizer().to_json()) | parts))
    return path


@pytest.mark.parametrize("ids", [[1, 2**32 - 1], [300]])
def test_a_template_with_an_id_beyond_the_vocabulary_is_refused(tmp_path, ids):
    template = json.loads(tiny_tokenizer().to_json())["post_processor"]
    template["special_tokens"]["[CLS]"] |= {"ids": ids, "tokens": ["[CLS]"] * len(ids)}
    path = write_changed(tmp_path / "tokenizer.json", post_processor=template)
    problem = f"json: its post_processor adds token id {ids[-1]}, beyond the last one, 299"
    assert_refused(problem, path)


def test_panics_of_the_library_are_errors_of_the_user(tmp_path):
    path = tmp_path / "tokenizer.json"
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    problem = (
        r"tokenizer\.json: not a tokenizer\.json or BERT vocab\.txt"
        r" \(PanicException: Precompiled: .*charsmap"
    )
    assert_refused(problem, write_changed(path, normalizer=charsmap))
    pattern = {
        "type": "Replace",
        "pattern": {"Regex": "(a|aa)+$"},
        "content": "",
    }
    tokenizer = Tokenizer.load(write_changed(path, normalizer=pattern))
    text = "a" * 100 + "b"
    with pytest.raises(UserError, match=rf"tokenizer\.json: cannot encode '{text[:80]}' \("):
        tokenizer.encode(text, 20)


def test_loading_leaves_the_stderr_of_other_threads_alone(capfd):
    with explained("t.json: broken", BaseException):  # what loading runs in
        os.write(2, b"from another thread")
    assert capfd.readouterr().err == "from another thread"


def test_broken_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content in (b"{", b'{"a": 1}', b"\xff\xfe\x00", b"[" * 99_999, b'{"model": ' * 9999):
        path.write_bytes(content)
        assert_refused(r"tokenizer\.json", path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    assert_refused(r"vocab\.txt", tmp_path / "vocab.txt")
    for name in ("nothing.json", "n" * 300, "\ud800", "a\0b"):
        assert_refused(r": cannot be read \(", tmp_path / name)
    os.mkfifo(tmp_path / "pipe.json")
    assert_refused("is not an ordinary file", tmp_path / "pipe.json")
