"""The index that a server searches: its hits, thumbnails and facts under public names."""

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eve_vl.search.hits import Hit
from eve_vl.search.index import Index
from eve_vl.search.search_options import SearchOptions
from eve_vl.serve.endpoints import Endpoint
from eve_vl.serve.examples import ExampleRow, index_rows
from eve_vl.serve.limits import MOST_RERANKED, Limits
from eve_vl.serve.public_names import distinct, folder_path, public_name
from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.serve.request_images import image_file
from eve_vl.serve.served_requests import Search
from eve_vl.utils.errors import BadSampleError

LOG = logging.getLogger(__name__)
# seconds to wait for an index that another process writes, while the computing thread stands still
SECONDS_LOCKED = 0.25


class IndexFacts(NamedTuple):
    """Facts of a version of the index, and rows for examples."""

    facts: dict[str, Any]
    rows: list[ExampleRow]


class ServedIndex:
    """The index of one of the runs of a server."""

    def __init__(self, index: Index, run_name: str | None, limits: Limits):
        self.index = index
        self.run_name = run_name
        index.database.wait_for_lock(SECONDS_LOCKED)
        index.most_reranked = MOST_RERANKED
        self.endpoint = Endpoint(
            request=Search,
            call=self.search,
            limits=limits,
            sizes=index.encoder.run.config.input,
            by_rows=True,
            num_reranked=self.num_reranked,
        )
        self.labels: dict[str, str] = {}
        """Folders of the sources by public name, as of the last look."""
        self._version_of_labels: int | None = None
        self._facts_of_version = functools.lru_cache(maxsize=1)(self._read_facts)

    def search(
        self,
        query: Any = "",
        image: Any = None,
        folder: str | None = None,
        **options: Any,
    ) -> Any:
        """Return the hits of one query, or of each of several."""
        started = time.perf_counter()
        folders = self.folders()
        path = None if folder is None else folder_path(folder, folders)
        queries, images = in_rows(query, image)
        hits_of_queries = self.index.search_each(queries, images, folder=path, **options)
        answers = []
        for hits in hits_of_queries:
            answers.append(
                {
                    "hits": self._hit_values(hits, folders, is_caption=options["captions"]),
                    "nothing_fits": hits.nothing_fits,
                    "note": hits.note,
                }
            )
        seconds = time.perf_counter() - started
        for answer in answers:
            answer["seconds"] = seconds
        is_list = isinstance(query, list) or isinstance(image, list)
        return answers if is_list else answers[0]

    def num_reranked(self, values: Mapping[str, Any]) -> int:
        """Return how many hits of a row are re-ranked, at most."""
        options = SearchOptions(
            by=values["by"], captions=values["captions"], rerank=values["rerank"]
        )
        queries, images = in_rows(values["query"], values["image"])
        # lists of other lengths are refused later
        pairs = zip(queries, images, strict=False)
        nums = [self.index.num_reranked(query, image, options) for query, image in pairs]
        return max(nums, default=0)

    def folders(self) -> dict[str, str]:
        """Return the folders of the sources by public name.

        Sources may change while the server runs.
        """
        version = self.index.version
        if self._version_of_labels != version:
            folders = self.index.folders()
            names = distinct(Path(folder).name or "images" for folder in folders)
            self.labels = dict(zip(names, folders, strict=True))
            self._version_of_labels = version
        return self.labels

    def facts(self) -> IndexFacts:
        """Return the facts of the index as it is now."""
        return self._facts_of_version(self.index.version)

    def _read_facts(self, version: int) -> IndexFacts:
        counts = self.index.counts()
        text_queries = bool(self.index.encoder.task.is_comparable)
        facts = {
            "images": counts["images"],
            "captions": counts["captions"],
            "text_queries": text_queries,
            "run": self.run_name,
            "folders": list(self.folders()),
            "captions_searchable": text_queries and counts["captions"] > 0,
            "columns": self.index.columns(),
            "examples": self.index.examples(),
        }
        return IndexFacts(facts, index_rows(self.index))

    def thumbnail(self, number: int, digest: str | None, side: int) -> bytes:
        """Return an image as JPEG, its longer side at most `side` pixels.

        digest: of its content, because an update may give the number to another image. Raises
        RequestRefusedError.
        """
        try:
            image = self.index.image(number)
            if digest is not None and digest != self.index.digests([number]).get(number):
                message = f"image {number} is another one by now; search again"
                raise RequestRefusedError(404, message)
            return image_file(image.whole(side), "JPEG")
        except BadSampleError as error:  # which may name any file of a source
            LOG.warning("%s", error)
            message = f"image {number} cannot be shown; the server's log says why"
            raise RequestRefusedError(404, message) from None

    def _hit_values(
        self, hits: Sequence[Hit], folders: Mapping[str, str], *, is_caption: bool
    ) -> list[dict[str, Any]]:
        """Return hits as JSON values, with public names of images."""
        digests = self.index.digests([hit.id for hit in hits])
        hits_values = []
        for hit in hits:
            values = {**vars(hit), "why": hit.why}
            if not is_caption:
                values["name"] = public_name(hit.name, folders)
            values["images"] = [public_name(name, folders) for name in hit.images]
            if hit.near:
                values["near"] = public_name(hit.near, folders)
            # with its content, because numbers of deleted images are used again
            values["image"] = f"/v1/images/{hit.id}/{digests.get(hit.id, 'gone')}"
            hits_values.append(values)
        return hits_values


def in_rows(query: Any, image: Any) -> tuple[list[Any], list[Any]]:
    """Return the queries and the images of a search, with an item for each row."""
    num = max((len(value) for value in (query, image) if isinstance(value, list)), default=1)
    queries = query if isinstance(query, list) else [query] * num
    images = image if isinstance(image, list) else [image] * num
    return queries, images
