"""The verb tokenizer train: a tokenizer of texts."""

from pathlib import Path

from tyro.conf import Positional

from eve_vl.cli.flags import SourceArgs
from eve_vl.cli.output_files import check_writable
from eve_vl.config import DataConfig, TokenizerConfig
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import write_file


class TokenizerArgs(SourceArgs):
    """Flags of `eve tokenizer train`."""

    data: Positional[tuple[str, ...]]
    """Sources of texts: captions, questions, texts only or any other rows."""
    out: Path = Path("tokenizer.json")
    """File to write."""
    vocab_size: int = 64_000
    """Upper bound of the vocabulary."""


def run_tokenizer_train(args: TokenizerArgs) -> None:
    """Train a byte-level BPE tokenizer on texts: eve tokenizer train PATH … [flags]."""
    check_writable(args.out)
    from eve_vl.run.run_tokenizer import train_tokenizer

    problems = TokenizerConfig(vocab_size=args.vocab_size).validate()
    if problems:
        raise UserError("; ".join(problems))
    tokenizer = train_tokenizer(args.data, DataConfig(**args.reading()), args.vocab_size)
    write_file(args.out, tokenizer.to_json())
    print_line(f"{args.out}: {tokenizer.vocab_size} tokens")
