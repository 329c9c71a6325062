"""An index in the hands of a person: words or an image in, images or captions out, best first.

Letters: N slots, Q queries, K candidates, d width of features.
"""

import itertools
import json
import os
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eve_vl.data.records import ImageBytes, ImageFile, ImageSpan
from eve_vl.data.table import TableSource
from eve_vl.data.transforms import read_image
from eve_vl.predict.inputs import GivenImage, ImageLike, given_image, is_source
from eve_vl.run.lock import locked
from eve_vl.search import ann
from eve_vl.search.database import DATABASE, Database, index_errors
from eve_vl.search.exact import topk_exact
from eve_vl.search.filters import Condition, FilterCache, absolute, condition
from eve_vl.search.indexer import Changes, OpenSource, Update
from eve_vl.search.prefetch import digest_of
from eve_vl.search.query import refuse_halves, refuse_unknown
from eve_vl.search.rerank import match_scores, shrunk
from eve_vl.utils.errors import BadSampleError, UserError, nearest
from eve_vl.utils.safe_io import expand_user

NOTHING_LEFT = 1e-3  # length of a query, whose parts have length 1: below it rounding decides
MOST_SAID = 100  # images of the same bytes, or with a caption; captions of an image
EXAMPLES = 7, 80  # how many captions, and of how many letters at most
MOST_FOLDERS = 5  # that a message names


@dataclass(frozen=True, kw_only=True)
class Hit:
    """What was found: an image or, if captions were asked for, a caption."""

    id: int
    """The image's number in the index; of several with the same bytes or with a caption, that of the first."""
    name: str
    """The image's path, or the row of a source that holds it; the caption."""
    score: float
    """The cosine between its features and the query's."""
    match: float | None = None
    """What the matching head says, by which it was put in order again."""
    captions: tuple[str, ...] = ()
    """Of an image; at most MOST_SAID."""
    images: tuple[str, ...] = ()
    """Images of the very same bytes, or with the caption; at most MOST_SAID, first those that were searched among."""
    near: str | None = None
    """Of an image: the first one of the index that is almost the same, if it is another."""


class Index:
    """Features of images and of their captions, on the disk, and the run that made them."""

    def __init__(self, store: Database, encoder: Any):
        """encoder: an `Eve` of the run that the index was made by."""
        self.store, self.encoder = store, encoder
        self._masks = FilterCache(store)
        self._cells = ann.Cells(store)
        self._opened: tuple[int, dict[str, OpenSource]] = (0, {})
        self._one_reads = threading.Lock()  # tables keep what they have read; a server reads in two threads
        self.changes = Changes()
        """What the update that made this has done."""
        self.most_reranked = sys.maxsize
        """Of the run's own number, where none is asked for: others wait for a server's search."""

    @classmethod
    def open(cls, folder: str | Path, encoder: Any) -> "Index":
        """Open an index to search in it. Raises UserError if it is another run's."""
        store = Database.open(expand_user(folder))
        store.check(encoder.run)
        return cls(store, encoder)

    @classmethod
    def update(
        cls,
        folder: str | Path,
        encoder: Any,
        sources: str | Path | Iterable[str | Path] = (),
        *,
        drop: str | Path | Iterable[str | Path] = (),
        batch_size: int = 64,
        **reading: Any,
    ) -> "Index":
        """Make an index, or bring it up to date with sources; see `Eve.index`."""
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size} is not positive")
        folder = expand_user(folder)
        several = ([each] if isinstance(each, str | Path) else each for each in (sources, drop))
        specs, gone = ([absolute(spec) for spec in each] for each in several)
        how = {name: os.path.abspath(value) if isinstance(value, Path) else value for name, value in reading.items()}  # noqa: PTH100
        how = {name: value for name, value in how.items() if value not in (None, "auto")}
        given = [OpenSource.of(spec, how) for spec in dict.fromkeys(specs)]
        if not given and not (folder / DATABASE).exists():
            raise UserError(f"{folder}: is no index yet; to make one, name folders of images, tables or shards")
        with index_errors(folder):
            if folder.is_dir() and not (folder / DATABASE).exists() and any(path.name[0] != "." for path in folder.iterdir()):
                raise UserError(f"{folder}: holds files, but no index; name a new folder for it, with --out")
        with locked(folder):
            index = cls(Database.create(folder, encoder.run), encoder)
            known = index.sources()
            if not (given or gone or known):
                raise UserError(f"{folder}: has no sources yet; name folders of images, tables or shards")
            if unknown := [spec for spec in gone if spec not in known]:
                raise UserError(f"--drop: {folder} has no source {nearest(unknown[0], known)}")
            update = Update(index.store, encoder, batch_size)
            update.drop(gone)
            opened, lost = (given, {}) if given or gone else _opened(known)
            if opened:
                update.run(opened)
            ann.build(index.store, index._masks.wanted(index.version, condition(None, {})))
        index.changes = update.changes
        if lost:
            spec, error = next(iter(lost.items()))
            others = "; the other sources are up to date" * bool(opened) + f"; {len(lost) - 1} more like it" * (len(lost) > 1)
            way_out = f"eve index --out {shlex.quote(str(folder))} --drop {shlex.quote(spec)}"
            raise UserError(f"{error}{others}; to forget it and its images: {way_out}")
        return index

    def sources(self) -> dict[str, dict[str, Any]]:
        """Return how to read each source of the index."""
        with index_errors(self.store.folder):
            return {
                spec: json.loads(how) for spec, how in self.store.db.execute("SELECT spec, reading FROM source ORDER BY id")
            }

    def folders(self) -> list[str]:
        """Return a folder of each source that all its images lie in: its own, or what their paths begin with. No disk is
        asked but the index's."""
        of = "FROM image WHERE image.source = source.id AND slot IS NOT NULL"
        query = f"SELECT spec, (SELECT min(name) {of}), (SELECT max(name) {of}) FROM source ORDER BY id"
        with index_errors(self.store.folder):
            rows = [row for row in self.store.db.execute(query) if row[1] is not None]
        common = [(spec, os.path.commonpath([os.path.dirname(name) for name in ends])) for spec, *ends in rows]  # noqa: PTH120
        return list(dict.fromkeys(spec if Path(path).is_relative_to(spec) else path for spec, path in common))

    def columns(self) -> list[str]:
        """Return the columns that images have, which `search` takes for `where`."""
        with index_errors(self.store.folder):
            return [name for (name,) in self.store.db.execute("SELECT DISTINCT key FROM caption, json_each(caption.columns)")]

    def examples(self) -> list[str]:
        """Return a few captions of a line at most, from all over the index: what may be looked for."""
        num, longest = EXAMPLES
        query = "SELECT text FROM text WHERE slot >= ? AND slot < ? AND length(text) BETWEEN 1 AND ? ORDER BY slot LIMIT 1"
        with index_errors(self.store.folder):
            (end,) = self.store.db.execute("SELECT coalesce(max(slot), -1) + 1 FROM text").fetchone()
            places = [part * end // num for part in range(num + 1)]
            found = (self.store.db.execute(query, [*place, longest]).fetchone() for place in itertools.pairwise(places))
            return [row[0] for row in found if row is not None]

    @property
    def version(self) -> int:
        """A number that is another one after somebody else has changed the index."""
        with index_errors(self.store.folder):
            return self.store.db.execute("PRAGMA data_version").fetchone()[0]

    def __len__(self) -> int:
        return self._count("(SELECT DISTINCT name, slot FROM image WHERE slot IS NOT NULL)")  # several sources may hold one

    def counts(self) -> dict[str, int]:
        """Return how many images there are, of how many distinct contents, how many of these are almost the same as another,
        and how many distinct captions and broken images."""
        return {
            "images": len(self),
            "distinct": self._count("feature"),
            "near": self._count("feature WHERE near != slot"),
            "captions": self._count("text"),
            "broken": self._count("(SELECT DISTINCT name FROM image WHERE slot IS NULL)"),
        }

    def _count(self, what: str) -> int:
        with index_errors(self.store.folder):
            return self.store.db.execute(f"SELECT count(*) FROM {what}").fetchone()[0]

    def search(
        self,
        query: str = "",
        *,
        image: ImageLike | None = None,
        without: str = "",
        captions: bool = False,
        top: int = 20,
        rerank: int | None = None,
        folder: str | Path | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[Hit]:
        """Return the `top` images, or captions, that fit a query in words, an image or both, and do not fit the words `without`.

        folder: only images in it. where: only images whose columns have these values. rerank: how many the matching head
        puts in order again, for words alone that look for images, or an image alone that looks for captions; None: as many
        as validation chose for the run, perhaps none. Raises UserError.
        """
        how: dict[str, Any] = {"captions": captions, "top": top, "rerank": rerank, "folder": folder, "where": where}
        return self.search_each([query], [image], without=without, **how)[0]

    def search_each(
        self,
        queries: Sequence[str],
        images: Sequence[ImageLike | None],
        *,
        without: str = "",
        captions: bool = False,
        top: int = 20,
        rerank: int | None = None,
        folder: str | Path | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[list[Hit]]:
        """Return what `search` does for each of some queries with their images: they are encoded together, and the features of
        the index are read once for all."""
        if top < 1 or (rerank is not None and rerank < 0):
            raise UserError(f"top {top} is not positive" if top < 1 else f"rerank {rerank} is negative")
        if not queries:
            return []
        refuse_halves(query=queries, without=[without], folder=[str(folder)], where=[*where, *where.values()] if where else [])
        query_Qd = self._queries(queries, images, without, captions)
        chosen = condition(folder, where or {}, captions)
        is_wanted = self._masks.wanted(self.version, chosen, captions)
        if not len(is_wanted):
            raise UserError(f"{self.store.folder}: {self._why_none(captions, folder, where or {})}")
        asked = list(zip(queries, images, strict=True))
        nums = [self.num_reranked(rerank, *pair, without, captions) for pair in asked]
        slot_QK, score_QK = self._best(query_Qd, max(top, *nums), is_wanted, captions, is_all=not chosen[1])
        found = []
        for (text, image), num, slot_K, score_K in zip(asked, nums, slot_QK, score_QK, strict=True):
            with index_errors(self.store.folder):
                show, best_K = self._caption if captions else self._image, zip(slot_K, score_K, strict=True)
                hits = [hit for slot, score in best_K if (hit := show(slot, score, chosen)) is not None]
            found.append((self._reranked(hits, text if image is None else image, num, captions) if num else hits)[:top])
        return found

    def _best(
        self, query_Qd: np.ndarray, k: int, is_wanted: np.ndarray, captions: bool, *, is_all: bool
    ) -> tuple[list[list[int]], list[Any]]:
        """Return the best slots of each query and their scores: a few of more than a million images, unless some alone are
        wanted, by cells."""
        found = None
        if is_all and not captions and len(is_wanted) > ann.EXACT_MOST:
            found = self._cells.topk(query_Qd, k)
        blocks = self.store.texts if captions else self.store.images
        slot_QK, score_QK = found or topk_exact(blocks.first(len(is_wanted)), query_Qd, k, is_wanted)
        return slot_QK.tolist(), score_QK.tolist()

    def _queries(self, queries: Sequence[str], images: Sequence[ImageLike | None], without: str, captions: bool) -> np.ndarray:
        """Return what to look for, float32 (Q, d), each of length 1."""
        if not all(text or image is not None for text, image in zip(queries, images, strict=True)):
            raise UserError("nothing to search for: give words, an image or both")
        if (any(queries) or without or captions) and not self.encoder.task.is_comparable:
            raise UserError(
                f"{self.store.facts['run']}: images and texts of this run do not compare, so it finds images by an image "
                "alone; fine-tune it for words: eve finetune retrieval, or demo_retrieval of a small run, --init RUN"
            )
        query_Qd = np.zeros((len(queries), self.encoder.task.feature_dim), np.float32)
        if texts := {row: text for row, text in enumerate(queries) if text}:
            query_Qd[[*texts]] += self._texts([*texts.values()])
        if by_row := {row: image for row, image in enumerate(images) if image is not None}:
            for row, image in by_row.items():
                given = given_image(image, f"image {row}" if len(images) > 1 else "image")
                if is_source(image):
                    raise UserError(f"{given.where}: holds rows and is no image; name one image's file")
            query_Qd[[*by_row]] += self.encoder.encode_image(unwrap_single([*by_row.values()]))
        query_Qd -= self._texts([without]) if without else 0
        lengths_Q1 = np.linalg.norm(query_Qd, axis=1, keepdims=True)
        if (lengths_Q1 < NOTHING_LEFT).any():
            raise UserError("nothing is left to search for: what should not be seen is what is looked for")
        return query_Qd / lengths_Q1

    def _texts(self, texts: list[str]) -> np.ndarray:
        """Return the features of texts. Raises UserError if nothing of what is read of one is known."""
        for text in texts:
            refuse_unknown(text, self.encoder.tokenizer, self.encoder.run.config.input.max_text_tokens)
        return self.encoder.encode_text(unwrap_single(texts))

    def _why_none(self, captions: bool, folder: str | Path | None, where: Mapping[str, str]) -> str:
        """Say why there is nothing to search among."""
        if not len(self):
            return "is empty: it holds no image that can be used"
        if where:
            known = self.columns()
            for name in where:
                if name not in known:
                    return f"no column {nearest(name, known)}" if known else "its images have no columns"
        asked = [f"{name} = {value}" for name, value in where.items()] + ([f"folder {folder}"] if folder is not None else [])
        none = f"no {'caption' if captions else 'image'} of the index" + (f" has {', '.join(asked)}" if asked else "")
        if folder is None or len(self._masks.wanted(self.version, condition(folder, {}))):
            return none
        known = self._masks.folders(MOST_FOLDERS + 1)
        others = " and others" * (len(known) > MOST_FOLDERS)
        return none + f"; its folders: {', '.join(known[:MOST_FOLDERS])}{others}" * bool(known)

    def num_reranked(self, rerank: int | None, query: str, image: Any, without: str, captions: bool) -> int:
        """Return how many hits `search` puts in order again. Raises UserError if that many cannot be."""
        is_pair = not without and (bool(query) != (image is not None)) and captions == (image is not None)
        if not is_pair or "match" not in self.encoder.calls:
            if rerank:
                why = "only words alone find images so, or an image alone captions" if not is_pair else "no matching head"
                raise UserError(f"rerank {rerank} has no effect: {why}")
            return 0
        own = min(int(getattr(self.encoder.run.config.task, "rerank", 0)), self.most_reranked)
        return own if rerank is None else rerank

    def _reranked(self, hits: list[Hit], given: ImageLike | str, rerank: int, captions: bool) -> list[Hit]:
        """Put the first `rerank` hits in order by the matching head; images that cannot be read any more come after them."""
        size, readable, unreadable = self.encoder.run.config.input.image_size, [], []
        asked = shrunk(given_image(given), size) if captions else given

        def pairs() -> Iterator[tuple[Any, Any, float]]:  # a batch of images in memory, however many are asked for
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

    def _image(self, slot: int, score: float, chosen: Condition) -> Hit | None:
        first = f"ORDER BY min(NOT ({chosen[0]})), min(id) LIMIT ?"
        names = f"SELECT min(id), name FROM image WHERE slot = ? GROUP BY name {first}"
        rows = self.store.db.execute(names, [slot, *chosen[1], MOST_SAID]).fetchall()
        if not rows:
            return None
        said = "FROM caption JOIN text USING (slot) JOIN image ON image.id = image WHERE image.slot = ? LIMIT ?"
        near = (
            "SELECT name FROM feature JOIN image ON image.slot = near "
            "WHERE feature.slot = ? AND near != feature.slot AND name != ? ORDER BY id LIMIT 1"
        )
        return Hit(
            id=rows[0][0],
            name=rows[0][1],
            score=score,
            captions=tuple(text for (text,) in self.store.db.execute(f"SELECT DISTINCT text {said}", [slot, MOST_SAID])),
            images=tuple(name for _, name in rows),
            near=next((name for (name,) in self.store.db.execute(near, [slot, rows[0][1]])), None),
        )

    def _caption(self, slot: int, score: float, chosen: Condition) -> Hit | None:
        row = self.store.db.execute("SELECT text FROM text WHERE slot = ?", [slot]).fetchone()
        names = (
            "SELECT min(id), name FROM caption JOIN image ON image.id = image WHERE caption.slot = ? "
            f"GROUP BY name ORDER BY min(NOT ({chosen[0]})), min(id) LIMIT ?"
        )
        images = self.store.db.execute(names, [slot, *chosen[1], MOST_SAID]).fetchall()
        if row is None or not images:
            return None
        return Hit(id=images[0][0], name=row[0], score=score, images=tuple(name for _, name in images))

    def digests(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return what tells the content of each image from any other, by their numbers (`Hit.id`), without those that are not
        there."""
        with index_errors(self.store.folder):
            query = f"FROM image JOIN feature USING (slot) WHERE image.id IN ({', '.join('?' * len(numbers))})"
            return {number: digest.hex() for number, digest in self.store.db.execute(f"SELECT id, hash {query}", numbers)}

    def image(self, number: int) -> GivenImage:
        """Return an image by its number (`Hit.id`). Raises BadSampleError if it cannot be had any more."""
        query = (
            "SELECT name, path, start, image.size, row, spec, hash FROM image JOIN source ON source.id = source "
            "LEFT JOIN feature USING (slot) WHERE image.id = ?"
        )
        with index_errors(self.store.folder):
            found = self.store.db.execute(query, [number]).fetchone()
        if found is None:
            raise BadSampleError(f"image {number}", "is not in the index")
        name, path, start, size, row, spec, digest = found
        if path is not None:
            ref = ImageFile(path=Path(path)) if start is None else ImageSpan(path=Path(path), offset=start, size=size)
        else:
            try:
                with self._one_reads:
                    ref = self._source(spec)[row].image
            except (UserError, IndexError) as error:
                raise BadSampleError(name, str(error)) from None
        data = read_image(ref, name)
        if digest_of(data) != digest:  # its file, shard or table is another by now
            raise BadSampleError(name, "is not the image that was indexed; bring the index up to date")
        return GivenImage(ref=ImageBytes(data=data), where=name)

    def _source(self, spec: str) -> TableSource:
        """Return an open source of images that have no files of their own."""
        version, opened = self._opened
        if version != self.version:  # rows may be others
            self._opened = self.version, (opened := {})
        if spec not in opened:
            opened[spec] = OpenSource.of(spec, self.sources()[spec])
        return opened[spec].source


def _opened(known: Mapping[str, dict[str, Any]]) -> tuple[list[OpenSource], dict[str, UserError]]:
    """Return the sources of an index, and of those that cannot be opened, why: one of them must not stop the others."""
    opened, lost = [], {}
    for spec, reading in known.items():
        try:
            opened.append(OpenSource.of(spec, reading))
        except UserError as error:
            lost[spec] = error
    return opened, lost


def unwrap_single(items: list[Any]) -> Any:
    """Return the only item of a list, of which messages do not say which one it is, or the list."""
    return items[0] if len(items) == 1 else items
