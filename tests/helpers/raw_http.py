"""Requests to a local server, written byte by byte."""

import asyncio
import json
import time
from typing import Any, NamedTuple

TOKEN = "open sesame"


class Request(NamedTuple):
    """A path and the values of a body."""

    path: str
    values: dict[str, Any]

    @property
    def body(self) -> bytes:
        return json.dumps(self.values).encode()


class Answer(NamedTuple):
    """The status of a response, and the seconds that it took."""

    status: int
    seconds: float


def request_head(
    path: str,
    length: Any,
    token: str = TOKEN,
    content_type: str = "application/json",
) -> bytes:
    """Return the head of a request, without its method."""
    lines = (
        f" {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {token}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes and return all that the server answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


async def post(port: int, request: Request) -> Answer:
    """Send a valid request."""
    start = time.perf_counter()
    head = request_head(request.path, len(request.body))
    response = await exchange(port, b"POST" + head + request.body)
    return Answer(int(response.split()[1]), time.perf_counter() - start)
