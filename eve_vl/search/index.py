"""Search an index: a text or an image in, images or captions out, best first.

Letters: N slots.
"""

import functools
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eve_vl.predict.user_images import ImageLike, UserImage
from eve_vl.run.run_lock import locked
from eve_vl.search.cells import update_cells
from eve_vl.search.database import Database
from eve_vl.search.filters import search_filter, slots_that_pass
from eve_vl.search.fit import measure_background
from eve_vl.search.fusion import DEPTH
from eve_vl.search.hits import Hit, Hits, RankedQuery, read_hits
from eve_vl.search.index_files import DATABASE, index_errors
from eve_vl.search.query import Query
from eve_vl.search.query_vectors import Target, search_targets
from eve_vl.search.ranking import Ranking
from eve_vl.search.reranking import num_reranked, rerank
from eve_vl.search.search_options import SearchOptions
from eve_vl.search.sources import OpenSource, open_each, source_name
from eve_vl.search.stored_images import StoredImages
from eve_vl.search.update import Changes, Update
from eve_vl.search.word_search import has_phrase
from eve_vl.search.word_tables import IMAGE_WORDS, TEXT_WORDS, quoted
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import expand_user, is_text

Specs = str | Path | Iterable[str | Path]

NUM_EXAMPLES = 7  # captions
# letters: a short caption is more like a query than a sentence about a photograph
LONGEST_EXAMPLES = (40, 80)
MOST_FOLDERS = 5  # that a message names
# masks of the latest filters that are kept; one takes a megabyte for a million images
MOST_MASKS = 8


class Index:
    """Features of images and captions on the disk, and the run that made them."""

    def __init__(self, database: Database, encoder: Any):
        """encoder: an `Eve` of the run that made the index."""
        self.database = database
        self.encoder = encoder
        self.changes = Changes()
        """The changes that the update found, if this object comes from one."""
        self.most_reranked = sys.maxsize
        """Bound on the run's own number of candidates; a server keeps other requests from
        waiting."""
        self._images = StoredImages(database)
        self._ranking = Ranking(database)
        self._mask = functools.lru_cache(maxsize=MOST_MASKS)(
            lambda version, mask_filter: slots_that_pass(database, mask_filter)
        )

    @classmethod
    def open(cls, folder: str | Path, encoder: Any) -> "Index":
        """Open an index to search in it. Raises UserError if another run made it."""
        database = Database.open(expand_user(folder))
        database.require_run(encoder.run)
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
        specs = _listed(sources)
        for name in map(source_name, specs):
            if "://" in name:
                raise UserError(
                    f"{name}: a search reads its images again; copy them to a disk, and index that"
                )
        open_sources = open_each(specs, reading)
        dropped = [source_name(spec) for spec in _listed(drop)]
        _require_index_folder(folder, may_create=bool(open_sources))

        unavailable: dict[str, UserError] = {}
        with locked(folder):
            index = cls(Database.create(folder, encoder.run), encoder)
            index._require_sources(dropped)
            if not open_sources and not dropped:
                open_sources, unavailable = index._open_sources()
            with index.database.changing():
                update = Update(index.database, encoder, batch_size)
                update.run(open_sources, dropped)
                is_used_N = slots_that_pass(index.database, search_filter(SearchOptions()))
                update_cells(index.database, is_used_N)
                measure_background(index.database, encoder, is_used_N)
        index.changes = update.changes
        for spec, error in unavailable.items():
            command = f"eve index --out {shlex.quote(str(folder))} --drop {shlex.quote(spec)}"
            raise UserError(
                f"{error}; the other sources are up to date; to forget it and its images: {command}"
            )
        return index

    def _require_sources(self, specs: Sequence[str]) -> None:
        """Raise UserError if one of some sources is not in the index."""
        indexed = self.sources()
        for spec in specs:
            if spec not in indexed:
                raise UserError(
                    f"--drop: {self.database.folder} has no source {nearest(spec, indexed)}"
                )

    def _open_sources(self) -> tuple[list[OpenSource], dict[str, UserError]]:
        """Return the sources of the index, and errors of those that cannot be opened."""
        sources = []
        errors = {}
        for spec, reading in self.sources().items():
            try:
                sources.append(OpenSource.open(spec, reading))
            except UserError as error:  # one lost source must not stop the rest
                errors[spec] = error
        return sources, errors

    def sources(self) -> dict[str, dict[str, Any]]:
        """Return how to read each source of the index."""
        rows = self.database.rows("SELECT spec, reading FROM source ORDER BY id")
        return {spec: json.loads(reading) for spec, reading in rows}

    def folders(self) -> list[str]:
        """Return a folder of each source that holds all its images.

        It is the source itself, or the start of all its images' paths. This reads only the index's
        own disk.
        """
        images = "FROM image WHERE image.source = source.id AND slot IS NOT NULL"
        ends = f"(SELECT min(name) {images}), (SELECT max(name) {images})"
        folders: dict[str, None] = {}
        for spec, first_name, last_name in self.database.rows(
            f"SELECT spec, {ends} FROM source ORDER BY id"
        ):
            if first_name is None:
                continue
            parents = [os.path.dirname(name) for name in (first_name, last_name)]  # noqa: PTH120
            folder = os.path.commonpath(parents)
            if Path(folder).is_relative_to(spec):
                folder = spec
            folders[folder] = None
        return list(folders)

    def columns(self) -> list[str]:
        """Return the names of the columns that `search` takes for `where`."""
        return self.database.read_fact("columns")

    def examples(self) -> list[str]:
        """Return a few short captions from all over the index, as examples of queries."""
        query = """
        SELECT text FROM text WHERE slot >= ? AND slot < ? AND length(text) BETWEEN 1 AND ?
        ORDER BY slot LIMIT 1"""
        ((num_slots,),) = self.database.rows("SELECT coalesce(max(slot), -1) + 1 FROM text")
        # the first captions of a source are rarely typical
        starts = [(2 * part + 1) * num_slots // (2 * NUM_EXAMPLES) for part in range(NUM_EXAMPLES)]
        ends = [*starts[1:], num_slots]
        captions = []
        for start, end in zip(starts, ends, strict=True):
            for longest in LONGEST_EXAMPLES:
                rows = self.database.rows(query, [start, end, longest])
                captions += [text for (text,) in rows]
                if rows:
                    break
        return captions

    def captioned(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """Return captions of the index with the number of their first image."""
        query = """
        SELECT text, min(image) FROM text JOIN caption USING (slot)
        WHERE text IN (SELECT value FROM json_each(?)) GROUP BY slot ORDER BY slot"""
        return self.database.rows(query, [json.dumps(list(texts))])

    @property
    def version(self) -> int:
        """A number that changes when another process or connection commits to the index."""
        return self.database.version

    def __len__(self) -> int:
        return self.counts()["images"]

    def counts(self) -> dict[str, int]:
        """Return the numbers of images by kind, and of captions.

        Kinds: images, distinct contents, near-duplicates among these, broken images.
        """
        tables = {
            # several sources may list one image
            "images": "(SELECT DISTINCT name, slot FROM image WHERE slot IS NOT NULL)",
            "distinct": "feature",
            "near": "feature WHERE near != slot",
            "captions": "text",
            "broken": "(SELECT DISTINCT name FROM image WHERE slot IS NULL)",
        }
        counts = {}
        for kind, rows in tables.items():
            ((number,),) = self.database.rows(f"SELECT count(*) FROM {rows}")
            counts[kind] = number
        return counts

    def search(self, query: str = "", *, image: ImageLike | None = None, **options: Any) -> Hits:
        """Return the best images, or captions, for a text, an image or both.

        options: fields of `SearchOptions`. Raises UserError.
        """
        return self.search_each([query], [image], **options)[0]

    def search_each(
        self, queries: Sequence[str], images: Sequence[ImageLike | None], **options: Any
    ) -> list[Hits]:
        """Return the hits of several queries, each with its image; see `search`."""
        search_options = SearchOptions(**options)
        _require_text(queries, search_options)
        if not queries:
            return []
        parsed = [Query.parse(query) for query in queries]
        wanted = search_filter(search_options)
        targets = search_targets(self.encoder, parsed, images, search_options)
        is_wanted_N = self._mask(self.version, wanted)
        if not len(is_wanted_N):
            raise UserError(f"{self.database.folder}: {self._why_none(search_options)}")

        nums_reranked = [
            self.num_reranked(query, image, search_options)
            for query, image in zip(queries, images, strict=True)
        ]
        nums_hits = [max(search_options.top, num) for num in nums_reranked]
        # why a hit was found must not depend on the number of hits, so more are ranked than read
        num_ranked = max(DEPTH, *nums_hits)
        ranked = self._ranking.rank(parsed, targets, is_wanted_N, num_ranked, search_options)
        ranked_queries = list(map(RankedQuery, parsed, targets, ranked, nums_hits))
        hits_of_queries = read_hits(self.database, ranked_queries, wanted, search_options)
        results = []
        for row, hits in enumerate(hits_of_queries):
            note = self._note(parsed[row], targets[row], is_wanted_N, search_options)
            best: list[Hit] = hits
            if nums_reranked[row]:
                image = images[row]
                best = rerank(
                    self.encoder,
                    hits,
                    parsed[row].text if image is None else image,
                    nums_reranked[row],
                    self.image,
                    captions=search_options.captions,
                )
            results.append(
                Hits(best[: search_options.top], nothing_fits=hits.nothing_fits, note=note)
            )
        return results

    def num_reranked(
        self, query: str, image: ImageLike | None, search_options: SearchOptions
    ) -> int:
        """Return the number of candidates that `search` re-ranks.

        Raises UserError if `rerank` has no effect.
        """
        return num_reranked(self.encoder, query, image, search_options, self.most_reranked)

    def _note(
        self, query: Query, target: Target, is_wanted_N: np.ndarray, options: SearchOptions
    ) -> str:
        """Return a sentence on quoted phrases that no caption has, or an empty text."""
        if options.by == "vectors":
            return ""
        table = TEXT_WORDS if options.captions else IMAGE_WORDS
        missing = []
        for phrase in query.phrases:
            if not has_phrase(self.database, table, phrase, is_wanted_N):
                missing.append(quoted(phrase))
        if not missing:
            return ""
        instead = "left out" if target.vector_d is None else "searched by similarity only"
        return f"no searched caption has {', '.join(missing)}; {instead}"

    def _why_none(self, options: SearchOptions) -> str:
        """Return why the filter leaves nothing to search."""
        if not len(self):
            return "is empty: it holds no image that can be used"
        where = options.where or {}
        columns = self.columns()
        for name in where:
            if name not in columns:
                if not columns:
                    return "its images have no columns"
                return f"no column {nearest(name, columns)}"
        conditions = [f"{name} = {value}" for name, value in where.items()]
        if options.folder is not None:
            folders = ", ".join(self.folders()[:MOST_FOLDERS])
            conditions.append(f"folder {options.folder}; its folders: {folders}")
        reason = f"no {'caption' if options.captions else 'image'} of the index"
        if conditions:
            reason += f" has {', '.join(conditions)}"
        return reason

    def digests(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return the hashes of images by their numbers (`Hit.id`), if they still exist."""
        return self._images.digests(numbers)

    def image(self, number: int) -> UserImage:
        """Return an image by its number (`Hit.id`).

        Raises BadSampleError if it is gone or its file has changed.
        """
        return self._images.read(number)


def _listed(specs: Specs) -> list[str | Path]:
    """Return one or several sources as a list."""
    return [specs] if isinstance(specs, str | Path) else list(specs)


def _require_index_folder(folder: Path, *, may_create: bool) -> None:
    """Raise UserError if a folder is no index and cannot become one."""
    with index_errors(folder):
        has_files = folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir())
    # looked up last: another thread may make it
    if (folder / DATABASE).exists():
        return
    if not may_create:
        raise UserError(
            f"{folder}: is no index yet; to make one, name folders of images, tables or shards"
        )
    if has_files:
        raise UserError(
            f"{folder}: holds files, but no index; name a new folder for it, with --out"
        )


def _require_text(queries: Sequence[str], options: SearchOptions) -> None:
    """Raise UserError if a text of a search is not valid UTF-8."""
    where = options.where or {}
    for text in (*queries, str(options.folder), *where, *where.values()):
        if not is_text(text):
            raise UserError(f"{text!r} is not valid UTF-8; correct it")
