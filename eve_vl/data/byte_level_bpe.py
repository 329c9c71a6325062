"""The tokenizer that EVE trains on captions: a byte-level BPE."""

import threading
from collections.abc import Collection
from concurrent.futures import Future

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from eve_vl.utils.console import CONSOLE

_BYTE = "[\u0122-\u0143\u00a1-\u00bf]"  # bytes 80 to BF, as a byte-level tokenizer writes them
_THREE_BYTES = f"ã[\u0132-\u0143\u00a1-\u00bf]|[ä-é]{_BYTE}"  # U+3400 to U+9FFF, but the last byte
_FOUR_BYTES = f"ð[\u0142\u0143\u00a1-\u00b3]{_BYTE}"  # planes 2 and 3, without the last byte
IDEOGRAPH = f"\u0120?(?:{_THREE_BYTES}|{_FOUR_BYTES}){_BYTE}"
"""UTF-8 of an ideograph, and the space before it."""


def train_byte_level_bpe(
    captions: Collection[str], vocab_size: int, special_tokens: list[str]
) -> Tokenizer:
    """Train a byte-level BPE on captions, lower-cased and NFKC-normalised.

    vocab_size: an upper bound. No token has more than one ideograph: Chinese and Japanese have no
    spaces, and a whole caption would become one.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    by_words = pre_tokenizers.ByteLevel(add_prefix_space=True)
    by_ideographs = pre_tokenizers.Split(Regex(IDEOGRAPH), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_words, by_ideographs])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=CONSOLE.is_terminal,
    )
    _train_in_thread(tokenizer, captions, trainer)
    return tokenizer


def _train_in_thread(
    tokenizer: Tokenizer, captions: Collection[str], trainer: trainers.BpeTrainer
) -> None:
    """Train in another thread: in this one, Ctrl-C would wait for the library's end."""
    result: Future[None] = Future()

    def train() -> None:
        try:
            tokenizer.train_from_iterator(captions, trainer, length=len(captions))
            result.set_result(None)
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=train, daemon=True).start()
    result.result()
