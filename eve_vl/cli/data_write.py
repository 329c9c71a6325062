"""The verb data write: built-in data as files."""

from pathlib import Path

from tyro.conf import Positional

from eve_vl.utils.console import print_line
from eve_vl.utils.file_io import reporting_write_errors
from eve_vl.utils.frozen import Frozen


class WriteArgs(Frozen):
    """Flags of `eve data write`."""

    generator: Positional[str]
    """scenes: images of shapes, from scenes:test; phantoms: schematic radiographs, which say
    nothing about medicine."""
    layout: Positional[str]
    """scenes: captions (a text file per image), questions or statements (one table). phantoms: the
    data set whose files to imitate: roco (captions), slake (questions), chexpert (labels),
    chexpert-5x200 (reports with one label)."""
    folder: Positional[Path]
    """New folder to write."""
    rows: int = 200
    """Number of rows; for phantoms of training rows (validation and test have a fifth), in
    chexpert-5x200 of each class."""
    seed: int = 0
    """Random seed of the rows."""


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
