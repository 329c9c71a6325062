"""The section of the text tokenizer."""

from pathlib import Path
from typing import Annotated

from eve_vl.config.sections import Values


class TokenizerConfig(Values):
    """The text tokenizer, part of every checkpoint."""

    path: Path | None = None
    """A tokenizer.json, a BERT vocab.txt or a folder with one, as transformers saves it; default:
    train one on the training texts."""
    vocab_size: Annotated[int, "[261, 64000]"] = 64_000
    """Largest vocabulary to train, from 261 for bytes and special tokens; a file has its own
    size."""

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        if self.path:
            return {"vocab_size": "with tokenizer.path"}
        return {}
