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


def ranks_of(eve: Eve, sources: list[str], phrases: list[dict[str, str]], out: Path) -> list[int]:
    """Return the rank of each phrase's first right drawing among 10, 0 if none."""
    index = eve.index(sources, out)
    ranks = []
    for phrase in phrases:
        accepted_captions = set(phrase["accepted"].split("; "))
        hits = index.search(phrase["phrase"], top=10, by="vectors")
        rank_of_right = 0
        for rank, hit in enumerate(hits, 1):
            if accepted_captions.intersection(hit.captions):
                rank_of_right = rank
                break
        ranks.append(rank_of_right)
    return ranks


def print_ranks(gallery: str, phrases: list[dict[str, str]], ranks: list[int]) -> None:
    """Print the rank of each phrase of a gallery and the counts."""
    for phrase, rank in zip(phrases, ranks, strict=True):
        print_line(f"{rank or '-':>3}  {gallery}  {phrase['phrase']}")
    num_right = sum(rank > 0 for rank in ranks)
    counts = f"{num_right} among the first 10, {ranks.count(1)} first"
    print_line(f"{gallery}: {len(phrases)} phrases, {counts}")


def main() -> None:
    """Search for the phrases in both galleries."""
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
        parquet = pyarrow_parquet()
        eve = Eve.load(args.run)
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
            for gallery, gallery_sources in sources.items():
                gallery_phrases = [row for row in phrases if row["gallery"] == gallery]
                index = Path(folder) / f"{gallery}.index"
                ranks = ranks_of(eve, gallery_sources, gallery_phrases, index)
                print_ranks(gallery, gallery_phrases, ranks)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
