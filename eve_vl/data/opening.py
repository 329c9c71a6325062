"""Opening the sources of a run."""

from collections.abc import Sequence
from typing import Any

from eve_vl.config import HELD_OUT, Config, DataConfig
from eve_vl.config.generated_sources import generated
from eve_vl.data.generated import generated_rows
from eve_vl.data.held_out import held_out_split
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.data.split_file import read_split
from eve_vl.data.splits import Splits
from eve_vl.utils.errors import UserError

READING_OPTIONS = ("format", "image_root", "image_column", "text_column", "label_column")
"""Fields of the data section that say how to read files."""


def open_sources(
    specs: Sequence[str],
    data: DataConfig,
    image_size: int,
    kind: str = "captions",
    *,
    must_be_usable: bool = True,
) -> list[Source[Any]]:
    """Open every source. Raises UserError.

    image_size: side of generated images, in pixels. kind: of rows; auto: guessed from the columns,
    captions for generated data. must_be_usable: require that one of the first rows is usable.
    """
    sources = []
    for spec in specs:
        named = generated(spec)
        if named is None:
            sources.append(_open_files(spec, data, kind, must_be_usable=must_be_usable))
        else:
            sources.append(_open_generated(spec, *named, kind, image_size))
    return sources


def _open_generated(
    spec: str, generator: str, split: str, kind: str, image_size: int
) -> Source[Any]:
    source_of_kind = generated_rows(generator)
    if kind == "auto":
        kind = "captions"
    if kind not in source_of_kind:
        kinds = ", ".join(source_of_kind)
        raise UserError(f"{spec}: the generated {generator} hold no {kind}, but {kinds}")
    return source_of_kind[kind](split=split, image_size=image_size)


def _open_files(spec: str, data: DataConfig, kind: str, *, must_be_usable: bool) -> Source[Any]:
    options = {}
    for name in READING_OPTIONS:
        value = getattr(data, name)
        if value is not None:
            options[name] = value
    by_shards = data.order == "shards"
    return open_source(
        spec, kind=kind, must_be_usable=must_be_usable, by_shards=by_shards, **options
    )


def open_train_and_val(
    config: Config, kind: str = "captions"
) -> tuple[list[Source[Any]], list[Source[Any]]]:
    """Open the training and validation sources of a run. Raises UserError."""
    splits = open_splits(config, kind)
    return splits.train, splits.val


def open_splits(config: Config, kind: str) -> Splits:
    """Open the sources of a run for training, validation and the test. Raises UserError.

    `held-out` splits the training sources; see `held_out_split`. There are none for the test
    without data.test_fraction or split_file.
    """
    data = config.data
    size = config.input.image_size
    train = open_sources(data.train, data, size, kind)
    is_val_held_out = data.val == (HELD_OUT,)
    val = [] if is_val_held_out else open_sources(data.val, data, size, kind)

    if data.split_file is not None:
        splits = read_split(data.split_file, train, data.train)
        _check_weights(data, splits)
    elif is_val_held_out or data.test_fraction:
        val_fraction = data.val_fraction if is_val_held_out else 0.0
        splits = held_out_split(
            train, data.train, val_fraction, data.test_fraction, by_shards=data.order == "shards"
        )
    else:
        splits = Splits(train=train, val=[], test=[], train_names=list(data.train), val_names=[])

    if is_val_held_out:
        return splits
    return Splits(
        train=splits.train,
        val=val,
        test=splits.test,
        train_names=splits.train_names,
        val_names=list(data.val),
    )


def _check_weights(data: DataConfig, splits: Splits) -> None:
    """Raise UserError for a weight of a source that has no rows left for training."""
    for name in data.train if data.train_weights else ():
        if name not in splits.train_names:
            raise UserError(
                f"data.train_weights has no effect on {name}: data.split_file leaves it no row to "
                "train on; leave out the weights or this source"
            )
