"""Measure search by words and vectors: literal, lost-caption and nonsense queries.

    python benchmarks/search_words.py RUN DATA [--queries 300] [--index FOLDER] [--json FILE] [--quick]

Half of the names (shortest captions) lose their captions in a copy of the index, so that only
vectors find their images. A literal query is a caption, a phrase between its commas or colons, or a
word of one; the goal is an image with it in a caption among the first 3. Other queries are the lost
names that stand in no caption that is left. Nonsense is random letters, consonants and vowels in
turn, or the letters of the gallery's words in another order.
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timing import Goal, machine

from eve_vl.eve import Eve
from eve_vl.search import word_tables
from eve_vl.search.database import Database
from eve_vl.search.hits import Hits
from eve_vl.search.index import Index
from eve_vl.search.index_files import CHECKSUMS

AT_ONCE = 64
GOALS = {
    "literal in the first 3": Goal(limit=0.98, at_least=True),
    "R@10 by both less by vectors": Goal(limit=-0.01, at_least=True),
    "nonsense: nothing fits": Goal(limit=0.95, at_least=True),
    "captioned: nothing fits": Goal(limit=0.05),
}


def found(index: Index, queries: Sequence[str], **options: Any) -> list[Hits]:
    """Return the hits of many queries."""
    parts = (queries[start : start + AT_ONCE] for start in range(0, len(queries), AT_ONCE))
    return [
        hits
        for part in parts
        for hits in index.search_each(part, [None] * len(part), rerank=0, **options)
    ]


def stands_in(query: str, text: str) -> bool:
    """Return whether a query stands in a text, word by word."""
    return re.search(rf"(?<!\w){re.escape(query.lower())}(?!\w)", text.lower()) is not None


def names_of(index: Index) -> dict[str, list[int]]:
    """Return each name's image numbers; an image's name is its shortest caption."""
    rows = index.database.rows(
        "SELECT image, text FROM caption JOIN text ON text.slot = caption.slot ORDER BY "
        "length(text) DESC"
    )
    by_name: dict[str, list[int]] = {}
    for image, name in dict(rows).items():
        by_name.setdefault(name, []).append(image)
    return by_name


def without_names(folder: Path, lost: Sequence[int]) -> None:
    """Delete the captions of images from an index."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    database = Database.open(folder)
    db = database.db
    word_tables.watch(db)
    db.executemany("DELETE FROM caption WHERE image = ?", [(image,) for image in lost])
    db.execute("DELETE FROM text WHERE slot NOT IN (SELECT slot FROM caption)")
    word_tables.refresh(db)
    db.commit()


def nonsense(vocabulary: Sequence[str], num: int, rng: random.Random) -> list[str]:
    """Return texts of one to three meaningless words."""

    def letters() -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 10)))

    def syllables() -> str:
        return "".join(
            rng.choice("bcdfghjklmnpqrstvwxz") + rng.choice("aeiouy")
            for _ in range(rng.randint(2, 4))
        )

    def shuffled() -> str:
        word = rng.choice(vocabulary)
        return "".join(rng.sample(word, len(word)))

    makers: tuple[Callable[[], str], ...] = (letters, syllables, shuffled)
    texts = (
        " ".join(makers[number % 3]() for _ in range(rng.randint(1, 3)))
        for number in range(4 * num)
    )
    return [text for text in texts if not {*text.split()} & {*vocabulary}][:num]


def measure(index: Index, reduced: Index, lost: dict[str, list[int]], num: int) -> dict[str, float]:
    """Return the shares by what they are of."""
    rng = random.Random(0)
    texts = [text for (text,) in index.database.rows("SELECT text FROM text ORDER BY slot")]
    left = [text for (text,) in reduced.database.rows("SELECT text FROM text ORDER BY slot")]
    phrases = sorted({part.strip() for text in texts for part in re.split("[,:;]", text)} - {""})
    vocabulary = sorted(
        {word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text.lower())}
    )
    shares: dict[str, float] = {}
    for what, kind in {"captions": texts, "phrases": phrases, "words": vocabulary}.items():
        queries = rng.sample(kind, min(num, len(kind)))
        pairs = zip(queries, found(index, queries, top=3), strict=True)
        good = [
            any(stands_in(query, text) for hit in hits for text in hit.captions)
            for query, hits in pairs
        ]
        shares[f"literal in the first 3: {what}"] = sum(good) / len(good)
    others = [name for name in lost if not any(stands_in(name, text) for text in left)]
    others = rng.sample(others, min(num, len(others)))
    for by in ("vectors", "both"):
        pairs = zip(others, found(reduced, others, by=by, top=10), strict=True)
        good = [bool({hit.id for hit in hits} & {*lost[query]}) for query, hits in pairs]
        shares[f"others: R@10 by {by}"] = sum(good) / len(good)
    shares["R@10 by both less by vectors"] = (
        shares["others: R@10 by both"] - shares["others: R@10 by vectors"]
    )
    asked = {
        "nonsense": nonsense(vocabulary, num, rng),
        "captioned": rng.sample(texts, min(num, len(texts))),
        "others": others,
    }
    for what, queries in asked.items():
        hits = found(reduced if what == "others" else index, queries)
        shares[f"{what}: nothing fits"] = sum(each.nothing_fits for each in hits) / len(queries)
    return shares


def main() -> None:
    """Measure, print and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", help="a run of retrieval")
    parser.add_argument("data", nargs="+", help="images with captions")
    parser.add_argument("--queries", type=int, default=300, help="number of each kind")
    parser.add_argument("--index", type=Path, help="keep the index in this folder")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--quick", action="store_true", help="few queries: checks the script, measures nothing"
    )
    args = parser.parse_args()
    eve = Eve.load(args.run, "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = args.index or Path(name) / "index"
        with contextlib.redirect_stdout(None):
            index = eve.index(args.data, folder)
        by_name = names_of(index)
        lost = {
            name: images
            for number, (name, images) in enumerate(sorted(by_name.items()))
            if number % 2
        }
        shutil.copytree(folder, Path(name) / "reduced")
        without_names(
            Path(name) / "reduced", [image for images in lost.values() for image in images]
        )
        counts = index.counts()
        shares = measure(
            index, Index.open(Path(name) / "reduced", eve), lost, 9 if args.quick else args.queries
        )
    print(", ".join(f"{key} {value}" for key, value in machine().items()), f"· {counts}")
    for what, share in shares.items():
        goal = next((goal for start, goal in GOALS.items() if what.startswith(start)), None)
        print(f"{what:45} {share:7.3f}   {goal.check(share) if goal and not args.quick else ''}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "shares": shares}, indent=1) + "\n")


if __name__ == "__main__":
    main()
