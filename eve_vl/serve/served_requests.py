"""Request classes of calls that the command line has in another form."""

from collections.abc import Mapping
from typing import ClassVar

from eve_vl.predict.request_fields import Images, Texts
from eve_vl.predict.requests import Request
from eve_vl.search.search_options import SearchOptions
from eve_vl.serve.limits import MOST_HITS, MOST_RERANKED


class EncodeImage(Request):
    """Return features of one or several images, (n, d), each of length 1, in order."""

    by_rows = True
    images: Images
    """Images."""


class EncodeText(Request):
    """Return features of one or several texts, (n, d), each of length 1, in order."""

    by_rows = True
    texts: Texts
    """Texts."""


class Search(Request, SearchOptions):
    """Find images of the index by a query, by an image or by both; or captions.

    Lists of queries and images are answered row by row.
    """

    by_rows = True
    bounds: ClassVar[Mapping[str, tuple[int, int]]] = {
        "top": (1, MOST_HITS),
        "rerank": (0, MOST_RERANKED),
    }
    query: Texts = ""
    """Query, in which -WORD excludes, 2:WORD counts twice, and quotes keep words together."""
    image: Images | None = None
    """Image, alone or with a query."""
    folder: str | None = None
    """Folder of the index, as hits name it, that hits must lie in."""


REQUESTS = {"encode_image": EncodeImage, "encode_text": EncodeText}
"""Requests of the calls that every run has."""
