"""Texts as users give them."""

from collections.abc import Iterable
from pathlib import Path

from eve_vl.predict.batching import read_each
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import is_text

Strings = str | Iterable[str]
"""One text, or several."""
Texts = str | Path | Iterable[str | Path]
"""Texts, or sources of texts (files of texts, tables, …), each a Path."""


def user_texts(texts: Strings) -> list[str]:
    """Return one or several texts, stripped. Raises UserError for an empty text or another type."""
    return read_each(user_text, texts, "text")


def user_text(text: str, where: str = "text") -> str:
    """Return one text, stripped. Raises UserError for an empty text or another type."""
    if not isinstance(text, str):
        raise UserError(f"{where}: got {type(text).__name__}, expected one text")
    if not text.strip():
        raise UserError(f"{where} is empty")
    if not is_text(text):
        raise UserError(f"{where}: {text!r} is not valid UTF-8; correct it")
    return text.strip()
