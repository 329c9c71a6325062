"""Counters of `/metrics`, for Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from eve_vl.serve.reservations import Reservations

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of requests, batches and reservations."""

    def __init__(self, reservations: Reservations):
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "eve_requests", "Requests answered.", ["call", "status"], registry=registry
        )
        self.seconds = Histogram(
            "eve_request_seconds",
            "Seconds from a request to its answer.",
            ["call"],
            buckets=SECONDS,
            registry=registry,
        )
        self._rows = Histogram(
            "eve_batch_rows", "Images or texts of a batch.", buckets=ROWS, registry=registry
        )
        self._batch_seconds = Histogram(
            "eve_batch_seconds", "Seconds to compute a batch.", buckets=SECONDS, registry=registry
        )
        self.queue = Gauge("eve_queue_length", "Jobs that wait to be computed.", registry=registry)
        accepted = Gauge(
            "eve_requests_accepted", "Requests that wait or are computed.", registry=registry
        )
        accepted.set_function(lambda: reservations.num_requests)
        held = Gauge(
            "eve_held_bytes", "Bytes of bodies, decoded images and results.", registry=registry
        )
        held.set_function(lambda: reservations.num_bytes)
        ProcessCollector(registry=registry)

    def count_request(self, call: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests.labels(call, status).inc()
        self.seconds.labels(call).observe(seconds)

    def count_batch(self, rows: int, seconds: float) -> None:
        """Count a computed batch."""
        self._rows.observe(rows)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all counters in the format of Prometheus."""
        return generate_latest(self._registry)
