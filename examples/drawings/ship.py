"""Make `builtin:drawings` from a run on drawings, and the icons of `eve try`.

    python examples/drawings/ship.py runs/drawings --icons icons --out eve_vl/builtin

Weights become float16, paths those of examples/drawings/README.md; all other values stay. The icons
are lucide's from test_sets.parquet (not in training): a zip file of PNG files with a table,
pairs.jsonl, and lucide.LICENSE in --out. The same run and data write the same bytes.
"""

import argparse
import dataclasses
import json
import sys
import zipfile
from pathlib import Path
from typing import Final

from eve_vl.builtin.icons import ICONS, PAIRS
from eve_vl.config import Config
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import shipping
from iconify import pyarrow_parquet

TRAIN: Final = ("drawings/icons.parquet", "drawings/emoji.parquet")
SET: Final = "lucide"
EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # earliest date in zip files


def ship_run(run: Path, out: Path) -> None:
    """Write the best weights of a run in float16, with its numbers. Raises UserError."""

    def changed(config: Config) -> Config:
        data = dataclasses.replace(config.data, train=TRAIN, val=("drawings/val.parquet",))
        return dataclasses.replace(
            config, out=Path("runs/drawings"), init=Path("runs/icons_search"), data=data
        )

    shipping.ship_run(run, out, changed)


def ship_icons(table: Path, out: Path) -> None:
    """Write the icons of one set as a zip file. Raises UserError."""
    all_rows = pyarrow_parquet().read_table(table).to_pylist()
    rows = [row for row in all_rows if row["set"] == SET]
    rows.sort(key=lambda row: row["caption"])
    files = {"LICENSE": (out.parent / f"{SET}.LICENSE").read_bytes()}
    pairs = []
    for row in rows:
        name = row["caption"].replace(" ", "-") + ".png"
        files[name] = row["image"]
        pair = {"image": name, "caption": row["caption"], "set": SET, "license": row["license"]}
        pairs.append(json.dumps(pair) + "\n")
    files[PAIRS] = "".join(pairs).encode()
    with (
        atomic_file(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
    print_line(f"{out}: {len(pairs):,} icons, {out.stat().st_size:,} bytes")


def main() -> None:
    """Write the run and the icons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run trained on drawings")
    parser.add_argument(
        "--icons", type=Path, required=True, help="folder written by examples/icons/build.py"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundled files")
    args = parser.parse_args()
    try:
        ship_run(args.run, args.out / "drawings")
        ship_icons(args.icons / "test_sets.parquet", args.out / ICONS.name)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
