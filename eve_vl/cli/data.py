"""Commands on data: data check, data answers, data write, tokenizer train."""

import dataclasses
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from eve_vl.cli.common import JsonArgs, SourceArgs, check_writable, print_line, write_json
from eve_vl.cli.runs import recipe_config
from eve_vl.config import Config, DataConfig, TokenizerConfig
from eve_vl.data.source_names import refuse_missing
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import reporting_write_errors, write_file
from eve_vl.utils.frozen import Frozen

GENERATED_SIZE = 64  # pixels of generated images; larger ones only take longer


class CheckArgs(JsonArgs, SourceArgs):
    """Flags of `eve data check`."""

    path: Positional[str]
    """A source, as in --data.train."""
    kind: str = "auto"
    """Kind of its rows: captions, questions, statements, labels, images, texts or one of a related system; auto: guessed from
    the fields of the first row."""
    recipe: str | None = None
    """Also check that the rows have what training with this recipe needs, its text length and vocabulary; a recipe or
    FILE.py:NAME."""
    init: Path | None = None
    """Run that a fine-tuning --recipe starts from; default: a recipe, which is printed."""


class AnswersArgs(SourceArgs):
    """Flags of `eve data answers`."""

    data: Positional[tuple[str, ...]]
    """Sources of questions."""
    out: Path = Path("answers.json")
    """File to write, for --task.answers."""


class WriteArgs(Frozen):
    """Flags of `eve data write`."""

    generator: Positional[str]
    """scenes: images of shapes, from scenes:test; phantoms: schematic radiographs, which say nothing about medicine."""
    layout: Positional[str]
    """scenes: captions (a text file per image), questions or statements (one table). phantoms: the data set whose files to
    imitate: roco (captions), slake (questions), chexpert (labels), chexpert-5x200 (reports with one label)."""
    folder: Positional[Path]
    """New folder to write."""
    rows: int = 200
    """Number of rows; for phantoms of training rows (validation and test have a fifth), in chexpert-5x200 of each class."""
    seed: int = 0
    """Random seed of the rows."""


class TokenizerArgs(SourceArgs):
    """Flags of `eve tokenizer train`."""

    data: Positional[tuple[str, ...]]
    """Sources of texts: captions, questions, texts only or any other rows."""
    out: Path = Path("tokenizer.json")
    """File to write."""
    vocab_size: int = 64_000
    """Upper bound of the vocabulary."""


def run_data_check(args: CheckArgs) -> None:
    """Check every row and image, list broken rows: eve data check PATH [flags]."""
    refuse_missing([args.path])
    from eve_vl.data.check_lines import report_lines
    from eve_vl.data.kinds.registry import row_kinds
    from eve_vl.data.opening import open_sources
    from eve_vl.data.readers.folder import FolderTable, tables_in
    from eve_vl.data.source_check import check_source

    kinds = ("auto", *row_kinds())
    if args.kind not in kinds:
        raise UserError(f"no --kind {nearest(args.kind, kinds)}")
    kind, require, config = args.kind, None, None
    if args.recipe is not None:
        from eve_vl.tasks.task import task_class

        if kind != "auto":
            raise UserError(
                "--kind has no effect with --recipe, which needs rows of one kind; leave one of them out"
            )
        config = recipe_config(args.recipe, args.init)
        task = task_class(type(config.task))
        kind, require = (
            task.dataset.kind_of(config),
            partial(task.dataset.require, config=config, training=True),
        )
    elif args.init is not None:
        raise UserError("--init has no effect without --recipe; name one")
    (source,) = open_sources(
        (args.path,), DataConfig(**args.reading()), GENERATED_SIZE, kind, must_be_usable=False
    )
    report = check_source(source, require=require)
    print_line(*report_lines(report))
    if (
        isinstance(source, FolderTable)
        and report.kind != "captions"
        and (tables := tables_in(source.path))
    ):
        print_line(f"note: {tables[0]} was not read, only the images; to check its rows, name it")
    lacking, option = {"images": ("captions", "text"), "texts": ("images", "image")}.get(
        report.kind, ("", "")
    )
    if args.kind == "auto" and lacking and len(names := getattr(source, "names", ())) > 1:
        print_line(
            f"note: none of the columns {', '.join(names)} was read as {lacking}; name one with --data.{option}-column"
        )
    if config is not None and report.usable:
        print_line(*_text_lines(config, args.init, source))
    write_json(args.json, dataclasses.asdict(report))
    if report.broken:
        sys.exit(1)


def _text_lines(config: Config, init: Path | None, source: Any) -> list[str]:
    """Return lines on the texts as a recipe reads them.

    The tokenizer is that of `init`, or trained on the texts.
    """
    from eve_vl.data.tokenizer import Tokenizer
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.run_tokenizer import tokenizer_of
    from eve_vl.run.text_lengths import check_lines
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    if config.data.modality == "image":
        return []
    path = (
        config.tokenizer.path
        if init is None
        else chosen_checkpoint(run_path(init)) / "tokenizer.json"
    )
    tokenizer = (
        tokenizer_of([source], config.tokenizer.vocab_size)
        if path is None
        else Tokenizer.load(path)
    )
    train = (
        replace(config.train, head_lr_multiplier=1.0) if init is None else config.train
    )  # it needs an init
    return check_lines(replace(config, init=init, train=train), tokenizer, [source])


def run_data_answers(args: AnswersArgs) -> None:
    """Write the answers of questions, most frequent first: eve data answers PATH …"""
    check_writable(args.out)
    from eve_vl.data.opening import open_sources
    from eve_vl.data.records import usable_rows
    from eve_vl.metrics.vqa import build_answers

    sources = open_sources(args.data, DataConfig(**args.reading()), GENERATED_SIZE, "questions")
    answers = build_answers(
        (row.answers for source in sources for _, row in usable_rows(source)), min_count=1
    )
    if not answers:
        raise UserError(f"{' '.join(args.data)}: no question has an answer")
    write_json(args.out, answers)
    print_line(f"{args.out}: {pluralize(len(answers), 'answer')}")


def run_data_write(args: WriteArgs) -> None:
    """Write built-in data to files: eve data write GENERATOR LAYOUT FOLDER [flags]."""
    from eve_vl.data.generated import find_generator
    from eve_vl.synthetic.write import write

    with reporting_write_errors(args.folder):
        write(args.generator, args.layout, args.folder, num_rows=args.rows, seed=args.seed)
    print_line(f"{args.folder}: {args.generator} as {args.layout}")
    disclaimer = find_generator(args.generator).disclaimer
    if disclaimer:
        print_line(disclaimer)


def run_tokenizer_train(args: TokenizerArgs) -> None:
    """Train a byte-level BPE tokenizer on texts: eve tokenizer train PATH … [flags]."""
    check_writable(args.out)
    from eve_vl.run.run_tokenizer import train_tokenizer

    if problems := TokenizerConfig(vocab_size=args.vocab_size).validate():
        raise UserError("; ".join(problems))
    tokenizer = train_tokenizer(args.data, DataConfig(**args.reading()), args.vocab_size)
    write_file(args.out, tokenizer.to_json())
    print_line(f"{args.out}: {tokenizer.vocab_size} tokens")
