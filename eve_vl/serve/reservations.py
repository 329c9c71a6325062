"""Places of requests in the queue, and the memory that they hold."""

import contextlib
from collections.abc import Iterator

from eve_vl.serve.limits import MB, Limits
from eve_vl.serve.refusals import busy


class Reservations:
    """All requests in the server, and the bytes that they hold together."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.num_requests = 0
        self.num_bytes = 0

    @contextlib.contextmanager
    def reserve(self) -> Iterator["Reservation"]:
        """Give a request a place until the block ends.

        Raises RequestRefusedError if the queue is full.
        """
        if self.num_requests >= self.limits.queue:
            raise busy(f"{self.num_requests} requests wait already")
        reservation = Reservation(self)
        self.num_requests += 1
        try:
            yield reservation
        finally:
            self.num_requests -= 1
            self.num_bytes -= reservation.num_bytes


class Reservation:
    """The bytes of one request."""

    def __init__(self, reservations: Reservations):
        self.reservations = reservations
        self.num_bytes = 0

    def resize(self, num_bytes: int) -> None:
        """Reserve these bytes instead of those before.

        Raises RequestRefusedError if there is no room.
        """
        total = self.reservations.num_bytes + num_bytes - self.num_bytes
        has_room = total <= self.reservations.limits.memory_mb * MB
        if num_bytes > self.num_bytes and not has_room:
            raise busy("too many large requests at a time")
        self.num_bytes = num_bytes
        self.reservations.num_bytes = total
