"""The verb features: features of images and texts as Parquet parts or as one file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from eve_vl.cli.error_lines import fail
from eve_vl.cli.flags import DeviceArgs, SourceArgs
from eve_vl.cli.output_files import check_writable
from eve_vl.config import DataConfig
from eve_vl.utils.console import pluralize, print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file
from eve_vl.utils.frozen import Frozen

if TYPE_CHECKING:
    import numpy as np

    from eve_vl.eve import Eve, Features

FILE_ENDINGS = (".npz", ".safetensors")
PART_ROWS = 8192


class FeaturesArgs(SourceArgs, DeviceArgs):
    """Flags of `eve features`."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints; for Parquet, its features of images and texts must
    compare."""
    sources: Positional[tuple[str, ...]] = ()
    """Folders of images, tables or shards; with --out FILE.npz also image files."""
    out: Path = Path("features")
    """Folder of Parquet parts, where finished parts are kept. Or a file to write, .npz or
    .safetensors: image_features and text_features, and the names of their rows, `images` and
    `texts`, and `skipped` rows as JSON lists (an array of one JSON text each in .npz, metadata in
    .safetensors)."""
    texts: tuple[str, ...] = ()
    """Texts, for a file."""
    texts_of: tuple[Path, ...] = ()
    """Files of texts, or tables, whose texts to encode, for a file."""
    part_rows: int = PART_ROWS
    """Rows of a source per Parquet part; processes share whole parts."""
    batch_size: int = 64
    """Images or texts to compute at a time."""


class EncodedRows(Frozen):
    """Features of images and of texts; None: there are none."""

    images: "Features | None"
    texts: "Features | None"

    def arrays(self) -> dict[str, "Features"]:
        """Return the features by their name in a file."""
        arrays = {}
        if self.images is not None:
            arrays["image_features"] = self.images
        if self.texts is not None:
            arrays["text_features"] = self.texts
        return arrays

    def names(self) -> dict[str, Sequence[str]]:
        """Return the names of the rows, and the rows that could not be used."""
        names: dict[str, Sequence[str]] = {}
        if self.images is not None:
            names["images"] = self.images.names
        if self.texts is not None:
            names["texts"] = self.texts.names
        skipped = self.skipped()
        if skipped:
            names["skipped"] = skipped
        return names

    def skipped(self) -> list[str]:
        """Return a line on each row that could not be used."""
        lines = []
        for features in self.arrays().values():
            lines += [str(error) for error in features.skipped]
        return lines


def run_features(args: FeaturesArgs) -> None:
    """Write features, as Parquet or FILE.npz: eve features RUN SOURCE … --out OUT."""
    if not (args.sources or args.texts or args.texts_of):
        raise UserError(
            "nothing to encode: name images, folders or tables, "
            "or texts with --texts, tables with --texts-of"
        )
    ending = args.out.suffix
    if ending.lower() in FILE_ENDINGS:
        _write_file(args)
    elif ending and not args.out.is_dir():
        raise UserError(
            f"{args.out}: cannot write features with the ending {ending!r}; name it .npz or "
            ".safetensors, or name a folder for Parquet parts"
        )
    else:
        _write_parts(args)


def _write_parts(args: FeaturesArgs) -> None:
    """Write the missing Parquet parts of a folder."""
    if args.texts or args.texts_of:
        raise UserError(
            f"--texts and --texts-of have no effect on Parquet parts, which are of images "
            f"(--out {args.out}); name a file, --out FILE.npz"
        )
    from eve_vl.eve import Eve
    from eve_vl.search.parquet_features import write_features

    counts = write_features(
        Eve.load(args.run, args.device),
        args.sources,
        args.out,
        part_rows=args.part_rows,
        batch_size=args.batch_size,
        **args.reading(),
    )
    summary = ", ".join(pluralize(number, noun) for noun, number in counts.items())
    print_line(f"{args.out}: {summary}")


def _write_file(args: FeaturesArgs) -> None:
    """Write the features of images and texts to a file."""
    check_writable(args.out)
    if args.part_rows != PART_ROWS:
        raise UserError(f"--part-rows has no effect on a file ({args.out}); leave it out")
    from eve_vl.eve import Eve
    from eve_vl.predict.inputs import is_source

    has_sources = bool(args.texts_of) or any(map(is_source, args.sources))
    if DataConfig(**args.reading()) != DataConfig() and not has_sources:
        raise UserError(
            "--format, --image-root and the columns have no effect without a folder or table; "
            "name one"
        )
    eve = Eve.load(args.run, args.device)
    rows = _encode(eve, args)
    skipped = rows.skipped()
    print_line(*(f"skipped: {line}" for line in skipped))
    if not any(map(len, rows.arrays().values())):
        fail(f"{args.out}: not written, because no row could be used", 1)

    _write_features(args.out, rows.arrays(), rows.names())
    shapes = [f"{name} {features.shape}" for name, features in rows.arrays().items()]
    print_line(f"{args.out}: {', '.join(shapes)}")
    if len(shapes) == 2 and not eve.task.is_comparable:
        print_line(
            "note: this run's features of images and of texts do not compare with each other"
        )
    if skipped:
        print_line(
            f"note: {pluralize(len(skipped), 'row')} could not be used; "
            "the file lists what was `skipped`"
        )


def _encode(eve: "Eve", args: FeaturesArgs) -> EncodedRows:
    options: dict[str, Any] = {"batch_size": args.batch_size, "progress": True, **args.reading()}
    images = None
    if args.sources:
        images = eve.encode_image(args.sources, **options)
    texts = None
    if args.texts or args.texts_of:
        texts = eve.encode_text((*args.texts, *args.texts_of), **options)
    return EncodedRows(images=images, texts=texts)


def _write_features(
    path: Path, arrays: Mapping[str, "np.ndarray"], names: Mapping[str, Sequence[str]]
) -> None:
    """Write features and the names of their rows, in the format of the file's ending.

    Names are JSON, because an array of texts gives each the space of the longest.
    """
    import numpy as np
    import torch

    from eve_vl.train.tensor_files import write_tensors

    name_lists = {name: json.dumps(values) for name, values in names.items()}
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
            write_tensors(temporary, tensors, name_lists)
            return
        encoded_lists = {name: np.array(text.encode()) for name, text in name_lists.items()}
        with temporary.open("wb") as file:  # savez adds an ending to a path
            np.savez(file, **arrays, **encoded_lists)  # pyright: ignore[reportArgumentType]
