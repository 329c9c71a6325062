"""Search an index: a text or an image in, images or captions out, best first.

Letters: N slots, Q queries, K candidates, d width of features.
"""

import contextlib
import functools
import json
import os
import shlex
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eve_vl.data.decoding import read_image
from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageSpan
from eve_vl.data.table import Table
from eve_vl.predict.inputs import GivenImage, ImageLike, given_image
from eve_vl.run.loading import locked
from eve_vl.search.database import DATABASE, Database, digest_of, index_errors, source_name
from eve_vl.search.hits import Hit, Hits, measure_background, read_hits
from eve_vl.search.indexer import Changes, OpenSource, Update
from eve_vl.search.nearest import Cells, topk_exact, update_cells
from eve_vl.search.query import (
    Query,
    SearchOptions,
    Target,
    encode_queries,
    filter_of,
    match_scores,
    shrunk,
    slots_that_pass,
)
from eve_vl.search.words import DEPTH, Ranked, fuse, has_phrase, quoted, rank, without
from eve_vl.utils.errors import BadSampleError, UserError, nearest
from eve_vl.utils.file_io import expand_user, is_text

Specs = str | Path | Iterable[str | Path]
EXAMPLES = 7, 80  # number of example captions; letters of each, at most
MOST_FOLDERS = 5  # that a message names
MOST_MASKS = (
    8  # masks of the latest filters that are kept; one takes a megabyte for a million images
)

IMAGE = """SELECT name, path, start, image.size, row, spec, hash
FROM image JOIN source ON source.id = source LEFT JOIN feature USING (slot) WHERE image.id = ?"""


class Index:
    """Features of images and captions on the disk, and the run that made them."""

    def __init__(self, database: Database, encoder: Any):
        """encoder: an `Eve` of the run that made the index."""
        self.database, self.encoder = database, encoder
        self._has_match = "match" in encoder.calls
        self._mask = functools.lru_cache(maxsize=MOST_MASKS)(
            lambda _, chosen: slots_that_pass(database, chosen)
        )
        self._captioned = functools.lru_cache(maxsize=1)(lambda _: slots_that_pass(database))
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
        cls,
        folder: str | Path,
        encoder: Any,
        sources: Specs = (),
        *,
        drop: Specs = (),
        batch_size: int = 64,
        **reading: Any,
    ) -> "Index":
        """Make an index, or update it from its sources; see `Eve.index`."""
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size} is not positive")
        folder = expand_user(folder)
        lists = [[each] if isinstance(each, str | Path) else each for each in (sources, drop)]
        if remote := [spec for spec in map(source_name, lists[0]) if "://" in spec]:
            raise UserError(
                f"{remote[0]}: a search reads its images again; copy them to a disk, and index that"
            )
        opened, dropped, lost = (
            OpenSource.each(lists[0], reading),
            list(map(source_name, lists[1])),
            {},
        )
        with index_errors(folder):
            has_files = folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir())
        if not (folder / DATABASE).exists() and (
            has_files or not opened
        ):  # looked up last: another thread may make it
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
                is_used_N = slots_that_pass(index.database, filter_of(SearchOptions()))
                update_cells(index.database, is_used_N)
                measure_background(index.database, encoder, is_used_N)
        index.changes = update.changes
        if lost:
            spec, error = next(iter(lost.items()))
            fix = f"eve index --out {shlex.quote(str(folder))} --drop {shlex.quote(spec)}"
            raise UserError(
                f"{error}; the other sources are up to date; to forget it and its images: {fix}"
            )
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
        query = (
            f"SELECT spec, (SELECT min(name) {of}), (SELECT max(name) {of}) FROM source ORDER BY id"
        )
        rows = [row for row in self.database.rows(query) if row[1] is not None]
        common = [
            (spec, os.path.commonpath([os.path.dirname(name) for name in ends]))  # noqa: PTH120
            for spec, *ends in rows
        ]
        return list(
            dict.fromkeys(
                spec if Path(path).is_relative_to(spec) else path for spec, path in common
            )
        )

    def columns(self) -> list[str]:
        """Return the names of the columns that `search` takes for `where`."""
        return self.database.read_fact("columns")

    def examples(self) -> list[str]:
        """Return a few short captions from all over the index, as examples of queries."""
        num, longest = EXAMPLES
        query = "SELECT text FROM text WHERE slot >= ? AND slot < ? AND length(text) BETWEEN 1 AND ? ORDER BY slot LIMIT 1"
        ((end,),) = self.database.rows("SELECT coalesce(max(slot), -1) + 1 FROM text")
        starts = [
            (2 * part + 1) * end // (2 * num) for part in range(num)
        ]  # the first captions of a source are rarely typical
        parts = zip(starts, [*starts[1:], end], strict=True)
        return [text for part in parts for (text,) in self.database.rows(query, [*part, longest])]

    def captioned(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """Return captions of the index with the number of their first image."""
        query = "SELECT text, min(image) FROM text JOIN caption USING (slot) WHERE text IN (SELECT value FROM json_each(?))"
        return self.database.rows(f"{query} GROUP BY slot ORDER BY slot", [json.dumps([*texts])])

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
        return {
            name: self.database.rows(f"SELECT count(*) FROM {rows}")[0][0]
            for name, rows in sets.items()
        }

    def search(self, query: str = "", *, image: ImageLike | None = None, **options: Any) -> Hits:
        """Return the best images, or captions, for a text, an image or both.

        options: fields of `SearchOptions`. Raises UserError.
        """
        return self.search_each([query], [image], **options)[0]

    def search_each(
        self, queries: Sequence[str], images: Sequence[ImageLike | None], **options: Any
    ) -> list[Hits]:
        """Return the hits of several queries, each with its image; see `search`."""
        how = SearchOptions(**options)
        where = how.where or {}
        if invalid := [
            text
            for text in (*queries, str(how.folder), *where, *where.values())
            if not is_text(text)
        ]:
            raise UserError(f"{invalid[0]!r} is not valid UTF-8; correct it")
        if not queries:
            return []
        asked, chosen = [Query.of(text) for text in queries], filter_of(how)
        targets = self._targets(asked, images, how)
        is_wanted_N = self._mask(self.version, chosen)
        if not len(is_wanted_N):
            raise UserError(f"{self.database.folder}: {self._why_none(how)}")
        nums = [
            self.num_reranked(query, image, how)
            for query, image in zip(queries, images, strict=True)
        ]
        ranked = self._ranked(asked, targets, is_wanted_N, max(how.top, *nums), how)
        found = read_hits(self.database, [*zip(asked, targets, ranked, strict=True)], chosen, how)
        notes = [self._note(*each, is_wanted_N, how) for each in zip(asked, targets, strict=True)]
        return [
            Hits(
                (
                    self._reranked(hits, query.text if image is None else image, n, how.captions)
                    if n
                    else hits
                )[: how.top],
                note,
            )
            for query, image, n, hits, note in zip(asked, images, nums, found, notes, strict=True)
        ]

    def _note(
        self, query: Query, target: Target, is_wanted_N: np.ndarray, how: SearchOptions
    ) -> str:
        """Return a sentence on quoted phrases that no caption has, or an empty text."""
        table, phrases = (
            "text_words" if how.captions else "image_words",
            query.phrases if how.by != "vectors" else (),
        )
        missing = [
            quoted(each)
            for each in phrases
            if not has_phrase(self.database, table, each, is_wanted_N)
        ]
        instead = "left out" if target.vector_d is None else "searched by similarity only"
        return f"no searched caption has {', '.join(missing)}; {instead}" if missing else ""

    def _targets(
        self, asked: Sequence[Query], images: Sequence[ImageLike | None], how: SearchOptions
    ) -> list[Target]:
        """Return the vectors of queries; those that have none are searched by words alone."""
        if not all(
            query.parts or image is not None for query, image in zip(asked, images, strict=True)
        ):
            raise UserError("nothing to search for: give a text, an image or both")
        if how.by == "words" and any(
            image is not None or not query.terms for query, image in zip(asked, images, strict=True)
        ):
            raise UserError(
                "by words: only a query of words can be searched by words alone; give no image"
            )
        if how.by == "words":
            return [Target() for _ in asked]
        try:
            vectors = encode_queries(self.encoder, asked, images, how.captions)
        except UserError as error:
            if len(asked) == 1:
                if how.by == "vectors" or images[0] is not None or not asked[0].terms:
                    raise
                return [Target(problem=error)]
            with contextlib.suppress(UserError):  # the first error names the row
                return [
                    self._targets([query], [image], how)[0]
                    for query, image in zip(asked, images, strict=True)
                ]
            raise
        by_image = [image is not None for image in images]
        return [Target(*each) for each in zip(*vectors, by_image, strict=True)]

    def _ranked(
        self,
        asked: Sequence[Query],
        targets: Sequence[Target],
        is_wanted_N: np.ndarray,
        num: int,
        how: SearchOptions,
    ) -> list[Ranked]:
        """Return the first `num` hits of each query.

        One pass over the index serves all queries without excluded words.
        """
        table, vectors = (
            ("text_words", self.database.texts)
            if how.captions
            else ("image_words", self.database.images)
        )
        k, is_filtered = (
            num if how.by == "vectors" else max(num, DEPTH),
            how.folder is not None or bool(how.where),
        )
        has_words_N = np.full(len(is_wanted_N), how.captions)
        if not how.captions:
            is_captioned_N = self._captioned(self.version)[: len(has_words_N)]
            has_words_N[: len(is_captioned_N)] = is_captioned_N
        ranked: dict[int, Ranked] = {}
        passes: dict[int, list[int]] = defaultdict(list)
        for row, query in enumerate(asked):
            passes[row if query.excluded else -1].append(row)
        for rows in passes.values():
            is_left_N = without(self.database, table, asked[rows[0]], is_wanted_N)
            near: dict[int, tuple[np.ndarray, np.ndarray]] = {}
            if of_vectors := {
                row: vector_d for row in rows if (vector_d := targets[row].vector_d) is not None
            }:
                query_Qd = np.stack([*of_vectors.values()])
                use_cells = not (is_filtered or how.captions or is_left_N is not is_wanted_N)
                best = self._cells.topk(query_Qd, k, len(is_left_N)) if use_cells else None
                best = best or topk_exact(vectors.first(len(is_left_N)), query_Qd, k, is_left_N)
                near = dict(zip(of_vectors, zip(*best, strict=True), strict=True))
            for row in rows:
                use_words = how.by != "vectors" and bool(asked[row].terms)
                matches = (
                    rank(self.database, table, asked[row], is_left_N, is_filtered=is_filtered)
                    if use_words
                    else None
                )
                if (problem := targets[row].problem) is not None and (
                    matches is None or not len(matches.slots_W)
                ):
                    raise problem
                ranked[row] = fuse(near.get(row), matches, has_words_N, vectors, targets[row], num)
        return [ranked[row] for row in range(len(asked))]

    def _why_none(self, how: SearchOptions) -> str:
        """Return why the filter leaves nothing to search."""
        known, where = self.columns(), how.where or {}
        if not len(self):
            return "is empty: it holds no image that can be used"
        if unknown := [name for name in where if name not in known]:
            return (
                f"no column {nearest(unknown[0], known)}" if known else "its images have no columns"
            )
        asked = [f"{name} = {value}" for name, value in where.items()]
        asked += [
            f"folder {how.folder}; its folders: {', '.join(self.folders()[:MOST_FOLDERS])}"
        ] * (how.folder is not None)
        return (
            f"no {'caption' if how.captions else 'image'} of the index"
            + f" has {', '.join(asked)}" * bool(asked)
        )

    def num_reranked(self, text: str, image: Any, how: SearchOptions) -> int:
        """Return the number of candidates that `search` re-ranks.

        Raises UserError if `rerank` has no effect.
        """
        query = Query.of(text)
        is_pair = (
            bool(query.parts) != (image is not None)
            and how.captions == (image is not None)
            and how.by != "words"
        )
        is_pair &= query.parts in ((), ((query.text, 1.0),))
        if is_pair and self._has_match:
            own = min(int(getattr(self.encoder.run.config.task, "rerank", 0)), self.most_reranked)
            return own if how.rerank is None else how.rerank
        if how.rerank:
            only = "only searches of images by text and of captions by image have it"
            raise UserError(
                f"rerank {how.rerank} has no effect: {'the run has no matching head' if is_pair else only}"
            )
        return 0

    def _reranked(
        self, hits: list[Hit], given: ImageLike | str, rerank: int, captions: bool
    ) -> list[Hit]:
        """Order the first `rerank` hits by the matching head; unreadable images follow."""
        sizes, readable, unreadable = self.encoder.run.config.input, [], []
        asked = shrunk(given_image(given), sizes) if captions else given

        def pairs() -> Iterator[tuple[Any, Any, float]]:  # lazily: one batch of images in memory
            for hit in hits[:rerank]:
                try:
                    image, text = (
                        (asked, hit.name)
                        if captions
                        else (shrunk(self.image(hit.id), sizes), given)
                    )
                except BadSampleError:
                    unreadable.append(hit)
                else:
                    readable.append(hit)
                    yield image, text, hit.score or 0.0

        scores = match_scores(self.encoder, pairs())
        matched = [
            replace(hit, match=float(score)) for hit, score in zip(readable, scores, strict=True)
        ]
        return (
            sorted(matched, key=lambda hit: (not hit.is_literal, -(hit.match or 0.0)))
            + unreadable
            + hits[rerank:]
        )

    def digests(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return the hashes of images by their numbers (`Hit.id`), if they still exist."""
        query = "SELECT id, hash FROM image JOIN feature USING (slot) WHERE id IN (SELECT value FROM json_each(?))"
        return {
            number: digest.hex()
            for number, digest in self.database.rows(query, [json.dumps([*numbers])])
        }

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
                ref = (
                    ImageFile(path=Path(path))
                    if start is None
                    else ImageSpan(path=Path(path), offset=start, size=size)
                )
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
