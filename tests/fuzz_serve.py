"""A campaign against the server: mutated requests go to a real process.

    PYTHONPATH=. python tests/fuzz_serve.py --requests 10000 --seed 1
    PYTHONPATH=. python tests/fuzz_serve.py --beside 60

Requests start as right ones of every call; then values, JSON, images or the HTTP around them are
damaged, clients send half and hang up, or wait. Allowed answers: 200, or one line of JSON with a
status that says whose fault it is, never 500, without a path of the server; a request that is whole
gets one. Some ask for runs and images, one in fifty has another token. At the end: the process
lives, its memory has never been more than it said, and SIGTERM ends it with status 0.

With --beside SECONDS, one client sends long texts and one sends images that are slow to decode,
each without a pause. The times of a third client, alone and next to them, are printed; their 99th
percentile must stay below a second.
"""

import argparse
import asyncio
import contextlib
import copy
import functools
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from PIL import Image

from eve_vl.eve import Eve
from eve_vl.serve.limits import DECODERS, MB, Limits
from helpers.byte_mutations import mutate_bytes
from helpers.encoded_images import encode
from helpers.hostile_clients import compare
from helpers.json_mutations import mutate_json, write_json
from helpers.mutations import mutate
from helpers.process_limits import memory
from helpers.raw_http import TOKEN, Request, exchange, request_head
from helpers.serving import BOMB, CALLS, IMAGE_CALLS, as_json, base64_text, png
from helpers.tiny_runs import TEXTS, tiny_run, write_run

LIMITS = Limits(
    queue=64,
    memory_mb=64,
    body_mb=2,
    pixels=4_000_000,
    body_seconds=5.0,
)
CHANGED_LIMITS = ("queue", "memory_mb", "body_mb", "pixels", "body_seconds")
# of states, if a batch is full, and of gaps: the server keeps freed memory, so its growth ends at a
# plateau
BATCH_MB = 64
STATUSES = {200, 400, 401, 404, 405, 408, 411, 413, 415, 431, 503}
NUMBERS = (0, -1, 1.5, 2**31, 2**63 - 1, -(2**63), 10**30, 1e308, -0.0)
STRINGS = ("", " ", "a", "\0", "\ud7ff", "ä" * 50, "../../etc/passwd", "/etc/passwd", "\u202e")
NESTED: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    ["a"] * 70,
)
ODD: tuple[Any, ...] = (None, True, *NUMBERS, *STRINGS, *NESTED, "file:///etc/passwd", "[MASK]")
ODD_NAMES = ("x", "batch_size", "progress", "format", "image_root")
ODD_PATHS = ("/v1/runs/../../etc/passwd", "/v1/images/%2e%2e", "/%00", "//")
ODD_LENGTHS = (2**30, 10**40, -1, "x")
ODD_TYPES = ("text/plain", "", "application/json; charset=utf-16", "x" * 5000)
GETS = (
    "/v1/runs",
    "/v1/images/1",
    "/v1/images/3?size=1024",
    "/v1/images/9999",
    "/v1/images/x?size=0",
    "/healthz",
)
RUNS = ("retrieval", "masked", "vqa", "nlvr2")
METHODS = (b"GET", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"P\xffST")
SIZES = (
    (1, 1),
    (3, 1),
    (1, 2000),
    (64, 64),
    (700, 500),
    (2500, 1500),
    (4000, 1100),
)
MODES = {
    "JPEG": ("RGB", "L"),
    "PPM": ("RGB", "L"),
    "WEBP": ("RGB", "L"),
    "PNG": ("RGB", "L", "1", "P"),
    "GIF": ("RGB", "L", "1", "P"),
    "BMP": ("RGB", "L", "1", "P"),
    "TIFF": ("RGB", "L", "1", "P"),
}
"""Of sound images, by form."""
IMAGE_FIELDS = ("image", "images", "left", "right")


class ImageForm(NamedTuple):
    """A form of image files."""

    form: str
    mode: str
    size: tuple[int, int]


@dataclass(kw_only=True)
class Message:
    """The bytes of a request, and how they are sent."""

    data: bytes
    method: bytes = b"POST"
    sent: int | None = None
    """Bytes that are sent; None: all."""
    hangs_up: bool = False
    """Whether the client leaves without reading."""
    is_whole: bool = True
    """Whether nothing around the body is damaged, so that it must get an answer."""
    is_complete: bool = True
    """Whether its head is whole and all of it is sent, so that the server must end it in time."""


@dataclass(kw_only=True)
class Seen:
    """Answers of the server."""

    secret: str
    """A part of the server's paths, which no answer may hold."""
    statuses: Counter[int | str] = field(default_factory=Counter)
    escapes: list[str] = field(default_factory=list)
    idle_bytes: float = 0.0
    """Memory of the server before the campaign."""


# Requests


def right_requests() -> list[Request]:
    """Return right requests."""
    requests = []
    for call in CALLS + IMAGE_CALLS:
        if call.run in RUNS:
            requests.append(Request(call.path, as_json(call.arguments)))
    by_text = {
        "query": '2:circle "a red" -blue',
        "by": "both",
        "top": 3,
        "folder": "photos/old",
        "where": {"class": "old"},
    }
    by_image = {
        "image": as_json(png(3)),
        "captions": True,
        "rerank": 2,
    }
    return [*requests, Request("/v1/search", by_text), Request("/v1/search", by_image)]


@functools.cache
def image_forms() -> list[ImageForm]:
    """Return all forms of image files to send."""
    forms = []
    for form, modes in MODES.items():
        for mode in modes:
            for size in SIZES:
                forms.append(ImageForm(form, mode, size))
    return forms


@functools.cache
def whole_image(image: ImageForm) -> bytes:
    return encode(Image.new(image.mode, image.size, 1), image.form)


def damaged_image(rng: Random) -> str:
    """Return an image that is broken, odd or none, as base64."""
    image = rng.choice(image_forms())
    data = whole_image(image)
    files = (data, mutate(rng, f"image.{image.form.lower()}", data), BOMB)
    return base64_text(rng.choice(files))


def with_damage(rng: Random, request: Request) -> tuple[str, bytes]:
    """Return a path and a body, perhaps with damage."""
    values = copy.deepcopy(request.values)
    kind = rng.choice(("value", "image", "json", "bytes", "none"))
    name = rng.choice([*values])
    if kind == "value":
        values[rng.choice((name, name, *ODD_NAMES))] = rng.choice(ODD)
    elif kind == "image":
        image = damaged_image(rng)
        image_names = [name for name in values if name in IMAGE_FIELDS]
        image_name = rng.choice(image_names or [name])
        values[image_name] = rng.choice(
            (
                image,
                [image],
                [image, damaged_image(rng)],
            )
        )
    body = json.dumps(values).encode()
    if kind == "json":
        body = write_json(rng, mutate_json(rng, values))
    elif kind == "bytes":
        body = mutate_bytes(rng, body)
    path = request.path
    if rng.random() < 0.05:
        path = rng.choice((f"{path}x", path.replace("v1", "v2"), *ODD_PATHS))
    return path, body


def damaged_message(rng: Random, path: str, body: bytes) -> Message:
    """Return a request with damage around its body, perhaps."""
    method = b"POST"
    content_type = "application/json"
    length: Any = len(body)
    kind = rng.random()
    is_whole = True
    if kind < 0.04:
        length = rng.choice((0, len(body) // 2, len(body) + 10, *ODD_LENGTHS))
        is_whole = length == len(body)
    elif kind < 0.08:
        method = rng.choice(METHODS)
        is_whole = method.isalpha()
    elif kind < 0.10:
        content_type = rng.choice(ODD_TYPES)
    elif kind < 0.11:
        body = b" " * (3 * MB)
        length = len(body)
    elif kind > 0.9:
        method = b"GET"
        path = rng.choice(GETS)
        body = b""
        length = 0
    token = f"{TOKEN}s" if rng.random() < 0.02 else TOKEN
    head = request_head(path, length, token, content_type)
    message = Message(
        data=method + head + body,
        method=method,
        is_whole=is_whole,
    )
    if 0.11 < kind < 0.14:
        place = rng.randrange(len(head))
        message.data = message.data[:place] + rng.randbytes(3) + message.data[place:]
        message.is_whole = message.is_complete = False
    elif 0.14 < kind < 0.17:
        message.sent = rng.randrange(len(message.data))
        message.hangs_up = kind < 0.16
        message.is_whole = message.is_complete = False
    return message


# Answers


async def send(port: int, message: Message, seen: Seen) -> None:
    """Send one request over a connection of its own, and check the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = message.data[:300]
    try:
        writer.write(message.data[: message.sent])
        if message.hangs_up:
            await writer.drain()
            seen.statuses["hung up"] += 1
            return
        answer = await asyncio.wait_for(reader.read(), 60)
    except (ConnectionError, TimeoutError) as error:
        answer = b""
        seen.statuses[type(error).__name__] += 1
        # the time for headers has no limit
        if isinstance(error, TimeoutError) and message.is_complete:
            seen.escapes.append(f"no answer in 60 s: {start!r}")
    finally:
        writer.close()
    if answer:
        check_answer(answer, message, seen)
        return
    seen.statuses["closed"] += 1
    if message.is_whole:
        seen.escapes.append(f"no answer: {start!r}")


def check_answer(answer: bytes, message: Message, seen: Seen) -> None:
    """Count an answer, and note it if it is none that the server may give."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    seen.statuses[status] += 1
    problem = None
    if seen.secret.encode() in answer:
        problem = "a path of the server"
    elif status not in STATUSES:
        problem = f"status {status}"
    elif status != 200 and must_be_json(message, content):
        problem = error_problem(content)
    if problem is not None:
        seen.escapes.append(f"{problem}: {message.data[:400]!r} → {answer[-300:]!r}")


def must_be_json(message: Message, content: bytes) -> bool:
    """Return whether the error must be one line of JSON."""
    if message.method not in (b"POST", b"GET") or b"/healthz" in message.data[:20]:
        return False
    return b"Invalid HTTP request received" not in content


def error_problem(content: bytes) -> str | None:
    """Return what an error lacks; None if it is one line of JSON."""
    try:
        message = json.loads(content)["error"]
    except (ValueError, KeyError):
        return "no line of JSON"
    return None if message and "\n" not in message else "not one line"


# Campaign


async def metrics(port: int) -> dict[str, float]:
    """Return the server's numbers."""
    answer = await exchange(port, b"GET" + request_head("/metrics", 0))
    pairs = re.findall(r"^(\w+) (\S+)$", answer.decode(), re.MULTILINE)
    return {name: float(value) for name, value in pairs}


async def campaign(port: int, secret: str, args: argparse.Namespace) -> Seen:
    """Send all requests, many at a time; return the answers."""
    seen = Seen(secret=secret)
    for image in image_forms():  # now: a client that computes while it should send is hung up on
        whole_image(image)
    requests = right_requests()
    for request in requests:  # everything once: what is loaded late is no growth
        head = request_head(request.path, len(request.body))
        await send(port, Message(data=b"POST" + head + request.body), seen)
    seen.idle_bytes = (await metrics(port))["process_resident_memory_bytes"]
    clients = asyncio.Semaphore(args.clients)

    async def send_damaged(number: int) -> None:
        rng = Random(f"{args.seed}:{number}")
        async with clients:
            path, body = with_damage(rng, rng.choice(requests))
            await send(port, damaged_message(rng, path, body), seen)

    await asyncio.gather(*map(send_damaged, range(args.requests)))
    numbers = await metrics(port)
    for name in ("eve_requests_accepted", "eve_held_bytes", "eve_queue_length"):
        if numbers[name]:
            seen.escapes.append(f"{name} {numbers[name]} when all is answered")
    return seen


def memory_bound() -> float:
    """Return the megabytes by which the server may grow."""
    # each decoding thread holds a body as text, its base64, its bytes, and an image in its format's
    # worst case
    per_decoder = 3 * LIMITS.body_mb + min(18 * LIMITS.pixels / MB, 600)
    return LIMITS.memory_mb + DECODERS * per_decoder + BATCH_MB


@dataclass
class Server:
    """A server as a process of its own."""

    process: "subprocess.Popen[str]"
    port: int
    log: Path


@contextlib.contextmanager
def serving(folder: Path, flags: Sequence[str]) -> Iterator[Server]:
    """Serve small runs and an index."""
    paths = [write_run(tiny_run(name), folder / "runs" / name) for name in RUNS]
    for number in range(6):
        age = "old" if number < 4 else "new"
        path = folder / "photos" / age / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(TEXTS[number % 3])
    index = folder / "index"
    Eve.load(paths[0]).index(folder / "photos", index)
    command = [sys.executable, "-m", "eve_vl", "serve", "--no-page", *map(str, paths)]
    command += ["--index", str(index), "--port", "0", "--token", TOKEN, *flags]
    log = folder / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            (port,) = re.findall(r":(\d+) ", process.stdout.readline())
            yield Server(process, int(port), log)
        finally:
            process.kill()


def fuzz(folder: Path, args: argparse.Namespace) -> int:
    """Send damaged requests and print what became of them; return the number of escapes."""
    flags = []
    for name in CHANGED_LIMITS:
        flags += [f"--{name.replace('_', '-')}", str(getattr(LIMITS, name))]
    with serving(folder, flags) as server:
        start = time.monotonic()
        seen = asyncio.run(campaign(server.port, str(folder), args))
        growth = (memory("VmHWM", server.process.pid) - seen.idle_bytes) / MB
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
        output = server.log.read_text(errors="replace")
    seconds = time.monotonic() - start
    if code != 0:
        seen.escapes.append(f"exit status {code}")
    if "Traceback" in output:
        seen.escapes.append(f"the log: {output[-3000:]}")
    if growth > memory_bound():
        seen.escapes.append(f"memory grew by {growth:.0f} MB")
    statuses = dict(seen.statuses.most_common())
    print(f"{args.requests:,} requests, seed {args.seed}, {seconds:.0f} s: {statuses}")
    idle = f"{seen.idle_bytes / MB:.0f} MB idle"
    print(f"memory: {idle}, at most {growth:.0f} MB more (bound {memory_bound():.0f})")
    for escape in seen.escapes[:20]:
        print(f"ESCAPE {escape}")
    print(f"{len(seen.escapes)} escapes")
    return len(seen.escapes)


def main() -> int:
    """Run the campaign, or measure next to hostile clients; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument(
        "--clients",
        type=int,
        default=50,
        help="connections at a time",
    )
    parser.add_argument("--seed", type=int, default=1)
    beside = "seconds to measure a client next to two hostile ones"
    parser.add_argument(
        "--beside",
        type=float,
        default=0,
        help=beside,
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secret_") as folder:
        if not args.beside:
            return bool(fuzz(Path(folder), args))
        with serving(Path(folder), []) as server:
            alone, attacked, *hostile = asyncio.run(compare(server.port, args.beside))
    print(alone, attacked, *hostile, sep="\n")
    return max(alone.quantile(0.99), attacked.quantile(0.99)) >= 1


if __name__ == "__main__":
    sys.exit(main())
