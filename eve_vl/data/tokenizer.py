"""Text to token ids: a byte-level BPE of our own, or any tokenizer.json or BERT vocab.txt.

Special ids always come from the tokenizer; nothing else in the library knows a number.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from eve_vl.errors import UserError
from eve_vl.talk import CONSOLE

MASK_TEXT = "[MASK]"  # how people write a word to be guessed, whatever the tokenizer calls it
SPECIAL_NAMES = {"pad": ("[PAD]", "<pad>"), "cls": ("[CLS]", "<s>", "<cls>"), "mask": ("[MASK]", "<mask>")}

_RARE_LETTERS = range(0xA500, 0xA600)  # Vai, which has no capitals and which no normalisation changes


class Tokenizer:
    """A tokenizer with the three special tokens that masked modelling needs: padding, [CLS] and [MASK]."""

    def __init__(self, backend: Backend, where: str):
        self.backend = backend
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # a "[MASK]" that someone wrote in a caption is text like any other
        ids = {}
        for role, names in SPECIAL_NAMES.items():
            known = [backend.token_to_id(name) for name in names if backend.token_to_id(name) is not None]
            if not known:
                raise UserError(f"{where}: the tokenizer has no {role} token (looked for {', '.join(names)})")
            ids[role] = known[0]
        self.pad_id, self.cls_id, self.mask_id = ids["pad"], ids["cls"], ids["mask"]
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())  # ids may have gaps
        try:
            probe = backend.encode("a \N{SNOWMAN} zqxj")
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{where}: the tokenizer cannot encode unknown words ({error})") from None
        if probe.ids[:1] != [self.cls_id]:
            name = backend.id_to_token(self.cls_id)
            first = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, self.cls_id)])
            own = backend.post_processor
            backend.post_processor = first if own is None else processors.Sequence([own, first])

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer.json or a BERT vocab.txt. Raises UserError if it is missing, broken or lacks a special token."""
        if not path.is_file():
            raise UserError(f"{path}: no such tokenizer file")
        try:
            backend = _bert(path) if path.suffix == ".txt" else Backend.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for every kind of broken file
            raise UserError(f"{path}: not a tokenizer.json or BERT vocab.txt ({error})") from None
        return cls(backend, str(path))

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Undo `to_json`."""
        return cls(Backend.from_str(text), "tokenizer")

    @classmethod
    def train(cls, captions: Collection[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE on captions, lower-cased and NFKC-normalised; vocab_size is an upper bound."""
        backend = Backend(models.BPE())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["[PAD]", "[CLS]", "[MASK]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=CONSOLE.is_terminal,
        )
        backend.train_from_iterator(captions, trainer, length=len(captions))
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", backend.token_to_id("[CLS]"))]
        )
        return cls(backend, "the trained tokenizer")

    def clean_as_published(self, num_words: int) -> None:
        """Do to every text, before all else, what the published EVE does to captions: lower case, no punctuation, - and / as
        spaces, single spaces, the first num_words words. It travels with the tokenizer's file."""
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

    def encode(self, text: str, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids, int64 (T,), T ≤ max_length, [CLS] first; and which are special, bool (T,)."""
        encoding = self.backend.encode(text)
        return np.array(encoding.ids[:max_length]), np.array(encoding.special_tokens_mask[:max_length], dtype=bool)

    def encode_with_masks(self, text: str, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids and specials as `encode` does, with one mask token for each "[MASK]" in the text; and which those are.

        A letter that the text does not have stands in for each, so that all around it becomes the tokens of any text.
        """
        letter = next(chr(code) for code in _RARE_LETTERS if chr(code) not in text)
        spaced = _stand_in(text, letter)
        encoding = self.backend.encode(spaced)
        tokens = zip(encoding.ids, encoding.special_tokens_mask, encoding.offsets, encoding.word_ids, strict=True)
        is_letter = [letter in spaced[start:end] for start, end in encoding.offsets]
        words = {word for word, is_it in zip(encoding.word_ids, is_letter, strict=True) if is_it}
        kept: list[tuple[int, int, bool]] = []
        last = None  # where the letter that the mask before stands for is
        for (token, special, (start, end), word), is_it in zip(tokens, is_letter, strict=True):
            if is_it:
                place = spaced.index(letter, start)
                if place != last:
                    kept.append((self.mask_id, 0, True))
                last = place
            elif word not in words or spaced[start:end].strip():  # a space before the letter goes with it
                kept.append((token, special, False))
        ids, special, is_masked = zip(*kept[:max_length], strict=True)
        return np.array(ids), np.array(special, dtype=bool), np.array(is_masked)

    def spans(self, text: str, max_length: int) -> list[tuple[int, int]]:
        """Return the first character and the end of each token of `encode`; empty spans for special ones."""
        encoding = self.backend.encode(text)
        offsets = [
            (0, 0) if special else span for span, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        ]
        return offsets[:max_length]

    def decode(self, ids: Iterable[int]) -> str:
        """Return text, special tokens left out."""
        return self.backend.decode(list(ids)).strip()

    def word(self, token_id: int) -> str:
        """Return one token as people would read it, special ones in their brackets."""
        return self.backend.decode([token_id], skip_special_tokens=False).strip() or repr(self.backend.id_to_token(token_id))

    def to_json(self) -> str:
        """Return the content of a tokenizer.json."""
        return self.backend.to_str(pretty=True)


def _stand_in(text: str, letter: str) -> str:
    """Return the text with a letter for each mask, a word of its own."""
    first, *rest = text.split(MASK_TEXT)
    spaced = first
    for part in rest:
        before = " " if spaced[-1:].isalnum() else ""
        after = " " if part[:1].isalnum() else ""
        spaced += before + letter + after + part
    return spaced


def _bert(path: Path) -> Backend:
    """Build the usual lower-case WordPiece tokenizer from a BERT vocab.txt."""
    backend = tokenizers.BertWordPieceTokenizer(str(path), lowercase=True)._tokenizer
    # the vocabulary file lists special tokens as plain words: declare them, so that masks and decoding know them
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return backend
