"""Verbs about data: data check, tokenizer train."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from tyro.conf import Positional

from eve_vl.cli.common import SourceArgs, check_writable, parse, say, write_json
from eve_vl.config import TokenizerConfig
from eve_vl.errors import UserError
from eve_vl.files import write_file


@dataclass(frozen=True, kw_only=True)
class CheckArgs(SourceArgs):
    """Flags of `eve data check`."""

    path: Positional[str]
    """What --data.train would be given."""
    kind: Literal["auto", "captions", "questions", "statements", "labels", "pictures", "texts"] = "auto"
    """What its rows are; auto looks at the fields of the first."""
    json: Path | None = None
    """Also write the report to this file."""


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs(SourceArgs):
    """Flags of `eve tokenizer train`."""

    data: Positional[tuple[str, ...]]
    """Sources whose texts to learn from: captions, questions, texts alone or any other rows."""
    out: Path = Path("tokenizer.json")
    """File to write."""
    vocab_size: int = 64_000
    """Upper bound of the vocabulary."""


def run_data_check(argv: Sequence[str]) -> None:
    """Read every row and picture once and list what is broken: eve data check PATH [flags]."""
    args = parse(CheckArgs, argv, "eve data check", run_data_check.__doc__)
    check_writable(args.json)
    from eve_vl.data.check import check_source

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    (source,) = args.open((args.path,), image_size=224, kind=args.kind)
    report = check_source(source, console=console)
    report.render(console)
    write_json(args.json, report.to_dict())
    if report.broken:
        sys.exit(1)


def run_tokenizer_train(argv: Sequence[str]) -> None:
    """Train a byte-level BPE on captions or other texts: eve tokenizer train PATH … [flags]."""
    args = parse(TokenizerArgs, argv, "eve tokenizer train", run_tokenizer_train.__doc__)
    check_writable(args.out)
    from eve_vl.training import train_tokenizer

    if problems := TokenizerConfig(vocab_size=args.vocab_size).problems():
        raise UserError("; ".join(problems))
    tokenizer = train_tokenizer(args.data, args.data_config(), args.vocab_size)
    write_file(args.out, tokenizer.to_json())
    say(f"{args.out}: {tokenizer.vocab_size} tokens")
