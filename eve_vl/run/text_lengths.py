"""Lengths of a data set's texts in tokens: how many the model cuts, and whether the vocabulary is
small."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from eve_vl.config import Config
from eve_vl.data.records import Record, Source, usable_rows
from eve_vl.data.tokenizer import Tokenizer

MAX_ROWS = 200  # of each source, to measure text lengths
MANY_CUT = 0.02  # share of cut texts below which nothing is printed
MANY_PIECES = 2.0  # tokens a word, above which the vocabulary is small (LOG.md, 2026-11-30)


@dataclass
class TextLengths:
    """Lengths of some texts of each source."""

    tokens: list[int]
    """Tokens of each text, sorted."""
    tokens_per_word: float


def measure_texts(tokenizer: Tokenizer, sources: Sequence[Source[Record]]) -> TextLengths:
    """Return the lengths of texts of some rows of each source."""
    texts: list[str] = []
    for source in sources:
        stride = 1 + len(source) // MAX_ROWS
        for _, row in usable_rows(source, range(0, len(source), stride)):
            texts += row.texts
    lengths = sorted(len(tokenizer.encode(text, sys.maxsize)[0]) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    num_pieces = sum(lengths) - len(lengths)  # without the token that begins each text
    return TextLengths(lengths, num_pieces / max(num_words, 1))


def cut_texts(config: Config, tokenizer: Tokenizer, sources: Sequence[Source[Record]]) -> list[str]:
    """Return notes on texts that the model cuts, and on a small vocabulary."""
    measured = measure_texts(tokenizer, sources)
    return [*_cut_note(config, measured.tokens), *_vocabulary_note(config, tokenizer, measured)]


def _cut_note(config: Config, lengths: Sequence[int]) -> list[str]:
    limit = config.input.max_text_tokens
    share = sum(length > limit for length in lengths) / max(1, len(lengths))
    if share <= MANY_CUT:
        return []
    fitting = lengths[int(0.99 * (len(lengths) - 1))]
    positions = getattr(config.model, "positions", "learned")
    if config.init is None or (positions == "learned" and limit < fitting):
        advice = f"--input.text-length {fitting} holds 99% of them"
    else:
        advice = f"as {config.init} reads them"
    return [
        f"note: {share:.0%} of the texts have more than {limit} tokens, and are cut there; {advice}"
    ]


def _vocabulary_note(config: Config, tokenizer: Tokenizer, measured: TextLengths) -> list[str]:
    if measured.tokens_per_word <= MANY_PIECES:
        return []
    if config.init is None:
        advice = "a larger --tokenizer.vocab-size keeps more of them whole"
    else:
        advice = f"it is that of {config.init}"
    return [
        f"note: the vocabulary of {tokenizer.vocab_size:,} cuts words into "
        f"{measured.tokens_per_word:.1f} pieces on average; {advice}"
    ]


def check_lines(
    config: Config, tokenizer: Tokenizer, sources: Sequence[Source[Record]]
) -> list[str]:
    """Return lines for `eve data check --recipe` on text lengths and vocabulary."""
    measured = measure_texts(tokenizer, sources)
    lengths = measured.tokens
    if not lengths:
        return []
    limit = config.input.max_text_tokens
    num_cut = sum(length > limit for length in lengths)
    spread = f"{lengths[0]} / {lengths[len(lengths) // 2]} / {lengths[-1]}"
    vocabulary = f"{tokenizer.vocab_size:,} tokens, {measured.tokens_per_word:.2f} a word"
    return [
        f"{'tokens per text':<20}{spread}   (min / median / max of {len(lengths):,} texts)",
        f"{'texts cut':<20}{num_cut / len(lengths):.1%} at {limit} tokens",
        f"{'vocabulary':<20}{vocabulary}",
        *_cut_note(config, lengths),
        *_vocabulary_note(config, tokenizer, measured),
    ]
