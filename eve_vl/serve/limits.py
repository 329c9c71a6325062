"""What a server takes from its clients, and how it says no. Imports no torch, because the command line shows the limits."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from eve_vl.utils.errors import UserError, printable, shortened

MB = 2**20
DECODERS = 2  # threads that decode what is sent
MAX_LENGTH = 10_000  # letters of a text, numbers in a list
MAX_VALUES = 50_000  # in a body
MOST_RESULTS = 2_000  # hits, pairs or prompts of all rows of a request: each takes time of the thread that computes for all
MOST_RERANKED = 100  # of a search: the matching head computes each pair
CLOSE: Mapping[str, str] = {"connection": "close"}  # what the client still sends is not waited for


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server; each is a flag of `eve serve`."""

    queue: int = 256
    """Requests that wait or are worked on; further ones are refused with 503 and told to come again."""
    batch: int = 64
    """How many images or texts to compute at a time, of requests that wait for the same call."""
    memory_mb: int = 256
    """Megabytes that bodies, decoded images and answers of all requests may hold together; what is more is refused with 503.
    Requests take at most this, and for each of two threads that decode 3 times a body and 18 bytes a pixel (at most 600 MB)."""
    body_mb: int = 16
    """Megabytes of a request's body."""
    items: int = 64
    """Images or texts in a list."""
    pixels: int = 32_000_000
    """Pixels of all images of a request together, counted before any is decoded."""
    body_seconds: float = 20.0
    """How long a client may take to send a body, and to take any part of its answer."""
    wait_seconds: float = 30.0
    """How long a request may wait, for its turn to be decoded and to be computed; after that it is refused with 503."""

    @property
    def most_mb(self) -> float:
        """Megabytes that requests take at most beside the models, batches, results and the one image of the index that
        becomes a thumbnail: what all hold, and for each thread that decodes a body as text, its base64 and its bytes, and a
        image at the formats' worst."""
        return self.memory_mb + DECODERS * (3 * self.body_mb + min(18 * self.pixels / MB, 600))

    def check(self) -> None:
        """Raise UserError for a limit that nothing could meet."""
        for each in dataclasses.fields(Limits):
            if not getattr(self, each.name) > 0:
                raise UserError(f"--{each.name.replace('_', '-')}: {getattr(self, each.name)} was given, expected more than 0")


@dataclass(eq=False)
class RequestRefusedError(Exception):
    """An answer that is no result: a status and one line that says what was given, what was expected, what to do."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.message = printable(shortened(self.message))


def busy(why: str, seconds: int = 1) -> RequestRefusedError:
    """Return the refusal of a request that may be sent again later."""
    return RequestRefusedError(503, f"{why}; send it again in {seconds} s", {"retry-after": str(seconds)})
