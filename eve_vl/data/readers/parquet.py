"""Parquet files: pictures as paths, as bytes, or as Hugging Face's struct of both.

A row cannot be read without its row group. Row groups are kept up to a number of bytes, which holds all of a table of
paths; a table of pictures read in random order decodes a row group for nearly every row, so write such a table with
small row groups (about 100 rows) or use tar shards.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eve_vl.data.readers import common
from eve_vl.data.records import ImageBytes, ImageRef, ImageText
from eve_vl.errors import BadSampleError, UserError

if TYPE_CHECKING:
    import pyarrow

CACHE_BYTES = 256 * 2**20


class ParquetSource:
    """Rows of one or more Parquet files with the same columns."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        image_root: Path | None,
        image_column: str | None,
        text_column: str | None,
    ):
        """Read the footers of `paths`. `image_root` None takes each file's folder.

        Raises UserError if there are no rows, the columns are missing or of another type, or pyarrow is missing.
        """
        self._paths = list(paths)
        self._root = image_root
        files, groups, starts, num_rows = [], [], [], 0
        for file, path in enumerate(self._paths):
            footer = _open(path)
            if file == 0:
                self._columns = _columns(path, footer, image_root, image_column, text_column)
            elif missing := [name for name in self._columns if name not in footer.schema_arrow.names]:
                raise UserError(f"{path}: no column '{missing[0]}', which {self._paths[0].name} has")
            for group in range(footer.metadata.num_row_groups):
                files.append(file)
                groups.append(group)
                starts.append(num_rows)
                num_rows += footer.metadata.row_group(group).num_rows
        if not num_rows:
            raise UserError(f"{paths[0]}: the table has no rows")
        self._files, self._groups = np.array(files), np.array(groups)
        self._starts = np.array([*starts, num_rows])  # of row groups, over all files
        self._cache: OrderedDict[int, pyarrow.Table] = OrderedDict()
        common.require_usable(self._paths[0], self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int, /) -> ImageText:
        index = range(len(self))[index]
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        file = self._files[block]
        path = self._paths[file]
        first_of_file = self._starts[np.searchsorted(self._files, file)]
        where = common.where_row(path, index - int(first_of_file))
        table = self._table(block, where)
        image, captions = (table.column(name)[index - int(self._starts[block])].as_py() for name in self._columns)
        root = self._root or path.parent
        return ImageText(image=_image(image, root, where), captions=common.to_captions(captions, where), where=where)

    def _table(self, block: int, where: str) -> "pyarrow.Table":
        """Return the two columns of a row group. Raises BadSampleError."""
        if block in self._cache:
            self._cache.move_to_end(block)
            return self._cache[block]
        import pyarrow

        try:
            file = _open(self._paths[self._files[block]])
            # no threads: they do not survive the fork of loader workers, which are parallel already
            table = file.read_row_group(int(self._groups[block]), columns=list(self._columns), use_threads=False)
        except (OSError, pyarrow.ArrowException, UserError) as error:
            raise BadSampleError(where, f"cannot read its row group: {error}") from None
        self._cache[block] = table
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return table


def _open(path: Path) -> Any:
    """Return `pyarrow.parquet.ParquetFile`, of which only the footer is read so far."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'eve-vl[parquet]'") from None
    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _columns(
    path: Path, file: Any, image_root: Path | None, image_column: str | None, text_column: str | None
) -> tuple[str, str]:
    """Return the image and the caption column, after a check of their types."""
    from pyarrow import types

    schema = file.schema_arrow
    image, caption = common.pick_columns(path, schema.names, image_column, text_column)
    kind = schema.field(image).type
    is_struct = types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}
    if not (_is_text(kind) or _is_binary(kind) or is_struct):
        raise UserError(f"{path}: column '{image}' holds {kind}, expected paths, bytes, or a struct of bytes and path")
    if _is_binary(kind) and image_root is not None:
        raise UserError(f"{path}: column '{image}' holds the pictures themselves; leave out --data.image-root")
    kind = schema.field(caption).type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not _is_text(kind.value_type if is_list else kind):
        raise UserError(f"{path}: column '{caption}' holds {kind}, expected a text or a list of texts")
    return image, caption


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _image(value: object, root: Path, where: str) -> ImageRef:
    if isinstance(value, dict):  # Hugging Face: bytes where the picture is embedded, otherwise the path
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return ImageBytes(data=value)
    if value is None:
        raise BadSampleError(where, "image is missing")
    return common.image_file(value, root, where)
