"""Captions as pieces of text, one per token, as they read in place."""

from collections.abc import Sequence

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.frozen import Frozen


class Piece(Frozen):
    """One token of a caption as it reads in place."""

    text: str
    starts_word: bool
    is_masked: bool


def caption_pieces(
    tokenizer: Tokenizer, ids: Sequence[int], is_masked: Sequence[bool]
) -> tuple[Piece, ...]:
    """Return the tokens as they read in the caption, without special tokens."""
    pieces: list[Piece] = []
    before = ""
    for end, is_masked_token in enumerate(is_masked, start=1):
        after = tokenizer.decode(ids[:end])
        is_special = after == before and not is_masked_token
        if is_special:
            continue
        if after.startswith(before) and after != before:
            text = after[len(before) :]
        else:
            text = tokenizer.word(ids[end - 1])
        starts_word = not pieces or text[:1].isspace()
        pieces.append(
            Piece(text=text.strip() or text, starts_word=starts_word, is_masked=is_masked_token)
        )
        before = after
    return tuple(pieces)
