"""Answers that name several things, as one text: `computer & printer`.

DAQUAR writes them with commas, which VQA's normal form of answers removes; it keeps "&".
"""

from collections.abc import Iterable

SEPARATOR = " & "


def joined_things(things: Iterable[str]) -> str:
    """Return one answer that names some things, each once, in the order of the alphabet.

    Equal sets become equal answers.
    """
    names = {thing.strip() for thing in things}
    return SEPARATOR.join(sorted(names - {""}))


def things_of(answer: str) -> list[str]:
    """Return the things that an answer names."""
    return answer.split(SEPARATOR)


def as_daquar(answer: str) -> str:
    """Return an answer as DAQUAR writes it: `computer, paper_tray`."""
    names = [thing.replace(" ", "_") for thing in things_of(answer)]
    return ", ".join(names)
