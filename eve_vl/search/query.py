"""Parsed queries, such as `red car`, `"fire engine" -toy` or `2:cat grass`."""

import re

from eve_vl.utils.frozen import Frozen

MOST_WORDS = 32  # of a query, that are looked up
PART = re.compile(
    r"""(?<!\S)(-?)(?:(\d(?:\.\d+)?):(?!(?i:[ap]\.?m)\b))?(?:"([^"]*)"(?!\S)|(\S+))"""
)
"""A minus, a weight before a colon (but not a time of day), then a quoted phrase or a word."""
EDGES = re.compile(r"^[\W_]+|[\W_]+$")


class Query(Frozen):
    """A parsed query."""

    text: str = ""
    """Its parts without a weight."""
    parts: tuple[tuple[str, float], ...] = ()
    """Texts of its vector with their weights, negative ones of those to avoid."""
    terms: tuple[tuple[str, float], ...] = ()
    """Words and quoted phrases to look up, with their weights."""
    phrases: tuple[str, ...] = ()
    """The quoted ones of the terms."""
    is_plain: bool = True
    """Whether it has neither quotes, nor weights, nor parts to avoid."""

    @classmethod
    def parse(cls, query: str) -> "Query":
        """Parse a query; every text is one."""
        plain_texts: list[str] = []
        weighted_parts: list[tuple[str, float]] = []
        terms: dict[str, tuple[str, float]] = {}
        phrases: dict[str, str] = {}
        is_plain = True
        for match in PART.finditer(query):
            part = _Part.from_match(match)
            if part.is_excluded or part.is_weighted or part.is_phrase:
                is_plain = False
            if part.is_excluded:
                weighted_parts.append((part.text, -part.weight))
                continue
            if part.is_weighted:
                weighted_parts.append((part.text, part.weight))
            else:
                plain_texts.append(part.text)
            term = EDGES.sub("", part.text)
            if term:
                terms.setdefault(term.lower(), (term, part.weight))
                if part.is_phrase:
                    phrases.setdefault(term.lower(), term)

        text = query if is_plain else " ".join(plain_texts)
        parts = [(text, 1.0)] if text else []
        return cls(
            text=text,
            parts=(*parts, *weighted_parts),
            terms=tuple(terms.values())[:MOST_WORDS],
            phrases=tuple(phrases.values())[:MOST_WORDS],
            is_plain=is_plain,
        )

    @property
    def excluded(self) -> list[str]:
        """The texts to avoid."""
        return [text for text, weight in self.parts if weight < 0]


class _Part(Frozen):
    """A word or a quoted phrase of a query."""

    text: str
    weight: float = 1.0
    is_weighted: bool = False
    is_excluded: bool = False
    is_phrase: bool = False

    @classmethod
    def from_match(cls, match: re.Match[str]) -> "_Part":
        """Return a part of a query.

        Without a word to search for, as in `16:9`, `-` or `5"`, all of it is text.
        """
        minus, weight, phrase, word = match.groups()
        text = (word or phrase or "").strip()
        has_word = any(map(str.isalnum, text)) if phrase else text[:1].isalpha()
        if not has_word or (weight and float(weight) == 0):
            return cls(text=match[0])
        return cls(
            text=text,
            weight=float(weight or 1),
            is_weighted=bool(weight),
            is_excluded=bool(minus),
            is_phrase=bool(phrase),
        )
