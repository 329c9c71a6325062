"""Search an index: a text or an image in, images or captions out, best first.

Letters: N slots, Q queries, K candidates, d width of features.
"""

import functools
import json
import os
import shlex
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eve_vl.data.decoding import read_image
from eve_vl.data.records import ImageBytes, ImageFile, ImageSpan
from eve_vl.data.table import Table
from eve_vl.predict.inputs import GivenImage, ImageLike, given_image
from eve_vl.run.loading import locked
from eve_vl.search.database import DATABASE, Database, OpenSource, digest_of, index_errors, source_name
from eve_vl.search.indexer import Changes, Update
from eve_vl.search.nearest import Cells, build_cells, topk_exact
from eve_vl.search.query import Filter, SearchOptions, encode_queries, filter_of, match_scores, shrunk, slots_that_pass
from eve_vl.utils.errors import BadSampleError, UserError, nearest
from eve_vl.utils.file_io import expand_user, is_text

Specs = str | Path | Iterable[str | Path]
MOST_LISTED = 100  # images with the same bytes or with one caption; captions of one image
EXAMPLES = 7, 80  # number of example captions; letters of each, at most
MOST_FOLDERS = 5  # that a message names
MOST_MASKS = 8  # masks of the latest filters that are kept; one takes a megabyte for a million images

# Rows about hits: slot, kind, three columns to order by (the second is an image's id), and a name or caption
_ASKED = "WITH asked(slot) AS (SELECT value FROM json_each(?)), found(slot, kind, is_other, id, tie, name) AS ("
_RANKED = """)
SELECT slot, kind, id, name FROM (
    SELECT *, row_number() OVER (PARTITION BY slot, kind ORDER BY is_other, id, tie) AS place FROM found
) WHERE place <= ? ORDER BY slot, kind, place"""
IMAGE_HITS = f"""{_ASKED}
SELECT image.slot, 'image', min(NOT ({{filter}})), min(id), 0, name
FROM asked CROSS JOIN image ON image.slot = asked.slot GROUP BY image.slot, name
UNION ALL
SELECT image.slot, 'caption', 0, min(id), text.slot, text
FROM asked CROSS JOIN image ON image.slot = asked.slot JOIN caption ON caption.image = id
JOIN text ON text.slot = caption.slot GROUP BY image.slot, text.slot
UNION ALL
SELECT feature.slot, 'near', 0, min(id), 0, name
FROM asked CROSS JOIN feature ON feature.slot = asked.slot JOIN image ON image.slot = near
WHERE near != feature.slot GROUP BY feature.slot, name{_RANKED}"""
CAPTION_HITS = f"""{_ASKED}
SELECT caption.slot, 'image', min(NOT ({{filter}})), min(id), 0, name
FROM asked CROSS JOIN caption ON caption.slot = asked.slot JOIN image ON id = image GROUP BY caption.slot, name
UNION ALL
SELECT text.slot, 'caption', 0, 0, 0, text FROM asked CROSS JOIN text ON text.slot = asked.slot{_RANKED}"""

IMAGE = """SELECT name, path, start, image.size, row, spec, hash
FROM image JOIN source ON source.id = source LEFT JOIN feature USING (slot) WHERE image.id = ?"""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result: an image or, if captions were searched, a caption."""

    id: int
    """The image's number in the index; the first one's if several have the same bytes or the caption."""
    name: str
    """The image's path, or the row of a source that holds it; the caption."""
    score: float
    """The cosine between its features and the query's."""
    match: float | None = None
    """The matching head's score, by which it was re-ranked."""
    captions: tuple[str, ...] = ()
    """An image's captions, at most MOST_LISTED."""
    images: tuple[str, ...] = ()
    """Images with the very same bytes, or with the caption: those that pass the filter first, at most MOST_LISTED."""
    near: str | None = None
    """The first image of the index of which this one is a near-duplicate."""


class Index:
    """Features of images and captions on the disk, and the run that made them."""

    def __init__(self, database: Database, encoder: Any):
        """encoder: an `Eve` of the run that made the index."""
        self.database, self.encoder = database, encoder
        self._has_match = "match" in encoder.calls
        self._mask = functools.lru_cache(maxsize=MOST_MASKS)(lambda _, chosen: slots_that_pass(database, chosen))
        self._cells = Cells(database)
        self._opened: tuple[int, dict[str, Table]] = (0, {})
        self._one_reads = threading.Lock()  # tables cache rows, and a server reads in two threads
        self.changes = Changes()
        """The changes that the update found, if this object comes from one."""
        self.most_reranked = sys.maxsize
        """Bound on the run's own number of candidates; a server keeps other requests from waiting."""

    @classmethod
    def open(cls, folder: str | Path, encoder: Any) -> "Index":
        """Open an index to search in it. Raises UserError if another run made it."""
        database = Database.open(expand_user(folder))
        database.check(encoder.run)
        return cls(database, encoder)

    @classmethod
    def update(
        cls, folder: str | Path, encoder: Any, sources: Specs = (), *, drop: Specs = (), batch_size: int = 64, **reading: Any
    ) -> "Index":
        """Make an index, or update it from its sources; see `Eve.index`."""
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size} is not positive")
        folder = expand_user(folder)
        lists = ([each] if isinstance(each, str | Path) else each for each in (sources, drop))
        specs, dropped = (list(map(source_name, given)) for given in lists)
        reading = {name: os.path.abspath(value) if isinstance(value, Path) else value for name, value in reading.items()}  # noqa: PTH100
        reading = {name: value for name, value in reading.items() if value not in (None, "auto")}
        opened, lost = [OpenSource.of(spec, reading) for spec in dict.fromkeys(specs)], {}
        with index_errors(folder):
            has_files = folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir())
        if not (folder / DATABASE).exists() and (has_files or not opened):  # looked up last: another thread may make it
            problem = "holds files, but no index; name a new folder for it, with --out"
            missing = "is no index yet; to make one, name folders of images, tables or shards"
            raise UserError(f"{folder}: {problem if opened else missing}")
        with locked(folder):
            index = cls(Database.create(folder, encoder.run), encoder)
            known = index.sources()
            if unknown := [spec for spec in dropped if spec not in known]:
                raise UserError(f"--drop: {folder} has no source {nearest(unknown[0], known)}")
            for spec in () if opened or dropped else known:
                try:
                    opened.append(OpenSource.of(spec, known[spec]))
                except UserError as error:  # one lost source must not stop the rest
                    lost[spec] = error
            with index.database.changing():
                update = Update(index.database, encoder, batch_size)
                update.run(opened, dropped)
                build_cells(index.database, slots_that_pass(index.database, filter_of(SearchOptions())))
        index.changes = update.changes
        if lost:
            spec, error = next(iter(lost.items()))
            fix = f"eve index --out {shlex.quote(str(folder))} --drop {shlex.quote(spec)}"
            raise UserError(f"{error}; the other sources are up to date; to forget it and its images: {fix}")
        return index

    def sources(self) -> dict[str, dict[str, Any]]:
        """Return how to read each source of the index."""
        rows = self.database.rows("SELECT spec, reading FROM source ORDER BY id")
        return {spec: json.loads(reading) for spec, reading in rows}

    def folders(self) -> list[str]:
        """Return a folder of each source that holds all its images.

        It is the source itself, or the start of all its images' paths. This reads only the index's own disk.
        """
        of = "FROM image WHERE image.source = source.id AND slot IS NOT NULL"
        query = f"SELECT spec, (SELECT min(name) {of}), (SELECT max(name) {of}) FROM source ORDER BY id"
        rows = [row for row in self.database.rows(query) if row[1] is not None]
        common = [(spec, os.path.commonpath([os.path.dirname(name) for name in ends])) for spec, *ends in rows]  # noqa: PTH120
        return list(dict.fromkeys(spec if Path(path).is_relative_to(spec) else path for spec, path in common))

    def columns(self) -> list[str]:
        """Return the names of the columns that `search` takes for `where`."""
        return self.database.read_fact("columns")

    def examples(self) -> list[str]:
        """Return a few short captions from all over the index, as examples of queries."""
        num, longest = EXAMPLES
        query = "SELECT text FROM text WHERE slot >= ? AND slot < ? AND length(text) BETWEEN 1 AND ? ORDER BY slot LIMIT 1"
        ((end,),) = self.database.rows("SELECT coalesce(max(slot), -1) + 1 FROM text")
        starts = [(2 * part + 1) * end // (2 * num) for part in range(num)]  # the first captions of a source are rarely typical
        parts = zip(starts, [*starts[1:], end], strict=True)
        return [text for part in parts for (text,) in self.database.rows(query, [*part, longest])]

    @property
    def version(self) -> int:
        """A number that changes when another process or connection commits to the index."""
        return self.database.rows("PRAGMA data_version")[0][0]

    def __len__(self) -> int:
        return self.counts()["images"]

    def counts(self) -> dict[str, int]:
        """Return the numbers of images by kind, and of captions.

        Kinds: images, distinct contents, near-duplicates among these, broken images.
        """
        sets = {
            "images": "(SELECT DISTINCT name, slot FROM image WHERE slot IS NOT NULL)",  # several sources may list one image
            "distinct": "feature",
            "near": "feature WHERE near != slot",
            "captions": "text",
            "broken": "(SELECT DISTINCT name FROM image WHERE slot IS NULL)",
        }
        return {name: self.database.rows(f"SELECT count(*) FROM {rows}")[0][0] for name, rows in sets.items()}

    def search(self, query: str = "", *, image: ImageLike | None = None, **options: Any) -> list[Hit]:
        """Return the best images, or captions, for a text, an image or both.

        options: fields of `SearchOptions`. Raises UserError.
        """
        return self.search_each([query], [image], **options)[0]

    def search_each(self, queries: Sequence[str], images: Sequence[ImageLike | None], **options: Any) -> list[list[Hit]]:
        """Return the hits of several queries, each with its image; see `search`.

        One pass over the index serves all.
        """
        how = SearchOptions(**options)
        where = how.where or {}
        if invalid := [text for text in (*queries, how.without, str(how.folder), *where, *where.values()) if not is_text(text)]:
            raise UserError(f"{invalid[0]!r} is not valid UTF-8; correct it")
        if not queries:
            return []
        query_Qd, chosen = encode_queries(self.encoder, queries, images, how.without, how.captions), filter_of(how)
        is_wanted_N = self._mask(self.version, chosen)
        if not len(is_wanted_N):
            raise UserError(f"{self.database.folder}: {self._why_none(how)}")
        asked = list(zip(queries, images, strict=True))
        nums = [self.num_reranked(*pair, how) for pair in asked]
        k, use_cells = max(how.top, *nums), not chosen.values and not how.captions
        best = self._cells.topk(query_Qd, k, len(is_wanted_N)) if use_cells else None
        if best is None:
            vectors = self.database.texts if how.captions else self.database.images
            best = topk_exact(vectors.first(len(is_wanted_N)), query_Qd, k, is_wanted_N)
        found = self._hits(best[0].tolist(), best[1].tolist(), chosen, how.captions)
        return [
            (self._reranked(hits, text if image is None else image, num, how.captions) if num else hits)[: how.top]
            for (text, image), num, hits in zip(asked, nums, found, strict=True)
        ]

    def _hits(self, slot_QK: list[list[int]], score_QK: list[Any], chosen: Filter, captions: bool) -> list[list[Hit]]:
        """Return the hits of all queries, by one SQL query."""
        slots = json.dumps([*{slot for slot_K in slot_QK for slot in slot_K}])
        query = (CAPTION_HITS if captions else IMAGE_HITS).format(filter=chosen.sql)
        known: dict[tuple[int, str], list[tuple[int, str]]] = defaultdict(list)
        for slot, kind, number, name in self.database.rows(query, [slots, *chosen.values, MOST_LISTED]):
            known[slot, kind].append((number, name))

        def hit(slot: int, score: float) -> Hit | None:
            images, texts, near = (known[slot, kind] for kind in ("image", "caption", "near"))
            if not images or (captions and not texts):  # an update has freed the slot meanwhile
                return None
            (number, name), names = images[0], tuple(name for _, name in images)
            if captions:
                return Hit(id=number, name=texts[0][1], score=score, images=names)
            other = next((other for _, other in near if other != name), None)
            return Hit(id=number, name=name, score=score, captions=tuple(text for _, text in texts), images=names, near=other)

        return [[*filter(None, map(hit, *each))] for each in zip(slot_QK, score_QK, strict=True)]

    def _why_none(self, how: SearchOptions) -> str:
        """Return why the filter leaves nothing to search."""
        known, where = self.columns(), how.where or {}
        if not len(self):
            return "is empty: it holds no image that can be used"
        if unknown := [name for name in where if name not in known]:
            return f"no column {nearest(unknown[0], known)}" if known else "its images have no columns"
        asked = [f"{name} = {value}" for name, value in where.items()]
        asked += [f"folder {how.folder}; its folders: {', '.join(self.folders()[:MOST_FOLDERS])}"] * (how.folder is not None)
        return f"no {'caption' if how.captions else 'image'} of the index" + f" has {', '.join(asked)}" * bool(asked)

    def num_reranked(self, query: str, image: Any, how: SearchOptions) -> int:
        """Return the number of candidates that `search` re-ranks.

        Raises UserError if `rerank` has no effect.
        """
        is_pair = not how.without and (bool(query) != (image is not None)) and how.captions == (image is not None)
        if is_pair and self._has_match:
            own = min(int(getattr(self.encoder.run.config.task, "rerank", 0)), self.most_reranked)
            return own if how.rerank is None else how.rerank
        if how.rerank:
            only = "only searches of images by text and of captions by image have it"
            raise UserError(f"rerank {how.rerank} has no effect: {'the run has no matching head' if is_pair else only}")
        return 0

    def _reranked(self, hits: list[Hit], given: ImageLike | str, rerank: int, captions: bool) -> list[Hit]:
        """Order the first `rerank` hits by the matching head; unreadable images follow."""
        size, readable, unreadable = self.encoder.run.config.input.image_size, [], []
        asked = shrunk(given_image(given), size) if captions else given

        def pairs() -> Iterator[tuple[Any, Any, float]]:  # lazily: one batch of images in memory
            for hit in hits[:rerank]:
                try:
                    image, text = (asked, hit.name) if captions else (shrunk(self.image(hit.id), size), given)
                except BadSampleError:
                    unreadable.append(hit)
                else:
                    readable.append(hit)
                    yield image, text, hit.score

        scores = match_scores(self.encoder, pairs())
        matched = [replace(hit, match=float(score)) for hit, score in zip(readable, scores, strict=True)]
        return sorted(matched, key=lambda hit: -(hit.match or 0.0)) + unreadable + hits[rerank:]

    def digests(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return the hashes of images by their numbers (`Hit.id`), if they still exist."""
        query = "SELECT id, hash FROM image JOIN feature USING (slot) WHERE id IN (SELECT value FROM json_each(?))"
        return {number: digest.hex() for number, digest in self.database.rows(query, [json.dumps([*numbers])])}

    def image(self, number: int) -> GivenImage:
        """Return an image by its number (`Hit.id`).

        Raises BadSampleError if it is gone or its file has changed.
        """
        if not (found := self.database.rows(IMAGE, [number])):
            raise BadSampleError(f"image {number}", "is not in the index")
        ((name, path, start, size, row, spec, digest),) = found
        try:
            if path is None:
                with self._one_reads:
                    ref = self._source(spec)[row].image
            else:
                ref = ImageFile(path=Path(path)) if start is None else ImageSpan(path=Path(path), offset=start, size=size)
        except (UserError, IndexError) as error:
            raise BadSampleError(name, str(error)) from None
        data = read_image(ref, name)
        if digest_of(data) != digest:  # its file, shard or table has changed
            raise BadSampleError(name, "is not the image that was indexed; update the index")
        return GivenImage(ref=ImageBytes(data=data), where=name)

    def _source(self, spec: str) -> Table:
        """Return an open source, for images without files of their own."""
        if self._opened[0] != self.version:  # its rows may have changed
            self._opened = self.version, {}
        if spec not in self._opened[1]:
            self._opened[1][spec] = OpenSource.of(spec, self.sources()[spec]).source
        return self._opened[1][spec]
