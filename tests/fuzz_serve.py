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
import io
import itertools
import json
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
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
from helpers.encoded_images import png_of_chunks, with_repeated_scan
from helpers.json_mutations import mutate_json, write_json
from helpers.mutations import mutate
from helpers.process_limits import memory
from helpers.serving import BOMB, CALLS, IMAGE_CALLS, as_json, base64_text, png
from helpers.tiny_runs import TEXTS, tiny_run, write_run

LIMITS = Limits(queue=64, memory_mb=64, body_mb=2, pixels=4_000_000, body_seconds=5.0)
CHANGED_LIMITS = ("queue", "memory_mb", "body_mb", "pixels", "body_seconds")
# of states, if a batch is full, and of gaps: the server keeps freed memory, so its growth ends at a
# plateau
BATCH_MB = 64
STATUSES = {200, 400, 401, 404, 405, 408, 411, 413, 415, 431, 503}
NUMBERS = (0, -1, 1.5, 2**31, 2**63 - 1, -(2**63), 10**30, 1e308, -0.0)
STRINGS = ("", " ", "a", "\0", "\ud7ff", "ä" * 50, "../../etc/passwd", "/etc/passwd", "\u202e")
NESTED: tuple[Any, ...] = ([], {}, [[]], [None], {"a": {}}, ["a"] * 70)
ODD: tuple[Any, ...] = (None, True, *NUMBERS, *STRINGS, *NESTED, "file:///etc/passwd", "[MASK]")
ODD_NAMES = ("x", "batch_size", "progress", "format", "image_root")
ODD_PATHS = ("/v1/runs/../../etc/passwd", "/v1/images/%2e%2e", "/%00", "//")
ODD_LENGTHS = (2**30, 10**40, -1, "x")
ODD_TYPES = ("text/plain", "", "application/json; charset=utf-16", "x" * 5000)
TOKEN = "open sesame"
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
SIZES = ((1, 1), (3, 1), (1, 2000), (64, 64), (700, 500), (2500, 1500), (4000, 1100))
MODES = dict.fromkeys(("JPEG", "PPM", "WEBP"), ("RGB", "L"))
MODES |= dict.fromkeys(("PNG", "GIF", "BMP", "TIFF"), ("RGB", "L", "1", "P"))


class ImageForm(NamedTuple):
    """A form of image files."""

    form: str
    mode: str
    size: tuple[int, int]


def image_forms() -> list[ImageForm]:
    """Return all forms of image files to send."""
    forms = []
    for form, modes in MODES.items():
        for mode, size in itertools.product(modes, SIZES):
            forms.append(ImageForm(form, mode, size))
    return forms


IMAGES = image_forms()


class Request(NamedTuple):
    """A path and the values of a body."""

    path: str
    values: dict[str, Any]


@dataclass
class Seen:
    """Answers of the server."""

    statuses: Counter[Any] = field(default_factory=Counter)
    escapes: list[str] = field(default_factory=list)


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
    by_image = {"image": as_json(png(3)), "captions": True, "rerank": 2}
    return [*requests, Request("/v1/search", by_text), Request("/v1/search", by_image)]


@functools.cache
def whole_image(form: str, mode: str, size: tuple[int, int]) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    Image.new(mode, size, 1).save(file, form)
    return file.getvalue()


def damaged_image(rng: Random) -> str:
    """Return an image that is broken, odd or none, as base64."""
    image = rng.choice(IMAGES)
    data = whole_image(*image)
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
        names = [name for name in values if name in ("image", "images", "left", "right")]
        image_name = rng.choice(names or [name])
        values[image_name] = rng.choice((image, [image], [image, damaged_image(rng)]))
    body = json.dumps(values).encode()
    if kind == "json":
        body = write_json(rng, mutate_json(rng, values))
    elif kind == "bytes":
        body = mutate_bytes(rng, body)
    path = request.path
    if rng.random() < 0.05:
        path = rng.choice((f"{path}x", path.replace("v1", "v2"), *ODD_PATHS))
    return path, body


@dataclass
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
    head = request_head(path, token, content_type, length)
    message = Message(method + head + body, method, is_whole=is_whole)
    if 0.11 < kind < 0.14:
        place = rng.randrange(len(head))
        data = message.data
        message.data = data[:place] + rng.randbytes(3) + data[place:]
        message.is_whole = message.is_complete = False
    elif 0.14 < kind < 0.17:
        message.sent = rng.randrange(len(message.data))
        message.hangs_up = kind < 0.16
        message.is_whole = message.is_complete = False
    return message


def request_head(path: str, token: str, content_type: str, length: Any) -> bytes:
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


async def send(port: int, message: Message, secret: str, seen: Seen) -> None:
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
        check_answer(answer, message, secret, seen)
        return
    seen.statuses["closed"] += 1
    if message.is_whole:
        seen.escapes.append(f"no answer: {start!r}")


def check_answer(answer: bytes, message: Message, secret: str, seen: Seen) -> None:
    """Count an answer, and note it if it is none that the server may give."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    seen.statuses[status] += 1
    problem = None
    if secret.encode() in answer:
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


async def metrics(port: int) -> dict[str, float]:
    """Return the server's numbers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET" + request_head("/metrics", TOKEN, "", 0))
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


async def campaign(port: int, secret: str, args: argparse.Namespace) -> tuple[Seen, float]:
    """Send all requests, many at a time; return the answers and the idle process's bytes."""
    seen = Seen()
    for image in IMAGES:  # now, because a client that computes while it should send is hung up on
        whole_image(*image)
    requests = right_requests()
    for request in requests:  # everything once: what is loaded late is no growth
        body = json.dumps(request.values).encode()
        head = request_head(request.path, TOKEN, "application/json", len(body))
        await send(port, Message(b"POST" + head + body), secret, seen)
    idle = (await metrics(port))["process_resident_memory_bytes"]
    clients = asyncio.Semaphore(args.clients)

    async def send_damaged(number: int) -> None:
        rng = Random(f"{args.seed}:{number}")
        async with clients:
            path, body = with_damage(rng, rng.choice(requests))
            await send(port, damaged_message(rng, path, body), secret, seen)

    await asyncio.gather(*map(send_damaged, range(args.requests)))
    numbers = await metrics(port)
    for name in ("eve_requests_accepted", "eve_held_bytes", "eve_queue_length"):
        if numbers[name]:
            seen.escapes.append(f"{name} {numbers[name]} when all is answered")
    return seen, idle


class Timed(NamedTuple):
    """The answer to a request."""

    status: int
    seconds: float


async def post(port: int, path: str, body: bytes) -> Timed:
    """Return the answer to a request."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST" + request_head(path, TOKEN, "application/json", len(body)) + body)
    answer = await reader.read()
    writer.close()
    return Timed(int(answer.split()[1]), time.perf_counter() - started)


def inflated_png() -> bytes:
    """Return a PNG whose data inflate to far more than its pixels."""
    side = 64
    zeros = zlib.compressobj(9)
    data = zeros.compress(bytes((3 * side + 1) * side))
    data += b"".join(zeros.compress(bytes(MB)) for _ in range(2000))
    data += zeros.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png_of_chunks((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))


def jpeg_of_many_scans() -> bytes:
    """Return a progressive JPEG that repeats its last scan a thousand times."""
    file = io.BytesIO()
    image = Image.linear_gradient("L").resize((1500, 1500)).convert("RGB")
    image.save(file, "JPEG", progressive=True)
    return with_repeated_scan(file.getvalue(), 1000)


def slow_images() -> list[bytes]:
    """Return images that cost more than they seem to, each within the server's limits."""
    jpeg = whole_image("JPEG", "RGB", (64, 64))
    gif = whole_image("GIF", "P", (64, 64))
    bmp_header = struct.pack(
        "<2sIHHIIiiHHIIIIII", b"BM", 0, 0, 0, 1078, 40, 2000, 2000, 1, 8, 1, 0, 0, 0, 256, 0
    )
    return [
        b"P6\n#" + b"c" * 11_000_000 + b"\n30 30\n255\n" + bytes(2700),
        inflated_png(),
        jpeg_of_many_scans(),
        jpeg[:2] + b"\xff\xfe\0\2" * 2_800_000 + jpeg[2:],
        gif[:-1] + b"!\xfe" + b"\1a" * 5_000_000 + b"\0;",
        bmp_header + bytes(1024) + b"\1\1" * 5_000_000,
        whole_image("PNG", "RGB", (7000, 4500)),
    ]


ENCODE_TEXT = "/v1/runs/retrieval/encode_text"
ENCODE_IMAGE = "/v1/runs/vqa/encode_image"
LONG_WORDS = ("\ufdfa", "a", "\U0001f600", "a- ", "\u65e5")
Requests = list[tuple[str, bytes]]


def hostile_requests() -> list[Requests]:
    """Return the requests of two hostile clients: long texts, and slow images."""
    texts = [{"texts": [(word * 10_000)[:10_000]] * 64} for word in LONG_WORDS]
    images = [{"images": [as_json(image)]} for image in slow_images()]
    return [
        [(ENCODE_TEXT, json.dumps(body).encode()) for body in texts],
        [(ENCODE_IMAGE, json.dumps(body).encode()) for body in images],
    ]


def usual_requests() -> Requests:
    """Return the requests of a usual client."""
    image = as_json(png(3))
    requests: list[Request] = [
        Request("/v1/search", {"query": "a red circle", "top": 3}),
        Request("/v1/search", {"image": image, "top": 3}),
        Request(ENCODE_TEXT, {"texts": "a red circle"}),
        Request("/v1/runs/vqa/answer", {"image": image, "question": "what color is it"}),
    ]
    return [(request.path, json.dumps(request.values).encode()) for request in requests]


async def send_until(
    port: int, requests: Requests, end: float, pause: float, statuses: Counter[Any]
) -> list[float]:
    """Send requests in turn until a time; return the seconds of each, ascending."""
    seconds = []
    for path, body in itertools.cycle(requests):
        if time.monotonic() >= end:
            break
        answer = await post(port, path, body)
        statuses[path.rpartition("/")[2], answer.status] += 1
        seconds.append(answer.seconds)
        await asyncio.sleep(pause)
    return sorted(seconds)


async def compare(port: int, seconds: float) -> list[float]:
    """Return and print the 99th percentiles of a client's seconds, without and with two hostile
    clients."""
    statuses: Counter[Any] = Counter()
    usual = usual_requests()
    hostile = hostile_requests()
    alone = await send_until(port, usual, time.monotonic() + seconds, 0.02, statuses)
    end = time.monotonic() + seconds
    attackers = [send_until(port, requests, end, 0, statuses) for requests in hostile]
    attacks = asyncio.gather(*attackers)
    attacked = await send_until(port, usual, end, 0.02, statuses)
    slowest = [times[-1] for times in await attacks]
    print(f"answers: {dict(statuses)}; slowest of the hostile clients: {slowest}")
    percentiles = []
    for name, times in (("alone", alone), ("next to two hostile clients", attacked)):
        half = times[len(times) // 2]
        percentiles.append(times[len(times) * 99 // 100])
        print(
            f"third client, {name}: {len(times)} requests, p50 {half:.3f} s, "
            f"p99 {percentiles[-1]:.3f} s, max {times[-1]:.3f} s"
        )
    return percentiles


def memory_bound() -> float:
    """Return the megabytes by which the server may grow."""
    # each decoding thread holds a body as text, its base64, its bytes, and an image in its format's
    # worst case
    per_decoder = 3 * LIMITS.body_mb + min(18 * LIMITS.pixels / MB, 600)
    return LIMITS.memory_mb + DECODERS * per_decoder + BATCH_MB


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50, help="connections at a time")
    parser.add_argument("--seed", type=int, default=1)
    beside = "seconds to measure a client next to two hostile ones"
    parser.add_argument("--beside", type=float, default=0, help=beside)
    return parser.parse_args()


def main() -> None:
    """Run the campaign, print the answers, and exit with 1 if there are escapes."""
    args = parse_args()
    flags: list[str] = []
    if not args.beside:
        for name in CHANGED_LIMITS:
            flags += [f"--{name.replace('_', '-')}", str(getattr(LIMITS, name))]
    with (
        tempfile.TemporaryDirectory(prefix="secret_") as folder,
        serving(Path(folder), flags) as (server, port, log),
    ):
        started = time.monotonic()
        if args.beside:
            percentiles = asyncio.run(compare(port, args.beside))
            sys.exit(max(percentiles) >= 1)
        seen, idle = asyncio.run(campaign(port, folder, args))
        growth = (memory("VmHWM", server.pid) - idle) / MB
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
        output = log.read_text(errors="replace")
    if code != 0:
        seen.escapes.append(f"exit status {code}")
    if "Traceback" in output:
        seen.escapes.append(f"the log: {output[-3000:]}")
    if growth > memory_bound():
        seen.escapes.append(f"memory grew by {growth:.0f} MB")
    seconds = time.monotonic() - started
    statuses = dict(seen.statuses.most_common())
    print(f"{args.requests:,} requests, seed {args.seed}, {seconds:.0f} s: {statuses}")
    print(
        f"memory: {idle / MB:.0f} MB idle, at most {growth:.0f} MB more "
        f"(bound {memory_bound():.0f}); exit status {code}"
    )
    for escape in seen.escapes[:20]:
        print(f"ESCAPE {escape}")
    print(f"{len(seen.escapes)} escapes")
    sys.exit(bool(seen.escapes))


@contextlib.contextmanager
def serving(
    folder: Path, flags: Sequence[str]
) -> Iterator[tuple["subprocess.Popen[str]", int, Path]]:
    """Serve small runs and an index; yield the process, its port and its log."""
    paths = [write_run(tiny_run(name), folder / "runs" / name) for name in RUNS]
    for number in range(6):
        path = folder / "photos" / ("old" if number < 4 else "new") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(TEXTS[number % 3])
    Eve.load(paths[0]).index(folder / "photos", folder / "index")
    command = [sys.executable, "-m", "eve_vl", "serve", "--no-page", *map(str, paths)]
    command += ["--index", str(folder / "index"), "--port", "0", "--token", TOKEN, *flags]
    log = folder / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            (port,) = re.findall(r":(\d+) ", server.stdout.readline())
            yield server, int(port), log
        finally:
            server.kill()


if __name__ == "__main__":
    main()
