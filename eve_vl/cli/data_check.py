"""The verb data check: every row and image of a source, and what a recipe makes of them."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from eve_vl.cli.flags import JsonArgs, SourceArgs
from eve_vl.cli.output_files import write_json
from eve_vl.cli.recipe_flags import recipe_config
from eve_vl.config import Config, DataConfig
from eve_vl.data.source_names import refuse_missing
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError, nearest

if TYPE_CHECKING:
    from eve_vl.data.records import Source
    from eve_vl.data.source_check import SourceReport
    from eve_vl.data.split_overlap import SharedImage
    from eve_vl.data.tokenizer import Tokenizer

GENERATED_SAMPLES = 1000  # rows; drawing all 100,000 of a split takes minutes
GENERATED_SIZE = 64  # pixels of generated images; larger ones only take longer


class CheckArgs(JsonArgs, SourceArgs):
    """Flags of `eve data check`."""

    path: Positional[str]
    """A source, as in --data.train."""
    kind: str = "auto"
    """Kind of its rows: captions, questions, statements, labels, images, texts or one of a related
    system; auto: guessed from the fields of the first row."""
    recipe: str | None = None
    """Also check that the rows have what training with this recipe needs, its text length and
    vocabulary; a recipe or FILE.py:NAME."""
    init: Path | None = None
    """Run that a fine-tuning --recipe starts from; default: a recipe, which is printed."""
    samples: int | None = None
    """Number of rows to check, spread evenly over all; default: all, of generated data 1,000."""
    against: tuple[str, ...] = ()
    """Other splits: their rows that show a copy or a near-duplicate of an image of PATH are
    named."""


def run_data_check(args: CheckArgs) -> None:
    """Check every row and image, list broken rows: eve data check PATH [flags]."""
    refuse_missing([args.path, *args.against])
    from eve_vl.data.check_lines import report_lines
    from eve_vl.data.opening import open_sources
    from eve_vl.data.source_check import check_source
    from eve_vl.data.split_overlap import overlap_lines, shared_images

    config = _checked_recipe(args)
    kind = args.kind
    require = None
    if config is not None:
        kind, require = _needs_of_recipe(config)
    source, *other_splits = open_sources(
        (args.path, *args.against),
        DataConfig(**args.reading()),
        GENERATED_SIZE,
        kind,
        must_be_usable=False,
    )
    report = check_source(
        source,
        require=require,
        keeps_images=bool(other_splits),
        num_samples=_num_samples(source, args.samples),
    )
    print_line(*report_lines(report))
    if report.rows < len(source):
        print_line(
            f"note: {report.rows:,} of {len(source):,} rows were checked; --samples N checks N"
        )
    shared: dict[str, list[SharedImage]] = {}
    for name, other in zip(args.against, other_splits, strict=True):
        num_samples = _num_samples(other, args.samples)
        other_images = check_source(other, keeps_images=True, num_samples=num_samples).images
        shared[name] = shared_images(other_images, report.images)
        lines = overlap_lines(shared[name], len(other_images), args.path)
        print_line(*[f"{name}: {line}" for line in lines or ["shares no image"]])
    _print_hints(source, report, args.kind)
    if config is not None and report.usable:
        print_line(*_text_lines(config, args.init, source))
    values = dataclasses.asdict(replace(report, images=[]))
    del values["images"]
    if shared:
        values["shared_images"] = {
            name: [dataclasses.asdict(image) for image in images] for name, images in shared.items()
        }
    write_json(args.json, values)
    has_copies = any(image.is_copy for images in shared.values() for image in images)
    if report.broken or has_copies:
        sys.exit(1)


def _num_samples(source: "Source[Any]", num_samples: int | None) -> int | None:
    """Return the number of rows to check, None for all. Raises UserError."""
    from eve_vl.data.generated import is_generated

    if num_samples is not None and num_samples < 1:
        raise UserError(f"--samples {num_samples}: must be at least 1")
    if num_samples is None and is_generated(source):
        return GENERATED_SAMPLES
    return num_samples


def _checked_recipe(args: CheckArgs) -> Config | None:
    """Return the config of --recipe, if it is given. Raises UserError for flags without effect."""
    from eve_vl.data.kinds.registry import row_kinds

    kinds = ("auto", *row_kinds())
    if args.kind not in kinds:
        raise UserError(f"no --kind {nearest(args.kind, kinds)}")
    if args.recipe is None:
        if args.init is not None:
            raise UserError("--init has no effect without --recipe; name one")
        return None
    if args.kind != "auto":
        raise UserError(
            "--kind has no effect with --recipe, which needs rows of one kind; "
            "leave one of them out"
        )
    return recipe_config(args.recipe, args.init)


def _needs_of_recipe(config: Config) -> tuple[str, Callable[..., Any]]:
    """Return the kind of rows that a recipe needs, and the check of each."""
    from eve_vl.tasks.task import task_class

    dataset = task_class(type(config.task)).dataset
    return dataset.kind_of(config), partial(dataset.require, config=config, training=True)


def _print_hints(source: "Source[Any]", report: "SourceReport", kind: str) -> None:
    """Print a table of a folder that was not read, and columns that were not read."""
    from eve_vl.data.readers.folder import FolderTable, tables_in

    if isinstance(source, FolderTable) and report.kind != "captions":
        tables = tables_in(source.path)
        if tables:
            print_line(
                f"note: {tables[0]} was not read, only the images; to check its rows, name it"
            )
    if kind != "auto":
        return
    if report.kind == "images":
        _print_unread_columns(source, "captions", "text")
    elif report.kind == "texts":
        _print_unread_columns(source, "images", "image")


def _print_unread_columns(source: "Source[Any]", missing: str, flag: str) -> None:
    columns = getattr(source, "names", ())
    if len(columns) > 1:
        print_line(
            f"note: none of the columns {', '.join(columns)} was read as {missing}; "
            f"name one with --data.{flag}-column"
        )


def _text_lines(config: Config, init: Path | None, source: "Source[Any]") -> list[str]:
    """Return lines on the texts as a recipe reads them."""
    from eve_vl.run.text_lengths import check_lines

    if config.data.modality == "image":
        return []
    train = config.train
    if init is None:  # the multiplier needs an init
        train = replace(train, head_lr_multiplier=1.0)
    tokenizer = _tokenizer(config, init, source)
    return check_lines(replace(config, init=init, train=train), tokenizer, [source])


def _tokenizer(config: Config, init: Path | None, source: "Source[Any]") -> "Tokenizer":
    """Return the tokenizer of the run, of a file, or one that is trained on the texts."""
    from eve_vl.data.tokenizer import Tokenizer
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.run_tokenizer import tokenizer_of
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    if init is not None:
        return Tokenizer.load(chosen_checkpoint(run_path(init)) / "tokenizer.json")
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path)
    return tokenizer_of([source], config.tokenizer.vocab_size)
