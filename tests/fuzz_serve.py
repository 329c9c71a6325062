"""A campaign against the server: mutated requests go to a real process.

    PYTHONPATH=. python tests/fuzz_serve.py --requests 10000 --seed 1
    PYTHONPATH=. python tests/fuzz_serve.py --beside 60

Requests start as right ones of every call; then values, JSON, images or the HTTP around them are damaged, clients send half
and hang up, or wait. Allowed answers: 200, or one line of JSON with a status that says whose fault it is, never 500, without a
path of the server; a request that is whole gets one. Some ask for runs and images, one in fifty has another token. At the
end: the process lives, its memory has never been more than it said, and SIGTERM ends it with status 0.

With --beside SECONDS, one client sends long texts and one sends images that are slow to decode, each without a pause. The times
of a third client, alone and beside them, are printed; their 99th percentile must stay below a second.
"""

import argparse
import asyncio
import base64
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
from typing import Any

from PIL import Image

from eve_vl.eve import Eve
from eve_vl.serve.limits import DECODERS, MB, Limits
from helpers.byte_mutations import mutate_bytes
from helpers.json_mutations import mutate_json, write_json
from helpers.mutations import mutate
from helpers.serving import BOMB, CALLS, SHOWN, png, sent
from helpers.tiny_runs import TEXTS, tiny_run, write_run

LIMITS = Limits(queue=64, memory_mb=64, body_mb=2, pixels=4_000_000, body_seconds=5.0)
NAMES = ("queue", "memory_mb", "body_mb", "pixels", "body_seconds")
FLAGS = [
    word for name in NAMES for word in (f"--{name.replace('_', '-')}", str(getattr(LIMITS, name)))
]
BATCH_MB = 64  # of states, if a batch is full, and of gaps: the server keeps freed memory, so its growth ends at a plateau
STATUSES = {200, 400, 401, 404, 405, 408, 411, 413, 415, 431, 503}
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        2**31,
        2**63 - 1,
        -(2**63),
        10**30,
        1e308,
        -0.0,
        "",
        " ",
        "a",
        "\0",
        "\ud7ff",
        "ä" * 50,
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": {}},
        ["a"] * 70,
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "[MASK]",
        "\u202e",
    ),
)
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
FORMS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SIZES = ((1, 1), (3, 1), (1, 2000), (64, 64), (700, 500), (2500, 1500), (4000, 1100))
IMAGES = [
    (form, mode, size)
    for form in FORMS
    for mode in (("RGB", "L") if form in ("JPEG", "PPM", "WEBP") else ("RGB", "L", "1", "P"))
    for size in SIZES
]
HEADS = (b"GET", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"P\xffST")


@dataclass
class Seen:
    """What came back."""

    statuses: Counter[Any] = field(default_factory=Counter)
    escapes: list[str] = field(default_factory=list)


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Return right requests."""
    calls = [
        (f"/v1/runs/{run}/{call}", {name: sent(value) for name, value in given.items()})
        for run, call, given in CALLS + SHOWN
        if run in RUNS
    ]
    search = {
        "query": '2:circle "a red" -blue',
        "by": "both",
        "top": 3,
        "folder": "photos/old",
        "where": {"class": "old"},
    }
    return [
        *calls,
        ("/v1/search", search),
        ("/v1/search", {"image": sent(png(3)), "captions": True, "rerank": 2}),
    ]


def damaged_image(rng: Random) -> str:
    """Return an image that is broken, odd or none, as base64."""
    form, mode, size = rng.choice(IMAGES)
    data = whole_image(form, mode, size)
    return base64.b64encode(
        rng.choice((data, mutate(rng, f"image.{form.lower()}", data), BOMB))
    ).decode()


@functools.cache
def whole_image(form: str, mode: str, size: tuple[int, int]) -> bytes:
    """Return the file of an image."""
    box = io.BytesIO()
    Image.new(mode, size, 1).save(box, form)
    return box.getvalue()


def with_damage(rng: Random, path: str, given: dict[str, Any]) -> tuple[str, bytes]:
    """Return a path and a body in which something is wrong, perhaps."""
    given, kind, name = copy.deepcopy(given), rng.randrange(5), rng.choice([*given])
    if kind == 0:
        given[rng.choice((name, name, "x", "batch_size", "progress", "format", "image_root"))] = (
            rng.choice(ODD)
        )
    elif kind == 1:
        one = damaged_image(rng)
        places = [each for each in given if each in ("image", "images", "left", "right")]
        given[rng.choice(places or [name])] = rng.choice((one, [one], [one, damaged_image(rng)]))
    body = write_json(rng, mutate_json(rng, given)) if kind == 2 else json.dumps(given).encode()
    body = mutate_bytes(rng, body) if kind == 3 else body
    if rng.random() < 0.05:
        path = rng.choice(
            (
                f"{path}x",
                path.replace("v1", "v2"),
                "/v1/runs/../../etc/passwd",
                "/v1/images/%2e%2e",
                "/%00",
                "//",
            )
        )
    return path, body


async def send(rng: Random, port: int, path: str, body: bytes, secret: str, seen: Seen) -> None:
    """Send one request over a connection of its own, and look at what comes back."""
    how = rng.random()
    length: Any = len(body)
    method, kind = b"POST", "application/json"
    token = f"{TOKEN}s" if rng.random() < 0.02 else TOKEN
    if how < 0.04:
        length = rng.choice((0, len(body) // 2, len(body) + 10, 2**30, 10**40, -1, "x"))
    elif how < 0.08:
        method = rng.choice(HEADS)
    elif how < 0.10:
        kind = rng.choice(("text/plain", "", "application/json; charset=utf-16", "x" * 5000))
    elif how < 0.11:
        body, length = b" " * (3 * MB), 3 * MB
    elif how > 0.9:
        method, path, body, length = b"GET", rng.choice(GETS), b"", 0
    head = (
        f" {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    data = method + head.encode() + body
    if 0.11 < how < 0.14:
        place = rng.randrange(len(head))
        data = data[:place] + rng.randbytes(3) + data[place:]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        if 0.14 < how < 0.17:  # half of it
            writer.write(data[: rng.randrange(len(data))])
            await writer.drain()
            if how < 0.16:  # and away
                seen.statuses["hung up"] += 1
                return
        else:
            writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 60)
    except (ConnectionError, TimeoutError) as error:
        seen.statuses[type(error).__name__] += 1
        if (
            isinstance(error, TimeoutError) and not 0.11 < how < 0.17
        ):  # the time for headers has no limit
            seen.escapes.append(f"no answer in 60 s: {data[:300]!r}")
    finally:
        writer.close()
    if answer:
        look_at(answer, method, data, secret, seen)
    else:
        seen.statuses["closed"] += 1
        if (
            not 0.11 < how < 0.17 and length == len(body) and method.isalpha()
        ):  # nothing around the body is damaged
            seen.escapes.append(f"no answer: {data[:300]!r}")


def look_at(answer: bytes, method: bytes, data: bytes, secret: str, seen: Seen) -> None:
    """Count an answer, and note it if it is none that the server may give."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    seen.statuses[status] += 1
    problem = None if status in STATUSES else f"status {status}"
    if secret.encode() in answer:
        problem = "a path of the server"
    elif (
        method in (b"POST", b"GET")
        and status != 200
        and b"/healthz" not in data[:20]
        and b"Invalid HTTP request received" not in content
    ):
        try:
            message = json.loads(content)["error"]
            problem = problem or (None if message and "\n" not in message else "not one line")
        except (ValueError, KeyError):
            problem = "no line of JSON"
    if problem:
        seen.escapes.append(f"{problem}: {data[:400]!r} → {answer[-300:]!r}")


async def metrics(port: int) -> dict[str, float]:
    """Return the server's numbers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def peak_of(process: int) -> int:
    """Return the most bytes that a process has ever had in memory."""
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found) * 1024


async def campaign(port: int, secret: str, args: argparse.Namespace) -> tuple[Seen, float]:
    """Send all requests, many at a time; return what was seen and how many bytes the process had when idle."""
    seen = Seen()
    for image in IMAGES:  # now, for a client that computes while it should send is hung up on
        whole_image(*image)
    right, room = requests(), asyncio.Semaphore(args.clients)
    for path, given in right:  # everything once: what is loaded late is no growth
        await send(Random(2), port, path, json.dumps(given).encode(), secret, seen)
    idle = (await metrics(port))["process_resident_memory_bytes"]

    async def one(number: int) -> None:
        own = Random(f"{args.seed}:{number}")
        async with room:
            await send(own, port, *with_damage(own, *own.choice(right)), secret, seen)

    await asyncio.gather(*(one(number) for number in range(args.requests)))
    left = await metrics(port)
    for name in ("eve_requests_accepted", "eve_held_bytes", "eve_queue_length"):
        if left[name]:
            seen.escapes.append(f"{name} {left[name]} when all is answered")
    return seen, idle


async def answered(port: int, path: str, body: bytes) -> tuple[int, float]:
    """Return the status of a request, and its seconds."""
    started = time.perf_counter()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), time.perf_counter() - started


def slow_images() -> list[bytes]:
    """Return images that cost more than they seem to, each within the server's limits."""
    zeros, side = zlib.compressobj(9), 64
    inflated = (
        zeros.compress(bytes((3 * side + 1) * side))
        + b"".join(zeros.compress(bytes(MB)) for _ in range(2000))
        + zeros.flush()
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", inflated), (b"IEND", b""))
    surplus = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    box = io.BytesIO()
    Image.linear_gradient("L").resize((1500, 1500)).convert("RGB").save(
        box, "JPEG", progressive=True
    )
    scans = box.getvalue()
    last = scans[scans.rfind(b"\xff\xc4", 0, scans.rfind(b"\xff\xda")) : -2]
    jpeg = whole_image("JPEG", "RGB", (64, 64))
    gif = whole_image("GIF", "P", (64, 64))
    runs = struct.pack(
        "<2sIHHIIiiHHIIIIII", b"BM", 0, 0, 0, 1078, 40, 2000, 2000, 1, 8, 1, 0, 0, 0, 256, 0
    ) + bytes(1024)
    return [
        b"P6\n#" + b"c" * 11_000_000 + b"\n30 30\n255\n" + bytes(2700),
        surplus,
        scans[:-2] + last * 1000 + scans[-2:],
        jpeg[:2] + b"\xff\xfe\0\2" * 2_800_000 + jpeg[2:],
        gif[:-1] + b"!\xfe" + b"\1a" * 5_000_000 + b"\0;",
        runs + b"\1\1" * 5_000_000,
        whole_image("PNG", "RGB", (7000, 4500)),
    ]


async def compared(port: int, seconds: float) -> list[float]:
    """Return and print the 99th percentiles of a client's seconds, without and with two hostile clients."""
    text, image = "/v1/runs/retrieval/encode_text", sent(png(3))
    texts = [
        {"texts": [(sign * 10_000)[:10_000]] * 64}
        for sign in ("\ufdfa", "a", "\U0001f600", "a- ", "\u65e5")
    ]
    bodies = {
        text: texts,
        "/v1/runs/vqa/encode_image": [{"images": [sent(one)]} for one in slow_images()],
    }
    usual: list[tuple[str, dict[str, Any]]] = [
        ("/v1/search", {"query": "a red circle", "top": 3}),
        ("/v1/search", {"image": image, "top": 3}),
        (text, {"texts": "a red circle"}),
        ("/v1/runs/vqa/answer", {"image": image, "question": "what color is it"}),
    ]
    requests = [(path, json.dumps(body).encode()) for path, body in usual]
    hostile_requests = [
        [(path, json.dumps(body).encode()) for body in each] for path, each in bodies.items()
    ]
    until, seen = time.monotonic() + seconds, Counter[Any]()

    async def hostile(requests: list[tuple[str, bytes]]) -> None:
        for path, body in itertools.cycle(requests):
            if time.monotonic() >= until:
                break
            status, spent = await answered(port, path, body)
            seen[path.rpartition("/")[2], status] += 1
            slowest[path] = max(slowest.get(path, 0), spent)

    async def third() -> list[float]:
        times = list[float]()
        for path, body in itertools.cycle(requests):
            if time.monotonic() >= until:
                break
            status, spent = await answered(port, path, body)
            seen["third", status] += 1
            times.append(spent)
            await asyncio.sleep(0.02)
        return sorted(times)

    slowest: dict[str, float] = {}
    alone: list[float] = await third()
    until = time.monotonic() + seconds
    others = asyncio.gather(*map(hostile, hostile_requests))
    beside = await third()
    await others
    print(f"answers: {dict(seen)}; slowest of the hostile clients: {slowest}")
    for name, times in (("alone", alone), ("beside two hostile clients", beside)):
        shown = ", ".join(
            f"p{share} {times[len(times) * share // 100]:.3f} s" for share in (50, 99)
        )
        print(f"third client, {name}: {len(times)} requests, {shown}, max {times[-1]:.3f} s")
    return [times[len(times) * 99 // 100] for times in (alone, beside)]


def main() -> None:
    """Run the campaign, print what was seen, and exit with 1 if there are escapes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50, help="connections at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--beside",
        type=float,
        default=0,
        help="seconds to measure a client beside two hostile ones",
    )
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="secret_") as place,
        serving(Path(place), () if args.beside else FLAGS) as (server, port, log),
    ):
        started = time.monotonic()
        if args.beside:
            times = asyncio.run(compared(port, args.beside))
            sys.exit(max(times) >= 1)
        seen, idle = asyncio.run(campaign(port, place, args))
        peak = peak_of(server.pid)
        server.send_signal(signal.SIGTERM)
        code, said = server.wait(60), log.read_text(errors="replace")
    # each decoding thread holds a body as text, its base64, its bytes, and an image in its format's worst case
    bound = (
        LIMITS.memory_mb
        + DECODERS * (3 * LIMITS.body_mb + min(18 * LIMITS.pixels / MB, 600))
        + BATCH_MB
    )
    growth = (peak - idle) / MB
    seen.escapes += [f"exit status {code}"] * (code != 0) + [f"the log: {said[-3000:]}"] * (
        "Traceback" in said
    )
    seen.escapes += [f"memory grew by {growth:.0f} MB"] * (growth > bound)
    print(
        f"{args.requests:,} requests, seed {args.seed}, {time.monotonic() - started:.0f} s: {dict(seen.statuses.most_common())}"
    )
    print(
        f"memory: {idle / MB:.0f} MB idle, at most {growth:.0f} MB more (bound {bound:.0f}); exit status {code}"
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
    command = [
        sys.executable,
        "-m",
        "eve_vl",
        "serve",
        *map(str, paths),
        "--index",
        str(folder / "index"),
    ]
    command += ["--port", "0", "--token", TOKEN, *flags]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            yield server, int(re.findall(r":(\d+) ", server.stdout.readline())[0]), folder / "log"
        finally:
            server.kill()


if __name__ == "__main__":
    main()
