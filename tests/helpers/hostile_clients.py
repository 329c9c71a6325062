"""Times of a usual client of a server, alone and next to two hostile clients."""

import asyncio
import itertools
import struct
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from eve_vl.serve.limits import MB
from helpers.encoded_images import encode, png_of_chunks, with_repeated_scan
from helpers.raw_http import Request, post
from helpers.serving import as_json, png

ENCODE_TEXT = "/v1/runs/retrieval/encode_text"
ENCODE_IMAGE = "/v1/runs/vqa/encode_image"
LONG_WORDS = ("\ufdfa", "a", "\U0001f600", "a- ", "\u65e5")
PAUSE = 0.02  # seconds between two requests of the usual client
BMP_HEADER = struct.pack(
    "<2sIHHIIiiHHIIIIII", b"BM", 0, 0, 0, 1078, 40, 2000, 2000, 1, 8, 1, 0, 0, 0, 256, 0
)


@dataclass
class ClientLog:
    """Answers to one client."""

    name: str
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def quantile(self, share: float) -> float:
        ascending = sorted(self.seconds)
        return ascending[int(len(ascending) * share)]

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.seconds)} requests, p50 {self.quantile(0.5):.3f} s, "
            f"p99 {self.quantile(0.99):.3f} s, max {max(self.seconds):.3f} s, "
            f"answers {dict(self.statuses)}"
        )


async def compare(port: int, seconds: float) -> list[ClientLog]:
    """Return the answers to a usual client alone, then to it and to two hostile clients."""
    usual = usual_requests()
    texts = long_texts()
    images = slow_images()
    alone = await send_until(port, "alone", usual, time.monotonic() + seconds, PAUSE)
    end = time.monotonic() + seconds
    logs = await asyncio.gather(
        send_until(port, "next to two hostile clients", usual, end, PAUSE),
        send_until(port, "sender of long texts", texts, end),
        send_until(port, "sender of slow images", images, end),
    )
    return [alone, *logs]


async def send_until(
    port: int,
    name: str,
    requests: Sequence[Request],
    end: float,
    pause: float = 0,
) -> ClientLog:
    """Send requests in turn until a time, at least one."""
    log = ClientLog(name)
    for request in itertools.cycle(requests):
        answer = await post(port, request)
        log.statuses[answer.status] += 1
        log.seconds.append(answer.seconds)
        await asyncio.sleep(pause)
        if time.monotonic() >= end:
            break
    return log


def usual_requests() -> list[Request]:
    image = as_json(png(3))
    return [
        Request("/v1/search", {"query": "a red circle", "top": 3}),
        Request("/v1/search", {"image": image, "top": 3}),
        Request(ENCODE_TEXT, {"texts": "a red circle"}),
        Request("/v1/runs/vqa/answer", {"image": image, "question": "what color is it"}),
    ]


def long_texts() -> list[Request]:
    requests = []
    for word in LONG_WORDS:
        text = (word * 10_000)[:10_000]
        requests.append(Request(ENCODE_TEXT, {"texts": [text] * 64}))
    return requests


def slow_images() -> list[Request]:
    """Return images that cost more than they seem to, each within the server's limits."""
    jpeg = encode(Image.new("RGB", (64, 64), 1), "JPEG")
    gif = encode(Image.new("P", (64, 64), 1), "GIF")
    images = [
        b"P6\n#" + b"c" * 11_000_000 + b"\n30 30\n255\n" + bytes(2700),
        inflated_png(),
        jpeg_of_many_scans(),
        jpeg[:2] + b"\xff\xfe\0\2" * 2_800_000 + jpeg[2:],
        gif[:-1] + b"!\xfe" + b"\1a" * 5_000_000 + b"\0;",
        BMP_HEADER + bytes(1024) + b"\1\1" * 5_000_000,
        encode(Image.new("RGB", (7000, 4500), 1), "PNG"),
    ]
    return [Request(ENCODE_IMAGE, {"images": [as_json(image)]}) for image in images]


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
    image = Image.linear_gradient("L").resize((1500, 1500)).convert("RGB")
    return with_repeated_scan(encode(image, "JPEG", progressive=True), 1000)
