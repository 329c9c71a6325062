"""Small tokenizers of several makers, and texts that are hard to tokenize."""

from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from eve_vl.data.tokenizer import Tokenizer

TRICKY_TEXTS = (
    "Café № 5 – ½ ﬁne",
    "ＦＵＬＬ width",
    "日本語 and emoji 🐈\N{ZERO WIDTH JOINER}⬛",
    "tabs\tand\nlines",
    "'quotes' \"and\" #tags",
    "ÅNGSTRÖM",
)
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "##s", ",", "-"]
WORDS = {
    "<pad>": 0,
    "<unk>": 1,
    "<s>": 2,
    "<mask>": 3,
    "red": 4,
    "circle": 5,
}


def word_level(ids: dict[str, int], unk: str | None = "<unk>") -> tokenizers.Tokenizer:
    """A tokenizer of the library that splits at spaces, and adds no [CLS] by itself."""
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=unk))  # pyright: ignore[reportCallIssue]
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def save(backend: tokenizers.Tokenizer, path: Path) -> Path:
    backend.save(str(path))
    return path


def word_level_tokenizer(folder: Path, ids: dict[str, int] = WORDS) -> Tokenizer:
    """Write and load a tokenizer whose special tokens have names other than ours."""
    return Tokenizer.load(save(word_level(ids), folder / "words.json"))


def bert_tokenizer(folder: Path, words: list[str] = BERT_WORDS) -> Tokenizer:
    """Write and load a vocab.txt; its texts end with [SEP]."""
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return Tokenizer.load(folder / "vocab.txt")
