"""Opening the sources of a run."""

from collections.abc import Sequence
from typing import Any

from eve_vl.config import HELD_OUT, Config, DataConfig
from eve_vl.config.training import generated
from eve_vl.data.generated import find_generator
from eve_vl.data.held_out import held_out_split
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import Source
from eve_vl.data.split_file import read_split
from eve_vl.utils.errors import UserError

OPTIONS = (
    "format",
    "image_root",
    "image_column",
    "text_column",
    "label_column",
)  # of reading files
SHARDS = "shards"  # of data.order


def open_sources(
    specs: Sequence[str],
    data: DataConfig,
    image_size: int,
    kind: str = "captions",
    *,
    must_be_usable: bool = True,
) -> list[Source[Any]]:
    """Open every source. Raises UserError.

    image_size: side of generated images, in pixels. kind: of rows; auto: guessed from the columns, captions for generated
    data. must_be_usable: require that one of the first rows is usable.
    """
    sources: list[Source[Any]] = []
    for spec in specs:
        if (named := generated(spec)) is not None:
            own = "captions" if kind == "auto" else kind
            kinds = find_generator(named[0]).rows
            if own not in kinds:
                raise UserError(
                    f"{spec}: the generated {named[0]} hold no {own}, but {', '.join(kinds)}"
                )
            sources.append(kinds[own](split=named[1], image_size=image_size))
        else:
            options = {
                name: value for name in OPTIONS if (value := getattr(data, name)) is not None
            }
            options |= {"must_be_usable": must_be_usable, "by_shards": data.order == SHARDS}
            sources.append(open_source(spec, kind=kind, **options))
    return sources


def open_train_and_val(
    config: Config, kind: str = "captions"
) -> tuple[list[Source[Any]], list[Source[Any]]]:
    """Open the training and validation sources of a run. Raises UserError.

    `held-out` splits the training sources; see `held_out_split`.
    """
    return open_splits(config, kind)[:2]


def open_splits(
    config: Config, kind: str
) -> tuple[list[Source[Any]], list[Source[Any]], list[Source[Any]]]:
    """Open the sources of a run for training, validation and the test.

    Raises UserError. There are none for the test without data.test_fraction or split_file.
    """
    data, size = config.data, config.input.image_size
    train = open_sources(data.train, data, size, kind)
    val = None if data.val == (HELD_OUT,) else open_sources(data.val, data, size, kind)
    held, test = [], []
    if data.split_file is not None:
        train, held, test = read_split(data.split_file, train, data.train)
    elif val is None or data.test_fraction:
        shares = 0.0 if val is not None else data.val_fraction, data.test_fraction
        train, held, test = held_out_split(
            train, data.train, *shares, by_shards=data.order == SHARDS
        )
    return train, held if val is None else val, test
