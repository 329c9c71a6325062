"""Search for 100 phrases as people type them, in unseen icons and emoji.

    python examples/drawings/phrases.py RUN --icons icons --emoji emoji

Each line of phrases.tsv names a gallery, a phrase and the captions of right drawings. The gallery
`lucide` is the icons of `eve try`. `color` is the coloured icons of test_sets.parquet and the emoji
of test_concepts.jsonl. All phrases were written before any run searched for them: 80 before the
first training on drawings, the last 20 on 2026-12-01.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

from eve_vl.builtin.icons import unpack_icons
from eve_vl.eve import Eve
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from iconify import pyarrow_parquet

PHRASES = Path(__file__).with_name("phrases.tsv")
COLORED = "streamline-flex-color"


def places(eve: Eve, sources: list[str], phrases: list[dict[str, str]], out: Path) -> list[int]:
    """Return the place of each phrase's first right drawing among 10, 0 if none."""
    index, found = eve.index(sources, out), []
    for phrase in phrases:
        accepted = set(phrase["accepted"].split("; "))
        hits = index.search(phrase["phrase"], top=10, by="vectors")
        found.append(
            next(
                (place for place, hit in enumerate(hits, 1) if accepted.intersection(hit.captions)),
                0,
            )
        )
    return found


def main() -> None:
    """Print the place of each phrase and the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder, or builtin:NAME")
    parser.add_argument(
        "--icons", type=Path, required=True, help="folder written by examples/icons/build.py"
    )
    parser.add_argument(
        "--emoji", type=Path, required=True, help="folder written by examples/emoji/build.py"
    )
    args = parser.parse_args()
    with PHRASES.open(encoding="utf-8", newline="") as file:
        phrases = list(csv.DictReader(file, delimiter="\t"))
    try:
        parquet, eve = pyarrow_parquet(), Eve.load(args.run)
        with tempfile.TemporaryDirectory() as folder:
            colored = Path(folder) / "colored.parquet"
            table = parquet.read_table(
                args.icons / "test_sets.parquet", filters=[("set", "==", COLORED)]
            )
            parquet.write_table(table, colored)
            sources = {
                "lucide": [str(unpack_icons(Path(folder) / "icons"))],
                "color": [str(colored), str(args.emoji / "test_concepts.jsonl")],
            }
            for gallery, each in sources.items():
                own = [phrase for phrase in phrases if phrase["gallery"] == gallery]
                found = places(eve, each, own, Path(folder) / f"{gallery}.index")
                for phrase, place in zip(own, found, strict=True):
                    print_line(f"{place or '-':>3}  {gallery}  {phrase['phrase']}")
                counts = f"{sum(map(bool, found))} among the first 10, {found.count(1)} first"
                print_line(f"{gallery}: {len(own)} phrases, {counts}")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
