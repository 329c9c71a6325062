"""Limits of a server. Imports no torch, because the command line shows them."""

from dataclasses import fields

from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

MB = 2**20
DECODERS = 2  # threads that decode images of requests
MAX_LENGTH = 10_000  # characters of a text, numbers in a list
MAX_VALUES = 50_000  # in a body
# hits, pairs or prompts over all rows of a request: each takes time of the one computing thread
MOST_RESULTS = 2_000
MOST_HITS = 1_000
MOST_RERANKED = 100  # of a search: the matching head computes each pair


class Limits(Frozen):
    """Limits of a server; each is a flag of `eve serve`.

    Raises UserError unless all are positive.
    """

    queue: int = 256
    """Requests that wait or are computed; the server answers further ones with 503 and
    Retry-After."""
    batch: int = 64
    """Images or texts to compute at a time, from requests that wait for the same call."""
    memory_mb: int = 256
    """Megabytes that bodies, decoded images and results of all requests may hold together; further
    requests get 503."""
    body_mb: int = 16
    """Megabytes of a request's body."""
    items: int = 64
    """Images or texts in a list."""
    pixels: int = 32_000_000
    """Pixels of all images of a request together, counted before decoding."""
    body_seconds: float = 20.0
    """Seconds for a client to send its body."""
    wait_seconds: float = 30.0
    """Seconds a request may wait before it is decoded or computed; then it gets 503."""

    def __post_init__(self):
        for limit in fields(Limits):
            value = getattr(self, limit.name)
            if not value > 0:
                flag = f"--{limit.name.replace('_', '-')}"
                raise UserError(f"{flag}: {value} was given, expected more than 0")
