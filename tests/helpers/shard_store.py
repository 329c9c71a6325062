"""Shards in a folder, and a web server for it that fails on demand."""

import json
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
from helpers.web_answers import Answer, damage, send, whole_answer

NUM = 6  # rows of a shard
CARD_TOKENIZER = Tokenizer.train(["a card"], 300)


class Store(ThreadingHTTPServer):
    """A web server for a folder of shards."""

    request_queue_size = 128  # a full queue delays a request by a second

    def __init__(self, folder: Path):
        self.folder = folder
        self.faults: list[str] = []
        """What is wrong with the answers to the next requests for bytes, as `damage` names it."""
        self.down = ""
        """The same for all answers."""
        self.requests: list[str] = []
        self.is_stopped = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.shards = f"{self.url}/{{00000..00002}}.tar"
        self.local_shards = f"{folder}/{{00000..00002}}.tar"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def shutdown(self) -> None:
        """Stop, also answers that are silent."""
        self.is_stopped.set()
        super().shutdown()

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients leave early."""

    def fault_of(self, *, is_range: bool) -> str:
        """Return what is to be wrong with the next answer."""
        if is_range and self.faults and not self.down:
            return self.faults.pop(0)
        return self.down


class Handler(BaseHTTPRequestHandler):
    """Answers with a file or a range of its bytes."""

    protocol_version = "HTTP/1.1"
    server: Store  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        store = self.server
        store.requests.append(f"{self.command} {self.path}")
        requested_range = self.headers.get("Range") or ""
        fault = store.fault_of(is_range=bool(requested_range))
        path = store.folder / self.path.removeprefix("/moved")[1:]
        if path.is_file():
            etag = str(path.stat().st_mtime_ns)
            answer = whole_answer(self.path, path.read_bytes(), etag, requested_range)
        else:
            answer = Answer(self.path, b"", 0, 0, 404, b"", {"Content-Length": "0"})
        if answer.status < 400:
            damage(answer, fault)
        send(answer, self, store.is_stopped)


def write_shard(
    path: Path,
    first: int,
    num: int = NUM,
    color: str = "red",
) -> Path:
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
    return tiny_config(
        data={
            "train": (spec,),
            "val": (spec,),
            **data,
        }
    )


def batches_of(
    config: Config,
    num: int,
    consumed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[Any]:
    """Names, pixels and ids of the first training batches."""
    sources = open_sources(config.data.train, config.data, 16)
    dataset = CaptionedImages(sources, config, CARD_TOKENIZER, training=True)
    batches = train_loader(
        dataset,
        consumed=consumed,
        rank=rank,
        world=world,
    )
    content = []
    for batch in islice(batches, num):
        pixels = batch.images_BCHW.numpy().tobytes()
        content.append((batch.where, pixels, batch.ids_BT.tolist()))
    return content
