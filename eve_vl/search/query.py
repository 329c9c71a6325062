"""Words to search with: what can find nothing is refused, for it would find anything."""

from collections import Counter
from collections.abc import Sequence

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import is_text

UNKNOWN = "[UNK]"


def refuse_halves(**given: Sequence[str]) -> None:
    """Raise UserError for a text that no tokenizer, database or file takes."""
    for name, texts in given.items():
        if bad := [text for text in texts if not is_text(text)]:
            raise UserError(f"{name}: {bad[0]!r} is not valid UTF-8; write it anew")


def refuse_unknown(text: str, tokenizer: Tokenizer, longest: int) -> None:
    """Raise UserError if a tokenizer knows nothing of what is read of a text: `longest` tokens, [CLS] among them."""
    what = "letter" if any(map(str.isalnum, text)) else "sign"
    if _is_known(text, what, tokenizer, longest):
        return
    problem = f"no {what} of this is known to the run's tokenizer; use the language of its training"
    if _is_known(text, what, tokenizer, None):
        problem = (
            f"only {longest - 1} tokens are read, and no {what} of these is known to the run's tokenizer; "
            "leave out what comes before words of the language of its training"
        )
    raise UserError(f"{text!r}: {problem}")


def _is_known(text: str, what: str, tokenizer: Tokenizer, longest: int | None) -> bool:
    """Whether a tokenizer knows one of a text's letters, or signs, among its first tokens: not as bytes alone."""
    encoding, unknown = tokenizer.backend.encode(text), tokenizer.backend.token_to_id(UNKNOWN)
    parts = zip(encoding.offsets, encoding.ids, encoding.special_tokens_mask, strict=True)
    spans = [span for span, token, special in [*parts][:longest] if token != unknown and not special]
    tokens_of = Counter(place for start, end in spans for place in range(start, end))
    signs = [place for place, sign in enumerate(text) if (sign.isalnum() if what == "letter" else not sign.isspace())]
    return not signs or any(tokens_of[place] == 1 for place in signs)
