"""Ask for 120 things in photographs as people type them, and count the right answers.

    python examples/photos/queries.py RUN photos/test.parquet --html queries.html

Each line of queries.tsv names a query and the words that a caption of a right photograph must have:
one of each group. Groups are joined by ` & `, the words and phrases of a group by `|`. Queries
without such words are for things that the 1,000 test photographs of Flickr8k do not show; the
search should say that nothing fits. All queries were written before any run was trained on
photographs.
"""

import argparse
import base64
import csv
import io
import math
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from eve_vl.eve import Eve
from eve_vl.pages.rendering import Section, document, draw
from eve_vl.report.page import write_page
from eve_vl.search.hits import Hits
from eve_vl.search.index import Index
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

QUERIES = Path(__file__).with_name("queries.tsv")
TEMPLATE = Path(__file__).with_name("queries.html")
NUM_HITS = 10
NUM_SHOWN = 5  # photographs of a query on the page
THUMBNAIL_SIDE = 96
WAYS = {"both": "words and vectors", "words": "words", "vectors": "vectors"}
"""Values of the option `by` of a search, and their names."""

Captions = Sequence[str]


@dataclass(frozen=True)
class TypedQuery:
    """A query, and the words that a caption of a right photograph must have."""

    text: str
    groups: tuple[tuple[str, ...], ...] = ()
    """A caption must have a word or phrase of each group; none: nothing is right."""

    @property
    def is_present(self) -> bool:
        """Whether photographs of it are there."""
        return bool(self.groups)

    def is_right(self, captions: Captions) -> bool:
        """Return whether one of a photograph's captions has a word of each group."""
        return self.is_present and any(map(self._fits, captions))

    def _fits(self, caption: str) -> bool:
        words = re.findall(r"\w+", caption.lower())
        text = f" {' '.join(words)} "
        return all(has_phrase(text, group) for group in self.groups)


def has_phrase(text: str, phrases: Sequence[str]) -> bool:
    """Return whether one of some phrases stands between spaces in a text."""
    return any(f" {phrase} " in text for phrase in phrases)


@dataclass(frozen=True)
class Answer:
    """The first hits of a query in one way of searching."""

    hits: Hits
    is_right: list[bool]
    """Of each hit."""


@dataclass
class AskedQuery:
    """A query with its answers in all ways."""

    query: TypedQuery
    num_right: int
    """Right photographs in the index."""
    chance: float
    """Probability that a random order has a right photograph among the first NUM_HITS."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """By way."""


@dataclass(frozen=True)
class Count:
    """Queries of one kind that were answered as they should."""

    way: str
    num_found: int
    """Queries for what is there with a right photograph among the first NUM_HITS."""
    num_present: int
    chance: float
    """What a random order is expected to find."""
    num_false_alarms: int
    """Queries for what is there of which the search says that nothing fits."""
    num_refused: int
    """The same of queries for what is not there."""
    num_absent: int


def read_queries(path: Path = QUERIES) -> list[TypedQuery]:
    """Return the queries of a table."""
    queries = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            groups = []
            if row["right"]:
                for group in row["right"].split(" & "):
                    groups.append(tuple(group.split("|")))
            queries.append(TypedQuery(row["query"], tuple(groups)))
    return queries


def captions_of_images(index: Index) -> list[Captions]:
    """Return the captions of each image of an index."""
    rows = index.database.rows(
        "SELECT image.slot, text FROM image LEFT JOIN caption ON caption.image = image.id "
        "LEFT JOIN text ON text.slot = caption.slot WHERE image.slot IS NOT NULL"
    )
    captions: dict[int, list[str]] = {}
    for slot, caption in rows:
        captions.setdefault(slot, [])
        if caption is not None:
            captions[slot].append(caption)
    return list(captions.values())


def chance_of_hit(num_images: int, num_right: int) -> float:
    """Return the probability that a random order has a right image among the first NUM_HITS."""
    num_drawn = min(NUM_HITS, num_images)
    all_wrong = math.comb(num_images - num_right, num_drawn)
    return 1 - all_wrong / math.comb(num_images, num_drawn)


def ask(index: Index, queries: Sequence[TypedQuery]) -> list[AskedQuery]:
    """Search for all queries in all ways. Raises UserError."""
    captions = captions_of_images(index)
    asked_queries = []
    for query in queries:
        num_right = sum(map(query.is_right, captions))
        asked = AskedQuery(query, num_right, chance_of_hit(len(captions), num_right))
        for way in WAYS:
            hits = index.search(query.text, by=way, top=NUM_HITS)
            is_right = [query.is_right(hit.captions) for hit in hits]
            asked.answers[way] = Answer(hits, is_right)
        asked_queries.append(asked)
    return asked_queries


def count(asked_queries: Sequence[AskedQuery], way: str) -> Count:
    """Return how many queries were answered as they should in one way of searching."""
    present = [asked for asked in asked_queries if asked.query.is_present]
    absent = [asked for asked in asked_queries if not asked.query.is_present]
    return Count(
        way=WAYS[way],
        num_found=sum(any(asked.answers[way].is_right) for asked in present),
        num_present=len(present),
        chance=sum(asked.chance for asked in present),
        num_false_alarms=sum(asked.answers[way].hits.nothing_fits for asked in present),
        num_refused=sum(asked.answers[way].hits.nothing_fits for asked in absent),
        num_absent=len(absent),
    )


def print_counts(counts: Sequence[Count]) -> None:
    """Print a line for each way of searching."""
    for way_count in counts:
        print_line(
            f"{way_count.way:18} {way_count.num_found} of {way_count.num_present} with a right "
            f"photograph among the first {NUM_HITS} (random order: {way_count.chance:.1f}); "
            f"'nothing here fits': {way_count.num_false_alarms} of these, "
            f"{way_count.num_refused} of {way_count.num_absent} absent ones"
        )


def print_mistakes(asked_queries: Sequence[AskedQuery]) -> None:
    """Print the queries that were not answered as they should, by the ways that failed."""
    for asked in asked_queries:
        failed = []
        for way, answer in asked.answers.items():
            is_good = any(answer.is_right) if asked.query.is_present else answer.hits.nothing_fits
            if not is_good:
                failed.append(WAYS[way])
        if failed:
            problem = "no right photograph" if asked.query.is_present else "something fits"
            print_line(f"{asked.query.text}: {problem} by {', by '.join(failed)}")


def page(
    index: Index,
    counts: Sequence[Count],
    asked_queries: Sequence[AskedQuery],
) -> str:
    """Return an HTML page with the counts and the first photographs of each query."""
    thumbnail = thumbnails(index)
    sections = [Section("counts", "Counts", draw(TEMPLATE, "counted", counts=counts))]
    for name, title, is_present in (
        ("present", "Things that are there", True),
        ("absent", "Things that are not there", False),
    ):
        chosen = [asked for asked in asked_queries if asked.query.is_present == is_present]
        body = draw(
            TEMPLATE, "answers", asked_queries=chosen, ways=WAYS, num=NUM_SHOWN, thumbnail=thumbnail
        )
        sections.append(Section(name, title, body))
    return document(
        "search.html",
        sections,
        title=f"{len(asked_queries)} queries for photographs",
        made_by=index.database.made_by,
        counts=index.counts(),
    )


def thumbnails(index: Index) -> Callable[[int], str]:
    """Return a function from an image's number to a small JPEG in base64."""

    def thumbnail(number: int) -> str:
        buffer = io.BytesIO()
        pixels_HWC = index.image(number).whole(THUMBNAIL_SIDE)
        Image.fromarray(pixels_HWC).save(buffer, format="JPEG")
        return base64.b64encode(buffer.getvalue()).decode()

    return thumbnail


def main() -> None:
    """Ask all queries, print the counts and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder, or builtin:NAME")
    parser.add_argument("photos", nargs="+", help="tables or folders of photographs with captions")
    parser.add_argument("--html", type=Path, help="also write a page with the photographs found")
    args = parser.parse_args()
    try:
        eve = Eve.load(args.run)
        with tempfile.TemporaryDirectory() as folder:
            index = eve.index(args.photos, Path(folder) / "index")
            asked_queries = ask(index, read_queries())
            counts = [count(asked_queries, way) for way in WAYS]
            print_mistakes(asked_queries)
            print_counts(counts)
            if args.html is not None:
                print_line(f"page: {write_page(args.html, page(index, counts, asked_queries))}")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
