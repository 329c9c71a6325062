"""The held-out split: shares of the images or texts of training sources move to other parts."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from torch.utils.data import Subset

from eve_vl.data.image_copies import NamedImage, content_keys
from eve_vl.data.image_refs import ImageFile, ImageSpan
from eve_vl.data.order import LARGE
from eve_vl.data.records import Source, fetched
from eve_vl.data.row_hashes import hash_of, row_keys
from eve_vl.data.shard_order import BlockRows
from eve_vl.data.splits import Splits
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError, UserError


class Unit(NamedTuple):
    """What a split moves as a whole: a row or, in large sources, a shard.

    key: the hash that decides on its part; None: the row is unusable. contents: hashes of its
    images (see image_copies.py) or texts, which no other part may show.
    """

    key: int | None
    contents: tuple[int, ...]


def held_out_split(
    sources: Sequence[Source[Any]],
    names: Sequence[str],
    val: float,
    test: float = 0.0,
    *,
    by_shards: bool = False,
) -> Splits:
    """Move shares of each source's images or texts to validation and test.

    Every row, of any source, that shows one of these images leaves the other parts, too. A share of
    0 gives no sources. by_shards: move whole shards, by their names; sources of more than LARGE
    rows always do. Raises UserError, which names a source that is too small.
    """
    split_sources = []
    for source, name in zip(sources, names, strict=True):
        split_sources.append(_SplitSource(source, name, by_shards=by_shards))
    _join_copies(split_sources)

    test_sources = _move(split_sources, test, below=test) if test else []
    val_sources = _move(split_sources, val, below=test + val) if val else []
    return Splits(
        train=[source.subset(source.is_training) for source in split_sources],
        val=val_sources,
        test=test_sources,
        train_names=list(names),
        val_names=list(names) if val else [],
    )


class _SplitSource:
    """A source while it is split."""

    def __init__(self, source: Any, name: str, *, by_shards: bool):
        self.source = source
        self.name = name
        self.images: dict[int, NamedImage] = {}
        """Its images by the key of their place; none of shards."""
        shards = source.blocks() if by_shards or len(source) > LARGE else []
        self.has_shards = len(shards) > 1
        if self.has_shards:
            self.units = [_unit_of_shard(shard_name) for shard_name, _ in shards]
            self.unit_sizes = np.array([num_rows for _, num_rows in shards])
        else:
            self.units = _units_of_rows(source, self.images)
            self.unit_sizes = np.ones(len(self.units), int)
        self.is_training = np.ones(len(self.units), bool)

    def subset(self, is_chosen: np.ndarray) -> Source[Any]:
        """Return the rows of the chosen units."""
        if self.has_shards:
            rows = BlockRows(self.unit_sizes.tolist(), is_chosen)
        else:
            rows = np.flatnonzero(is_chosen)
        return cast(Source[Any], Subset(self.source, cast(Sequence[int], rows)))

    def check(self, is_held_out: np.ndarray, share: float) -> None:
        """Raise UserError if a part has too many rows or none."""
        if self.has_shards and share * len(self.units) < 1:
            actual_share = self.unit_sizes[is_held_out].sum() / self.unit_sizes.sum()
            if actual_share > 2 * share:
                raise UserError(
                    f"{self.name}: held-out takes whole shards (data.order shards), "
                    f"{actual_share:.1%} of its rows instead of {share:.1%}; give --data.val, more "
                    "shards or a larger fraction"
                )
        if not (self.is_training.any() and is_held_out.any()):
            raise UserError(
                f"{self.name}: has too few images or texts for a held-out split; "
                "name other data with --data.val"
            )


def _join_copies(sources: Sequence[_SplitSource]) -> None:
    """Give copies of an image, in any source, the same content, and their rows the lowest key."""
    images: dict[int, NamedImage] = {}
    for source in sources:
        images.update(source.images)
    content_of = content_keys(images)
    lowest_key: dict[int, int] = {}  # by the content of the first image
    for source in sources:
        for place, unit in enumerate(source.units):
            if unit.key is None:
                continue
            contents = tuple(content_of.get(key, key) for key in unit.contents)
            source.units[place] = unit._replace(contents=contents)
            lowest_key[contents[0]] = min(unit.key, lowest_key.get(contents[0], unit.key))
    for source in sources:
        for place, unit in enumerate(source.units):
            if unit.key is not None:
                source.units[place] = unit._replace(key=lowest_key[unit.contents[0]])


def _move(sources: Sequence[_SplitSource], share: float, below: float) -> list[Source[Any]]:
    """Move the units with keys in the lowest `below` of all hashes out of training."""
    held_out = []
    contents: set[int] = set()
    for source in sources:
        keys: list[int | None] = []
        for unit, is_training in zip(source.units, source.is_training, strict=True):
            keys.append(unit.key if is_training else None)
        is_held_out = lowest(keys, below, least=1 if source.has_shards else 2)
        for place in np.flatnonzero(is_held_out):
            contents.update(source.units[place].contents)
        held_out.append(is_held_out)

    for source in sources:
        is_apart = [contents.isdisjoint(unit.contents) for unit in source.units]
        source.is_training &= np.array(is_apart, bool)

    subsets = []
    for source, is_held_out in zip(sources, held_out, strict=True):
        source.check(is_held_out, share)
        subsets.append(source.subset(is_held_out))
    return subsets


def _unit_of_shard(name: str) -> Unit:
    key = hash_of(name.encode(errors="surrogatepass"))
    return Unit(key, (key,))


def _units_of_rows(source: Any, images: dict[int, NamedImage]) -> list[Unit]:
    """Return each row of a source as a unit; add its images to `images`."""
    rows = progress(range(len(source)), "splitting", len(source))
    if not source.columns.images:  # texts are read; places of images are known without
        rows = fetched(source, rows)
    return [_unit_of_row(source, row, images) for row in rows]


def _unit_of_row(source: Any, row: int, images: dict[int, NamedImage]) -> Unit:
    """Return a row of a Table as a unit.

    Its key is the hash of the first image's place within the source, so that the split stays when
    the data move; of a text, it is that of its words. Folders and shards know the place without
    reading the row.
    """
    image = source.image(row) if source.columns.images else None
    if image is not None:
        return _unit_of_images(source, row, [NamedImage(image, "")], images)
    try:
        record = source[row]
    except BadSampleError:
        return Unit(None, ())
    if record.images:
        row_images = [NamedImage(image, record.where) for image in record.images]
        return _unit_of_images(source, row, row_images, images)
    text_keys = row_keys(record)
    return Unit(text_keys[0] if text_keys else None, text_keys)


def _unit_of_images(
    source: Any, row: int, row_images: Sequence[NamedImage], images: dict[int, NamedImage]
) -> Unit:
    contents = tuple(named.key for named in row_images)
    images.update(zip(contents, row_images, strict=True))
    match row_images[0].image:
        case ImageFile(path=path):
            place = path.relative_to(source.root(row)).as_posix()
        case ImageSpan(path=path, offset=offset):
            place = f"{path.name}:{offset}"
        case _:
            return Unit(contents[0], contents)
    return Unit(hash_of(place.encode(errors="surrogatepass")), contents)


def lowest(keys: Sequence[int | None], share: float, least: int = 2) -> np.ndarray:
    """Return which units are in the held-out split, bool: those with the lowest keys.

    These lie in the lowest `share` of all possible hashes. Units with one key stay together. A
    unit's membership does not depend on the other units, except in tiny sources: the split has at
    least `least` keys, if that leaves as many for training.
    """
    distinct = sorted({key for key in keys if key is not None})
    num_below = bisect_left(distinct, int(share * 2**64) - 2**63)  # hashes are signed
    num_held_out = max(num_below, min(least, len(distinct) // 2))
    held_out = set(distinct[:num_held_out])
    return np.array([key in held_out for key in keys])
