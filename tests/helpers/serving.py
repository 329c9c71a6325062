"""Runs and images to serve, requests of every call, and a server of them."""

import asyncio
import base64
import contextlib
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.application import application
from eve_vl.serve.service import Service
from eve_vl.systems.mlim.config import PairConfig
from eve_vl.tasks.classification.config import ClassificationConfig
from helpers.tiny_runs import TEXTS, noise, tiny_run, write_run

JSON = {"content-type": "application/json"}


def png(seed: int, height: int = 20, width: int = 30) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed, height, width)).save(file, "PNG")
    return file.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


ONE, TWO = png(1), png(2)


@contextlib.contextmanager
def serving(*runs: Eve, **options: Any) -> Iterator[TestClient]:
    with TestClient(application(runs, **options), base_url="http://localhost") as client:
        yield client


def service_of(client: TestClient) -> Service:
    app: Any = client.app
    return app.state.service


def sent(values: Any) -> Any:
    """What a program writes for a Python value."""
    if isinstance(values, bytes):
        return text_of(values)
    return [sent(each) for each in values] if isinstance(values, list) else values


# Run, call and what it is given, of calls whose answers are JSON, and images
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("masked", "encode_image", {"images": [ONE, TWO]}),
    ("masked", "encode_text", {"texts": TEXTS[0]}),
    ("masked", "fill_mask", {"image": ONE, "text": ["a [MASK] circle", "two [MASK]"], "top": 2}),
    ("retrieval", "match", {"image": [ONE, TWO], "text": TEXTS[1]}),
    ("retrieval", "zero_shot", {"image": ONE, "prompts": {"a": ["a circle", "red"], "b": ["blue squares"]}, "by": "max"}),
    ("vqa", "answer", {"image": ONE, "question": "what color is it", "top": 3}),
    ("vqa", "answer", {"image": [ONE, TWO], "question": "what color is it"}),
    ("nlvr2", "verify", {"left": ONE, "right": [TWO, ONE], "statement": "a red circle"}),
    ("pair", "same", {"left": ONE, "left_text": "a circle", "right": TWO, "right_text": "a square"}),
    ("classification", "classify", {"image": [ONE, TWO], "top": 1}),
]  # fmt: skip
SHOWN: list[tuple[str, str, dict[str, Any]]] = [
    ("masked", "reconstruct", {"image": ONE, "text": TEXTS[0], "keep": [0, 3, 5]}),
    ("masked", "explain", {"image": ONE, "text": TEXTS[1], "word": "red"}),
    ("vqa", "explain", {"image": ONE, "text": "what color is it", "answer": "red", "block": 0}),
    ("nlvr2", "explain", {"image": [ONE, TWO], "text": "a red circle"}),
    ("classification", "explain", {"image": ONE}),
]  # fmt: skip


def bomb(side: int) -> bytes:
    """A PNG that says it is large, and holds nothing."""
    head, rest = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), zlib.compress(bytes(10))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", rest))
    )


BOMB = bomb(9000)
VQA = "/v1/runs/vqa/answer"


async def silent(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


# Fixtures, for test files to import; their functions' names differ from their own, which tests have as arguments


@pytest.fixture(name="folder", scope="module")
def served_folder(tmp_path_factory) -> Path:
    """Runs and images: some are files, some members of a shard."""
    folder = tmp_path_factory.mktemp("secret")
    write_run(tiny_run("retrieval"), folder / "runs" / "retrieval" / "best")
    for number in range(6):
        path = folder / "photos" / ("old" if number < 4 else "new") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(TEXTS[number % 3])
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name, data in (("a.png", png(100)), ("a.txt", b"a shard")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture(name="runs", scope="module")
def served_runs(folder) -> dict[str, Eve]:
    """A run of each task."""
    tasks = {"pair": PairConfig(), "classification": ClassificationConfig()}
    found = {"retrieval": Eve.load(folder / "runs" / "retrieval")}
    for name in ("masked", "vqa", "nlvr2"):
        found[name] = Eve(tiny_run(name, folder / "runs" / name))
    for name, task in tasks.items():
        found[name] = Eve(tiny_run(name, folder / "runs" / name, task=task))
    return found


@pytest.fixture(name="index", scope="module")
def served_index(folder, runs) -> Index:
    return runs["retrieval"].index([folder / "photos", folder / "shard.tar"], folder / "index")


@pytest.fixture(name="client", scope="module")
def served_client(runs, index) -> Iterator[TestClient]:
    with TestClient(application([*runs.values()], index), base_url="http://localhost") as client:
        yield client
