"""Shards in a folder, and a web server for it that fails on demand."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from eve_vl.config import Config
from eve_vl.data import remote_ranges, remote_requests
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.loader import train_loader
from eve_vl.data.opening import open_sources
from eve_vl.data.tokenizer import Tokenizer
from helpers.color_cards import encoded_card
from helpers.tars import write_tar_of
from helpers.tiny_config import tiny_config

NUM = 6  # rows of a shard
CARD_TOKENIZER = Tokenizer.train(["a card"], 300)


class Store(ThreadingHTTPServer):
    """A web server for a folder of shards."""

    request_queue_size = 128  # a full queue delays a request by a second

    def __init__(self, folder: Path):
        self.folder = folder
        self.faults: list[str] = []
        """What is wrong with the answers to the next requests for bytes: a status, cut or whole."""
        self.down = ""
        """Status of all answers."""
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.shards = f"{self.url}/{{00000..00002}}.tar"
        self.local_shards = f"{folder}/{{00000..00002}}.tar"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """Answers with a file or a range of its bytes."""

    server: Store  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        store = self.server
        path = store.folder / self.path[1:]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        fault = store.down
        if span and store.faults and not fault:
            fault = store.faults.pop(0)
        store.requests.append(f"{self.command} {self.path}")
        if fault.isdigit() or not path.is_file():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        if span and int(span[1]) >= len(data):
            self.send_error(416)
            return
        if span and fault != "whole":
            data = data[int(span[1]) : int(span[2]) + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", str(path.stat().st_mtime_ns))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            self.close_connection = True


def write_shard(path: Path, first: int, num: int = NUM, color: str = "red") -> Path:
    """Write rows `first` to `first + num`, and img2dataset's file about the shard."""
    members = {}
    for number in range(first, first + num):
        members[f"{number:06}.png"] = encoded_card(color) + bytes(number)
        members[f"{number:06}.txt"] = b"a card %d" % number
    write_tar_of(path, members)
    stats = path.with_name(f"{path.stem}_stats.json")
    stats.write_text(json.dumps({"successes": num}))
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Three shards on a web server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_requests, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(remote_ranges, "GAP", 512)
    (tmp_path / "data").mkdir()
    for number in range(3):
        write_shard(tmp_path / "data" / f"{number:05}.tar", NUM * number)
    with Store(tmp_path / "data") as server:
        yield server
        server.shutdown()


def config_of(spec: str, **data: Any) -> Config:
    """A tiny config that trains and validates on a source."""
    return tiny_config(data={"train": (spec,), "val": (spec,), **data})


def batches_of(
    config: Config, num: int, consumed: int = 0, rank: int = 0, world: int = 1
) -> list[Any]:
    """Names, pixels and ids of the first training batches."""
    sources = open_sources(config.data.train, config.data, 16)
    dataset = CaptionedImages(sources, config, CARD_TOKENIZER, training=True)
    batches = train_loader(dataset, consumed=consumed, rank=rank, world=world)
    content = []
    for batch in islice(batches, num):
        pixels = batch.images_BCHW.numpy().tobytes()
        content.append((batch.where, pixels, batch.ids_BT.tolist()))
    return content
