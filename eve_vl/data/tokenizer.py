"""Tokenizers: a byte-level BPE trained here, any tokenizer.json or BERT vocab.txt.

Special ids always come from the tokenizer; no other file has such a number.
"""

import os
import re
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import (
    Encoding,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from eve_vl.utils.console import CONSOLE
from eve_vl.utils.errors import UserError, explained
from eve_vl.utils.file_io import read_bytes, read_json, read_text

MASK_TEXT = "[MASK]"  # how users write a masked word, for any tokenizer
SPARE = 32  # tokens encoded beyond the wanted ones, more than a usual word has: cutting a text changes its last word
SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "mask": ("[MASK]", "<mask>"),
}

START, END = "<|startoftext|>", "<|endoftext|>"  # of CLIP's texts
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PROBE = "a \N{SNOWMAN} zqxj " * 8
_BYTE = "[\u0122-\u0143\u00a1-\u00bf]"  # bytes 80 to BF, as a byte-level tokenizer writes them
# UTF-8 of U+3400 to U+9FFF and of planes 2 and 3, and the space before
IDEOGRAPH = f"\u0120?(?:ã[\u0132-\u0143\u00a1-\u00bf]|[ä-é]{_BYTE}|ð[\u0142\u0143\u00a1-\u00b3]{_BYTE}){_BYTE}"
_RARE_LETTERS = range(0xA500, 0xA600)  # Vai: no capitals, and unchanged by normalisation
_WORD = r"[^\W_\u3400-\u9fff]"  # a letter or digit that joins adjacent words; ideographs do not


class Tokenizer:
    """A tokenizer with three special tokens: padding, [CLS] and [MASK].

    ends: [CLS] is not before a text but after it, perhaps under another name, and a text that is cut keeps it.
    """

    def __init__(self, backend: Backend, where: str, *, ends: bool = False):
        self.backend, self.where = backend, where
        with explained(f"{where}: the tokenizer cannot be used", BaseException):
            backend.no_padding()
            backend.no_truncation()
            backend.encode_special_tokens = True  # "[MASK]" in a caption is ordinary text
            before = backend.get_vocab(with_added_tokens=True)
            self.added = tuple(
                names[0] for names in SPECIAL_NAMES.values() if before.keys().isdisjoint(names)
            )
            backend.add_special_tokens(list(self.added))
            vocab = backend.get_vocab(with_added_tokens=True)
        special_ids = (
            next(vocab[name] for name in names if name in vocab) for names in SPECIAL_NAMES.values()
        )
        self.pad_id, self.cls_id, self.mask_id = special_ids
        self.vocab_size = 1 + max(
            vocab.values()
        )  # ids may have gaps, each of which costs a row of every table
        if self.vocab_size > 2 * len(vocab) + 1000 or {vocab[name] for name in self.added} & {
            *before.values()
        }:
            raise UserError(
                f"{where}: the ids of its {len(before)} tokens go up to {max(before.values())}, with too many gaps"
            )
        with explained(f"{where}: the tokenizer cannot encode unknown words", BaseException):
            probe = backend.encode(PROBE)
            if not (probe.special_tokens_mask[-1] if ends else probe.ids[0] == self.cls_id):
                name = backend.id_to_token(self.cls_id)
                single = f"$A {name}" if ends else f"{name} $A"
                added = processors.TemplateProcessing(
                    single=single, special_tokens=[(name, self.cls_id)]
                )
                own = backend.post_processor
                backend.post_processor = added if own is None else processors.Sequence([own, added])
            ids = backend.encode(PROBE).ids
        self.end_id: int | None = ids[-1] if ends else None
        self.cls_id = ids[-1] if ends else self.cls_id
        if max(ids) >= self.vocab_size:
            raise UserError(
                f"{where}: its post_processor adds token id {max(ids)}, beyond the last one, {self.vocab_size - 1}"
            )

    @classmethod
    def load(cls, path: Path, *, ends: bool = False) -> "Tokenizer":
        """Read a tokenizer.json, a BERT vocab.txt or a folder with one of them.

        Missing special tokens are `added`. Raises UserError if it is missing or broken.
        """
        is_lower = True
        if os.path.isdir(path):  # noqa: PTH112 (False for impossible names)
            if not (
                found := [
                    file
                    for name in ("tokenizer.json", "vocab.txt")
                    if (file := path / name).is_file()
                ]
            ):
                raise UserError(
                    f"{path}: holds no tokenizer.json and no vocab.txt, as fast tokenizers of transformers do"
                )
            if (config := path / "tokenizer_config.json").is_file():
                is_lower = read_json(config, dict).get("do_lower_case") is not False
            path = found[0]
        text = read_text(path)
        with explained(f"{path}: not a tokenizer.json or BERT vocab.txt", BaseException):
            backend = _bert(text, is_lower) if path.suffix == ".txt" else Backend.from_str(text)
            return cls(backend, str(path), ends=ends)

    @classmethod
    def from_json(cls, text: str, *, ends: bool = False) -> "Tokenizer":
        """Undo `to_json`."""
        with explained("tokenizer: not a tokenizer.json", BaseException):
            return cls(Backend.from_str(text), "tokenizer", ends=ends)

    @classmethod
    def train(cls, captions: Collection[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE on captions, lower-cased and NFKC-normalised.

        vocab_size: an upper bound. No token has more than one ideograph: Chinese and Japanese have no spaces, and a
        whole caption would become one.
        """
        backend = Backend(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        by_words = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [by_words, pre_tokenizers.Split(Regex(IDEOGRAPH), "isolated")]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[names[0] for names in SPECIAL_NAMES.values()],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=CONSOLE.is_terminal,
        )
        result: Future[None] = Future()

        def work() -> None:
            try:
                result.set_result(
                    backend.train_from_iterator(captions, trainer, length=len(captions))
                )
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(
            target=work, daemon=True
        ).start()  # in this thread, Ctrl-C would wait for the library's end
        result.result()
        return cls(backend, "the trained tokenizer")

    def clean_as_published(self, num_words: int) -> None:
        """Clean every text first as the published EVE cleans captions.

        The tokenizer's file keeps this. Lower case, no punctuation, - and / as spaces, single spaces, the first
        num_words words.
        """
        own = self.backend.normalizer
        cleaning = [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"""[,.'!?"()*#:;~`]"""), ""),
            normalizers.Replace(Regex("[-/]"), " "),
            normalizers.Replace("<person>", "person"),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(r"^\s+|\s+$"), ""),
            normalizers.Replace(Regex(rf"^(?:[^ ]+ ){{{num_words - 1}}}[^ ]+\K .*"), ""),
        ]
        self.backend.normalizer = normalizers.Sequence([*cleaning, *([own] if own else [])])

    def encoding(self, text: str, max_length: int) -> Encoding:
        """Encode the start of a text, long enough for `max_length` tokens.

        Every text passes here, so that the cost of a long one is bounded. Raises UserError.
        """
        size = 4 * (max_length + SPARE)  # characters; most texts are shorter
        with explained(f"{self.where}: cannot encode {text[:80]!r}", BaseException):
            while len(
                encoding := self.backend.encode(text[:size])
            ) < max_length + SPARE and size < len(text):
                size *= 2
            return encoding

    def encode(self, text: str, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids, int64 (T,), [CLS] first, and which are special, bool (T,).

        T ≤ max_length.
        """
        encoding = self.encoding(text, max_length)
        special = self.cut(encoding.special_tokens_mask, max_length, 1)
        return np.array(self.cut(encoding.ids, max_length, self.end_id)), np.array(
            special, dtype=bool
        )

    def cut(self, values: list[Any], max_length: int, of_end: Any) -> list[Any]:
        """Return the values of the first tokens, with the end token's if texts keep it."""
        is_cut = self.end_id is not None and len(values) > max_length
        return [*values[: max_length - 1], of_end] if is_cut else values[:max_length]

    def words(self, text: str, max_length: int) -> np.ndarray:
        """Return the word of each token of `encode`, int64 (T,); -1: none.

        Words are as the tokenizer splits texts.
        """
        words = self.cut(self.encoding(text, max_length).word_ids, max_length, None)
        return np.array([-1 if word is None else word for word in words])

    def encode_with_masks(
        self, text: str, max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids and specials as `encode` does, and which are masks.

        Each "[MASK]" in the text becomes one mask token. A letter that the text does not have replaces each "[MASK]",
        so that the words around it are tokenised as usual.
        """
        if (
            letter := next((chr(code) for code in _RARE_LETTERS if chr(code) not in text), None)
        ) is None:
            raise UserError("the text has all letters of the Vai script; leave one out")
        adjacent = rf"(?<={letter})(?={_WORD})|(?<={_WORD})(?={letter})"
        spaced = re.sub(adjacent, " ", text.replace(MASK_TEXT, letter))
        encoding = self.encoding(spaced, 4 * max_length)  # a mask's letter is up to four tokens
        tokens = zip(
            encoding.ids,
            encoding.special_tokens_mask,
            encoding.offsets,
            encoding.word_ids,
            strict=True,
        )
        is_letter = [letter in spaced[start:end] for start, end in encoding.offsets]
        words = {word for word, is_it in zip(encoding.word_ids, is_letter, strict=True) if is_it}
        kept: list[tuple[int, int, bool]] = []
        last = None  # position of the previous mask's letter
        for (token, special, (start, end), word), is_it in zip(tokens, is_letter, strict=True):
            if is_it:
                place = spaced.index(letter, start)
                if place != last:
                    kept.append((self.mask_id, 0, True))
                last = place
            elif (
                word not in words or spaced[start:end].strip()
            ):  # a space before the letter belongs to it
                kept.append((token, special, False))
        ids, special, is_masked = zip(
            *self.cut(kept, max_length, (self.end_id, 1, False)), strict=True
        )
        return np.array(ids), np.array(special, dtype=bool), np.array(is_masked)

    def spans(self, text: str, max_length: int) -> list[tuple[int, int]]:
        """Return the characters of each token of `encode`: first and end; special: empty."""
        encoding = self.encoding(text, max_length)
        tokens = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        return self.cut(
            [(0, 0) if special else span for span, special in tokens], max_length, (0, 0)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return text, special tokens left out."""
        return self.backend.decode(list(ids)).strip()

    def word(self, token_id: int) -> str:
        """Return one token as readable text, special ones in brackets."""
        text = self.backend.decode([token_id], skip_special_tokens=False)
        return text.strip() or repr(
            text or self.backend.id_to_token(token_id)
        )  # a single space, not Ġ

    def to_json(self) -> str:
        """Return the content of a tokenizer.json."""
        return self.backend.to_str(pretty=True)


def _bert(text: str, is_lower: bool) -> Backend:
    """Build the usual WordPiece tokenizer from a BERT vocab.txt, one token per line."""
    vocab = {
        line.rstrip(): number for number, line in enumerate(text.removesuffix("\n").split("\n"))
    }
    backend = tokenizers.BertWordPieceTokenizer(vocab, lowercase=is_lower)._tokenizer
    # the file lists special tokens as ordinary ones; declare them for masks and decoding
    backend.add_special_tokens(
        [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocab]
    )
    return backend


def read_published(path: Path, *, is_siglip: bool, cleans: bool) -> tuple[Tokenizer, int]:
    """Return the tokenizer of a published CLIP or SigLIP, and its filling token.

    Raises UserError. path: a file, or a folder with a spiece.model (SigLIP), a tokenizer.json, or CLIP's vocab.json and
    merges.txt. cleans: without punctuation, as SigLIP's own tokenizer does in any case.
    """
    folder = path if path.is_dir() else path.parent
    names = ("spiece.model", "tokenizer.json", "vocab.json") if path.is_dir() else (path.name,)
    if (file := next((each for name in names if (each := folder / name).is_file()), None)) is None:
        raise UserError(
            f"{path}: holds no tokenizer ({', '.join(names)}); name the file with --tokenizer"
        )
    try:
        backend = (
            _of_pieces(file)
            if file.suffix == ".model"
            else _of_merges(file)
            if file.name == "vocab.json"
            else None
        )
        backend = backend or Backend.from_str(read_text(file))
    except ModuleNotFoundError as error:
        raise UserError(
            f"{file}: reading it needs {error.name}: pip install {error.name}"
        ) from None
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file}: not a tokenizer ({error})") from None
    vocab, settings = backend.get_vocab(with_added_tokens=True), folder / "tokenizer_config.json"
    given = (read_json(settings, dict) if settings.is_file() else {}).get("pad_token")
    end = next((name for name in ("</s>", "<eos>") if is_siglip and name in vocab), END)
    fill = str(given.get("content") if isinstance(given, dict) else given or end)
    if missing := {end, fill} - vocab.keys():
        raise UserError(
            f"{file}: has no token {missing.pop()}, which these texts need; name another with --tokenizer"
        )
    if is_siglip:
        cleaning: list[Any] = [normalizers.Lowercase()]
        if cleans or isinstance(backend.model, models.Unigram):
            changes = {r"[!-/:-@\[-`{-~]": "", r"\s+": " ", r"^\s+|\s+$": ""}
            cleaning += [
                normalizers.Replace(Regex(pattern), new) for pattern, new in changes.items()
            ]
        backend.normalizer = normalizers.Sequence(
            [*cleaning, *([backend.normalizer] if backend.normalizer else [])]
        )
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocab[end])]
        )
    return Tokenizer(backend, str(file), ends=True), vocab[fill]


def _of_merges(file: Path) -> Backend:
    """Return CLIP's tokenizer of a vocab.json and the merges.txt next to it."""
    backend = Backend(
        models.BPE.from_file(
            str(file), str(file.with_name("merges.txt")), end_of_word_suffix="</w>"
        )
    )
    changes = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    split = pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True)
    backend.normalizer = normalizers.Sequence(changes)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END])
    ends = [(name, backend.token_to_id(name)) for name in (START, END)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ends
    )
    return backend


def _of_pieces(file: Path) -> Backend:
    """Return SigLIP's tokenizer of a sentencepiece model, without its cleaning."""
    from sentencepiece import sentencepiece_model_pb2 as pb  # pyright: ignore[reportMissingImports]

    found: Any = pb.ModelProto.FromString(read_bytes(file))
    pieces = [(piece.piece, piece.score) for piece in found.pieces]
    backend = Backend(
        models.Unigram(pieces, found.trainer_spec.unk_id, found.trainer_spec.byte_fallback)
    )
    charsmap = found.normalizer_spec.precompiled_charsmap
    backend.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap)] if charsmap else []
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="always", split=False
    )
    backend.decoder = decoders.Metaspace()
    return backend
