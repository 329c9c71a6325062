"""Answers of a web server to requests for bytes of a file, and what may be wrong with them."""

import gzip
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event

NUM_PARTS = 8  # of a body that is sent with pauses


@dataclass
class Answer:
    """An answer with a file or a range of its bytes."""

    path: str
    """What was asked for."""
    file: bytes
    """The whole content."""
    start: int
    end: int
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    sent_bytes: int | None = None
    """How much of the body is sent; None: all of it."""
    is_silent: bool = False
    """The connection then stays open for as long as the server runs."""
    pause: float = 0.0
    """Seconds before each part of the body."""
    raw: bytes = b""
    """What is sent in place of status, headers and body."""


def whole_answer(
    path: str,
    file: bytes,
    etag: str,
    requested_range: str,
) -> Answer:
    """Return the right answer to a request for a file or a range of it."""
    span = re.fullmatch(r"bytes=(\d+)-(\d+)", requested_range)
    start = int(span[1]) if span else 0
    end = min(int(span[2]) + 1, len(file)) if span else len(file)
    if span and start >= len(file):
        return Answer(path, file, 0, 0, 416, b"", {"Content-Length": "0"})
    answer = Answer(path, file, start, end, 206 if span else 200, file[start:end])
    answer.headers = {"Content-Length": str(end - start), "ETag": etag}
    if span:
        answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(file)}"
    return answer


def send(answer: Answer, handler: BaseHTTPRequestHandler, is_stopped: Event) -> None:
    """Send an answer; is_stopped: set when the server stops."""
    handler.close_connection = True
    if answer.raw:
        handler.wfile.write(answer.raw)
    else:
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command == "GET":
            _send_body(answer, handler)
    if answer.is_silent:
        handler.wfile.flush()
        is_stopped.wait()


def _send_body(answer: Answer, handler: BaseHTTPRequestHandler) -> None:
    body = answer.body[: answer.sent_bytes]
    part_size = len(body) // NUM_PARTS + 1 if answer.pause else max(1, len(body))
    for start in range(0, len(body), part_size):
        time.sleep(answer.pause)
        handler.wfile.write(body[start : start + part_size])


def set_body(answer: Answer, body: bytes) -> None:
    """Set the body and its length."""
    answer.body = body
    answer.headers["Content-Length"] = str(len(body))


# Faults


def stall(answer: Answer) -> None:
    """Send half of the body and nothing more, but leave the connection open."""
    answer.sent_bytes = len(answer.body) // 2
    answer.is_silent = True


def mute(answer: Answer) -> None:
    """Leave the connection open without an answer."""
    answer.raw = b"HTTP/1.1 "
    answer.is_silent = True


def cut(answer: Answer) -> None:
    """Send half of the body."""
    answer.sent_bytes = len(answer.body) // 2


def other_range(answer: Answer) -> None:
    """Send other bytes than those of the requested range."""
    if answer.status != 206:
        return
    start = answer.start + 512 if answer.start + 512 < len(answer.file) else 0
    end = min(start + answer.end - answer.start, len(answer.file))
    set_body(answer, answer.file[start:end])
    answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(answer.file)}"


def untold_range(answer: Answer) -> None:
    """Send other bytes than those of the requested range, under the headers of that range."""
    if answer.status != 206:
        return
    size = len(answer.body)
    set_body(answer, (answer.file[answer.start + 7 :] + bytes(size))[:size])


def whole(answer: Answer) -> None:
    """Send the whole file as if it were the range."""
    set_body(answer, answer.file)


def no_range(answer: Answer) -> None:
    """Send the whole file, as a server does that has no ranges."""
    whole(answer)
    answer.status = 200
    answer.headers.pop("Content-Range", None)


def bare_range(answer: Answer) -> None:
    """Do not state which range the body is."""
    answer.headers.pop("Content-Range", None)


def redirect(answer: Answer) -> None:
    """Send the client to another address of the same file."""
    if not answer.path.startswith("/moved/"):
        answer.status = 302
        answer.headers = {"Location": f"/moved{answer.path}"}
        set_body(answer, b"")


def redirect_loop(answer: Answer) -> None:
    """Send the client to the same address."""
    answer.status = 302
    answer.headers = {"Location": answer.path}
    set_body(answer, b"")


def short_length(answer: Answer) -> None:
    """State a length that is 100 bytes too short."""
    answer.headers["Content-Length"] = str(max(0, len(answer.body) - 100))


def long_length(answer: Answer) -> None:
    """State a length that is 100 bytes too long."""
    answer.headers["Content-Length"] = str(len(answer.body) + 100)


def slow(answer: Answer) -> None:
    """Send small parts with pauses, so that all of it comes late."""
    answer.pause = 0.002


def trickle(answer: Answer) -> None:
    """Send small parts with pauses, so that the end never comes."""
    answer.pause = 0.2


def garbage(answer: Answer) -> None:
    """Send an answer that is no HTTP."""
    answer.raw = b"\x00\xffwhat?\r\n\r\n" + answer.body


def garbage_header(answer: Answer) -> None:
    """State a length that is no number."""
    answer.headers["Content-Length"] = "many"


def empty(answer: Answer) -> None:
    """Send no bytes."""
    set_body(answer, b"")


def chunked(answer: Answer) -> None:
    """Send parts of a total length that is not stated."""
    del answer.headers["Content-Length"]
    answer.headers["Transfer-Encoding"] = "chunked"
    size = len(answer.body)
    answer.body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, answer.body) if size else b"0\r\n\r\n"


def gzipped(answer: Answer) -> None:
    """Send the bytes compressed."""
    answer.headers["Content-Encoding"] = "gzip"
    set_body(answer, gzip.compress(answer.body))


def hang_up(answer: Answer) -> None:
    """End the connection without an answer."""
    answer.raw = b"\n"


def new_etag(answer: Answer) -> None:
    """State another version in each answer."""
    answer.headers["ETag"] = str(time.monotonic_ns())


FAULTS: dict[str, Callable[[Answer], None]] = {}
for fault in (
    stall,
    mute,
    cut,
    other_range,
    untold_range,
    whole,
    no_range,
    bare_range,
    redirect,
    redirect_loop,
    short_length,
    long_length,
    slow,
    trickle,
    garbage,
    garbage_header,
    empty,
    chunked,
    gzipped,
    hang_up,
    new_etag,
):
    FAULTS[fault.__name__] = fault


def damage(answer: Answer, fault: str) -> None:
    """Change an answer; a number is its status."""
    if fault.isdigit():
        answer.status = int(fault)
        answer.headers = {}
        set_body(answer, b"")
    elif fault:
        FAULTS[fault](answer)
