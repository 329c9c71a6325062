"""Requests of every call with their images, and a server of runs."""

import base64
import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi.testclient import TestClient
from PIL import Image

from eve_vl.eve import Eve
from eve_vl.serve.application import application
from eve_vl.serve.service import Service
from helpers.encoded_images import encode, png_of_chunks
from helpers.tiny_runs import TEXTS, noise

JSON = {"content-type": "application/json"}


def png(seed: int, height: int = 20, width: int = 30) -> bytes:
    return encode(Image.fromarray(noise(seed, height, width)), "PNG")


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


ONE = png(1)
TWO = png(2)
ONE_TEXT = base64_text(ONE)
VQA = "/v1/runs/vqa/answer"
QUESTION: dict[str, Any] = {"image": ONE_TEXT, "question": "what"}


@contextlib.contextmanager
def serving(*runs: Eve, **options: Any) -> Iterator[TestClient]:
    with TestClient(application(runs, **options), base_url="http://localhost") as client:
        yield client


def service_of(client: TestClient) -> Service:
    app: Any = client.app
    return app.state.service


def as_json(value: Any) -> Any:
    """Return what a program sends for an argument."""
    if isinstance(value, bytes):
        return base64_text(value)
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return value


class Call(NamedTuple):
    """A call of a run."""

    run: str
    name: str
    arguments: dict[str, Any]

    @property
    def path(self) -> str:
        return f"/v1/runs/{self.run}/{self.name}"


BLANKS = ["a [MASK] circle", "two [MASK]"]
PROMPTS = {"a": ["a circle", "red"], "b": ["blue squares"]}
COLOR = "what color is it"
ITEMS = {
    "left": ONE,
    "left_text": "a circle",
    "right": TWO,
    "right_text": "a square",
}
STATEMENT = {
    "left": ONE,
    "right": [TWO, ONE],
    "statement": "a red circle",
}
CALLS = [
    Call("masked", "encode_image", {"images": [ONE, TWO]}),
    Call("masked", "encode_text", {"texts": TEXTS[0]}),
    Call("masked", "fill_mask", {"image": ONE, "text": BLANKS, "top": 2}),
    Call("retrieval", "match", {"image": [ONE, TWO], "text": TEXTS[1]}),
    Call("retrieval", "zero_shot", {"image": ONE, "prompts": PROMPTS, "by": "max"}),
    Call("vqa", "answer", {"image": ONE, "question": COLOR, "top": 3}),
    Call("vqa", "answer", {"image": [ONE, TWO], "question": COLOR}),
    Call("nlvr2", "verify", STATEMENT),
    Call("pair", "same", ITEMS),
    Call("classification", "classify", {"image": [ONE, TWO], "top": 1}),
]
"""Calls whose answers are values."""
IMAGE_CALLS = [
    Call(
        "masked",
        "reconstruct",
        {
            "image": ONE,
            "text": TEXTS[0],
            "keep": [0, 3, 5],
        },
    ),
    Call("masked", "explain", {"image": ONE, "text": TEXTS[1], "word": "red"}),
    Call("vqa", "explain", {"image": ONE, "text": COLOR, "answer": "red", "block": 0}),
    Call("nlvr2", "explain", {"image": [ONE, TWO], "text": "a red circle"}),
    Call("classification", "explain", {"image": ONE}),
]
"""Calls whose answers are images."""


def bomb(side: int) -> bytes:
    """Return a PNG that says it is large, and holds nothing."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png_of_chunks((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))))


BOMB = bomb(9000)
