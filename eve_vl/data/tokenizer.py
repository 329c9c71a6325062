"""The tokenizer of a run: text to token ids, words, masks and spans, and back.

Special ids always come from the tokenizer; no other file has such a number.
"""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Regex, normalizers, processors
from tokenizers import Tokenizer as Backend

from eve_vl.data.bert_vocabulary import wordpiece_tokenizer
from eve_vl.data.byte_level_bpe import train_byte_level_bpe
from eve_vl.utils.errors import UserError, explained
from eve_vl.utils.file_io import read_json, read_text

MASK_TEXT = "[MASK]"  # how users write a masked word, for any tokenizer
# tokens encoded beyond the limit, more than a usual word has: cutting a text changes its last word
SPARE = 32
SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Names of each special token; the first is ours."""
OUR_NAMES = [names[0] for names in SPECIAL_NAMES.values()]
PROBE = "a \N{SNOWMAN} zqxj " * 8

_RARE_LETTERS = range(0xA500, 0xA600)  # Vai: no capitals, and unchanged by normalisation
_WORD = r"[^\W_\u3400-\u9fff]"  # a letter or digit that joins adjacent words; ideographs do not


class Token(NamedTuple):
    """A token of a text with masks."""

    token_id: int
    is_special: int
    is_mask: bool


class Tokenizer:
    """A tokenizer with three special tokens: padding, [CLS] and [MASK].

    ends: [CLS] is not before a text but after it, perhaps under another name, and a text that is
    cut keeps it.
    """

    def __init__(self, backend: Backend, where: str, *, ends: bool = False):
        self.backend = backend
        self.where = where
        self._add_special_tokens()
        with explained(f"{where}: the tokenizer cannot encode unknown words", BaseException):
            self._add_cls_to_texts(ends)
            ids = backend.encode(PROBE).ids
        self.end_id: int | None = None
        if ends:
            self.end_id = ids[-1]
            self.cls_id = ids[-1]
        if max(ids) >= self.vocab_size:
            raise UserError(
                f"{where}: its post_processor adds token id {max(ids)}, beyond the last one,"
                f" {self.vocab_size - 1}"
            )

    def _add_special_tokens(self) -> None:
        """Add missing special tokens; note all ids. Raises UserError if ids have large gaps."""
        backend = self.backend
        with explained(f"{self.where}: the tokenizer cannot be used", BaseException):
            backend.no_padding()
            backend.no_truncation()
            backend.encode_special_tokens = True  # "[MASK]" in a caption is ordinary text
            vocab_before = backend.get_vocab(with_added_tokens=True)
            missing = []
            for names in SPECIAL_NAMES.values():
                if vocab_before.keys().isdisjoint(names):
                    missing.append(names[0])
            self.added = tuple(missing)
            backend.add_special_tokens(missing)
            vocab = backend.get_vocab(with_added_tokens=True)

        self.pad_id = _first_id(vocab, SPECIAL_NAMES["pad"])
        self.cls_id = _first_id(vocab, SPECIAL_NAMES["cls"])
        self.mask_id = _first_id(vocab, SPECIAL_NAMES["mask"])
        # ids may have gaps, each of which costs a row of every table
        self.vocab_size = max(vocab.values()) + 1
        added_ids = {vocab[name] for name in self.added}
        is_reused = not added_ids.isdisjoint(vocab_before.values())
        if self.vocab_size > 2 * len(vocab) + 1000 or is_reused:
            raise UserError(
                f"{self.where}: the ids of its {len(vocab_before)} tokens go up to"
                f" {max(vocab_before.values())}, with too many gaps"
            )

    def _add_cls_to_texts(self, ends: bool) -> None:
        """Let the backend put [CLS] before or after each text, unless it does so already."""
        probe = self.backend.encode(PROBE)
        has_cls = probe.special_tokens_mask[-1] if ends else probe.ids[0] == self.cls_id
        if has_cls:
            return
        cls_name = self.backend.id_to_token(self.cls_id)
        template = processors.TemplateProcessing(
            single=f"$A {cls_name}" if ends else f"{cls_name} $A",
            special_tokens=[(cls_name, self.cls_id)],
        )
        processor = self.backend.post_processor
        if processor is None:
            self.backend.post_processor = template
        else:
            self.backend.post_processor = processors.Sequence([processor, template])

    # Reading, training and writing

    @classmethod
    def load(cls, path: Path, *, ends: bool = False) -> "Tokenizer":
        """Read a tokenizer.json, a BERT vocab.txt or a folder with one of them.

        Missing special tokens are `added`. Raises UserError if it is missing or broken.
        """
        is_lower = True
        if os.path.isdir(path):  # noqa: PTH112 (False for impossible names)
            config = path / "tokenizer_config.json"
            file = _file_in(path)
            if config.is_file():
                is_lower = read_json(config, dict).get("do_lower_case") is not False
            path = file
        text = read_text(path)
        with explained(f"{path}: not a tokenizer.json or BERT vocab.txt", BaseException):
            if path.suffix == ".txt":
                backend = wordpiece_tokenizer(text, is_lower)
            else:
                backend = Backend.from_str(text)
            return cls(backend, str(path), ends=ends)

    @classmethod
    def from_json(cls, text: str, *, ends: bool = False) -> "Tokenizer":
        """Undo `to_json`."""
        with explained("tokenizer: not a tokenizer.json", BaseException):
            return cls(Backend.from_str(text), "tokenizer", ends=ends)

    def to_json(self) -> str:
        """Return the content of a tokenizer.json."""
        return self.backend.to_str(pretty=True)

    @classmethod
    def train(cls, captions: Collection[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE on captions. vocab_size: an upper bound."""
        backend = train_byte_level_bpe(captions, vocab_size, OUR_NAMES)
        return cls(backend, "the trained tokenizer")

    def clean_as_published(self, num_words: int) -> None:
        """Clean every text first as the published EVE cleans captions.

        The tokenizer's file keeps this. Lower case, no punctuation, - and / as spaces, single
        spaces, the first num_words words.
        """
        steps: list[Any] = [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"""[,.'!?"()*#:;~`]"""), ""),
            normalizers.Replace(Regex("[-/]"), " "),
            normalizers.Replace("<person>", "person"),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(r"^\s+|\s+$"), ""),
            normalizers.Replace(Regex(rf"^(?:[^ ]+ ){{{num_words - 1}}}[^ ]+\K .*"), ""),
        ]
        if self.backend.normalizer:
            steps.append(self.backend.normalizer)
        self.backend.normalizer = normalizers.Sequence(steps)

    # Encoding

    def encoding(self, text: str, max_length: int) -> Encoding:
        """Encode the start of a text, long enough for `max_length` tokens.

        Every text passes here, so that the cost of a long one is bounded. Raises UserError.
        """
        num_tokens = max_length + SPARE
        num_letters = 4 * num_tokens  # most texts are shorter
        with explained(f"{self.where}: cannot encode {text[:80]!r}", BaseException):
            while True:
                encoding = self.backend.encode(text[:num_letters])
                if len(encoding) >= num_tokens or num_letters >= len(text):
                    return encoding
                num_letters *= 2

    def cut(self, values: list[Any], max_length: int, end_value: Any) -> list[Any]:
        """Return the values of the first tokens, with the end token's if texts keep it."""
        if self.end_id is None or len(values) <= max_length:
            return values[:max_length]
        return [*values[: max_length - 1], end_value]

    def encode(self, text: str, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids, int64 (T,), [CLS] first, and which are special, bool (T,).

        T ≤ max_length.
        """
        encoding = self.encoding(text, max_length)
        ids = self.cut(encoding.ids, max_length, self.end_id)
        is_special = self.cut(encoding.special_tokens_mask, max_length, 1)
        return np.array(ids), np.array(is_special, dtype=bool)

    def words(self, text: str, max_length: int) -> np.ndarray:
        """Return the word of each token of `encode`, int64 (T,); -1: none.

        Words are as the tokenizer splits texts.
        """
        words = self.cut(self.encoding(text, max_length).word_ids, max_length, None)
        return np.array([-1 if word is None else word for word in words])

    def spans(self, text: str, max_length: int) -> list[tuple[int, int]]:
        """Return the characters of each token of `encode`: first and end; special: empty."""
        encoding = self.encoding(text, max_length)
        spans = []
        for span, is_special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
            spans.append((0, 0) if is_special else span)
        return self.cut(spans, max_length, (0, 0))

    def encode_with_masks(
        self, text: str, max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids and specials as `encode` does, and which are masks.

        Each "[MASK]" in the text becomes one mask token. A letter that the text does not have
        replaces each "[MASK]", so that the words around it are tokenised as usual.
        """
        letter = _unused_letter(text)
        touches_word = rf"(?<={letter})(?={_WORD})|(?<={_WORD})(?={letter})"
        spaced = re.sub(touches_word, " ", text.replace(MASK_TEXT, letter))
        encoding = self.encoding(spaced, 4 * max_length)  # a mask's letter is up to four tokens
        tokens = self._tokens_with_masks(encoding, spaced, letter)
        tokens = self.cut(tokens, max_length, Token(self.end_id or 0, 1, False))
        ids, is_special, is_masked = zip(*tokens, strict=True)
        return np.array(ids), np.array(is_special, dtype=bool), np.array(is_masked)

    def _tokens_with_masks(self, encoding: Encoding, text: str, letter: str) -> list[Token]:
        """Return the tokens of a text, with one mask token for each occurrence of a letter."""
        has_letter = [letter in text[start:end] for start, end in encoding.offsets]
        words_of_letters = set()
        for word, is_letter in zip(encoding.word_ids, has_letter, strict=True):
            if is_letter:
                words_of_letters.add(word)

        tokens = []
        last_place = None  # of the previous mask's letter
        columns = (encoding.ids, encoding.special_tokens_mask, encoding.offsets, encoding.word_ids)
        for (token_id, is_special, (start, end), word), is_letter in zip(
            zip(*columns, strict=True), has_letter, strict=True
        ):
            if is_letter:
                place = text.index(letter, start)
                if place != last_place:
                    tokens.append(Token(self.mask_id, 0, True))
                last_place = place
                continue
            is_blank = not text[start:end].strip()
            if is_blank and word in words_of_letters:
                continue  # a space before the letter belongs to it
            tokens.append(Token(token_id, is_special, False))
        return tokens

    # Decoding

    def decode(self, ids: Iterable[int]) -> str:
        """Return text, special tokens left out."""
        return self.backend.decode(list(ids)).strip()

    def word(self, token_id: int) -> str:
        """Return one token as readable text, special ones in brackets."""
        text = self.backend.decode([token_id], skip_special_tokens=False)
        if text.strip():
            return text.strip()
        return repr(text or self.backend.id_to_token(token_id))  # a single space, not Ġ


def _first_id(vocab: dict[str, int], names: Iterable[str]) -> int:
    return next(vocab[name] for name in names if name in vocab)


def _file_in(folder: Path) -> Path:
    """Return the tokenizer in a folder. Raises UserError if there is none."""
    for name in ("tokenizer.json", "vocab.txt"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: holds no tokenizer.json and no vocab.txt, as fast tokenizers of transformers do"
    )


def _unused_letter(text: str) -> str:
    """Return a letter that a text does not have. Raises UserError."""
    for code in _RARE_LETTERS:
        if chr(code) not in text:
            return chr(code)
    raise UserError("the text has all letters of the Vai script; leave one out")
