"""Shards on a web server that fails, and shards that change; against the same shards on disk."""

import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eve_vl.config import Config
from eve_vl.data import fingerprint, loader, remote_ranges, remote_requests
from eve_vl.data.held_out import held_out_split
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.loader import train_loader
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.data.readers import shard_list, tar_index
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import usable_rows
from eve_vl.data.sample_set import SampleSet
from eve_vl.data.source_check import check_source
from eve_vl.data.source_names import absolute_spec
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.predict.inputs import Inputs
from eve_vl.tasks.ablated_rows import AblatedRows
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.retrieval_set import SearchSet
from eve_vl.utils.errors import StorageError, UserError
from helpers.color_cards import encoded_card

TOKENIZER = Tokenizer.train(["a card"], 300)
NUM = 6  # rows of a shard


class Store(ThreadingHTTPServer):
    """A web server for a folder. `faults` are the answers to the next requests for bytes, `requests` what was asked for."""

    request_queue_size = 128  # a full queue delays a request by a second

    def __init__(self, folder: Path):
        self.folder, self.faults, self.requests, self.down = folder, list[str](), list[str](), ""
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Store  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path, store = self.server.folder / self.path[1:], self.server
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        fault = store.down or (store.faults.pop(0) if store.faults and span else "")
        store.requests.append(f"{self.command} {self.path} {span[0] if span else ''}".strip())
        if fault.isdigit() or not path.is_file():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        if span and int(span[1]) >= len(data):
            self.send_error(416)
            return
        part = data[int(span[1]) : int(span[2]) + 1] if span and fault != "whole" else data
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", str(path.stat().st_mtime_ns))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)
            self.close_connection = True


RED = encoded_card("red")


def write_shard(path: Path, first: int, num: int = NUM, card: bytes = RED) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + num):
            for suffix, data in (("png", card + bytes(number)), ("txt", b"a card %d" % number)):
                info = tarfile.TarInfo(f"{number:06}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps({"successes": num}))
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
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
    from tests.data.test_loader import tiny_config

    config = tiny_config()
    return replace(
        config, data=replace(config.data, train=(spec,), val=(spec,), num_workers=0, **data)
    )


def batches_of(config: Config, num: int, **where: int) -> list[Any]:
    (source,) = open_sources(config.data.train, config.data, 16)
    dataset = CaptionedImages([source], config, TOKENIZER, training=True)
    batches = train_loader(dataset, **{"consumed": 0, "rank": 0, "world": 1} | where)  # pyright: ignore[reportArgumentType]
    return [
        (batch.where, batch.images_BCHW.numpy().tobytes(), batch.ids_BT.tolist())
        for batch in islice(batches, num)
    ]


def test_remote_shards_are_read_as_local_ones_in_one_call_a_micro_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys
):
    local, remote = str(store.folder / "{00000..00002}.tar"), f"{store.url}/{{00000..00002}}.tar"
    assert absolute_spec(remote) == remote
    assert absolute_spec(f"file://{local}") == local
    with monkeypatch.context() as context:  # rows beyond the limit of an order in memory
        context.setattr(loader, "LARGE", 3 * NUM - 1)
        context.setattr(loader, "epoch_order", None)
        keyed = sorted(
            name for where, *_ in batches_of(config_of(local), 9) for name in where
        )  # two epochs
    assert keyed == sorted(f"{n // NUM:05}.tar:{n:06}" for n in range(3 * NUM) for _ in range(2))
    expected = batches_of(config_of(local), 5)
    assert batches_of(config_of(remote), 5) == expected
    assert f"reading the sizes of 3 shards in {store.url}\n" in capsys.readouterr().out
    assert (
        sorted(entry.suffix for entry in store.folder.iterdir())
        == [".index"] * 3 + [".json"] * 3 + [".tar"] * 3
    )
    (source,) = open_sources([remote], config_of(remote).data, 16)
    dataset = CaptionedImages([source], config_of(remote), TOKENIZER, training=False)
    store.requests.clear()
    dataset.__getitems__([(0, 0, row) for row in (0, 7, 9)])
    assert [request.split()[1] for request in sorted(store.requests)] == [
        "/00000.tar",
        "/00001.tar",
        "/00001.tar",
    ]
    assert (
        batches_of(
            replace(config_of(remote), data=replace(config_of(remote).data, num_workers=2)), 5
        )
        == expected
    )


def reads_of(spec: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, int]]:
    """What reads of all rows give, and their calls of storage."""
    config, found, calls, read = config_of(spec), {}, list[Any](), remote_requests.request_ranges
    monkeypatch.setattr(
        remote_requests, "request_ranges", lambda *ranges: calls.append(ranges) or read(*ranges)
    )
    (source,) = sources = open_sources([spec], config.data, 16)
    pairs = CaptionedImages(sources, config, TOKENIZER, training=False)

    def samples(make: Callable[[], SampleSet]) -> list[Any]:
        dataset = make()
        every = [
            sample
            for batch in dataset.eval_batches(64, 0, 1)
            for sample in dataset.__getitems__(batch)
        ]
        seen = [part for sample in every for part in (sample, sample.wrong) if part]
        return [
            (
                getattr(each, "image", torch.zeros(0)).tolist(),
                getattr(each, "ids_T", np.zeros(0)).tolist(),
            )
            for each in seen
        ]

    reads: dict[str, Callable[[], Any]] = {
        "pairs": lambda: samples(lambda: pairs),
        "masked": lambda: samples(lambda: MaskedPairs(sources, config, TOKENIZER, training=False)),
        "search": lambda: samples(
            lambda: SearchSet(sources, replace(config, task=RetrievalConfig()), TOKENIZER)
        ),
        "wrong images": lambda: samples(lambda: AblatedRows(pairs, "wrong_image")),
        "fingerprint": lambda: fingerprint.of_sources([("", source)]),
        "rows": lambda: [row.captions for _, row in usable_rows(source)],
        "column": lambda: [*source.values("caption")],  # pyright: ignore[reportAttributeAccessIssue]
        "check": lambda: check_source(source, num_workers=0),
        "images": lambda: [
            pixels.tolist()
            for _, pixels in Inputs(config.input, TOKENIZER, torch.device("cpu")).stream(
                spec, "image", config.data, skipped=[]
            )
        ],
    }
    for name, work in reads.items():
        calls.clear()
        found[name] = work(), len(calls)
    return found


def test_evaluation_reads_many_remote_rows_in_one_call(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    for number, color in enumerate(("blue", "green"), 1):  # wrong images differ
        write_shard(store.folder / f"{number:05}.tar", NUM * number, card=encoded_card(color))
    local, remote = (
        reads_of(f"{place}/{{00000..00002}}.tar", monkeypatch)
        for place in (store.folder, store.url)
    )
    for name, (found, num_calls) in remote.items():
        assert found == local[name][0] and found, name
        assert num_calls <= 2 + (name == "wrong images"), name  # rows are read before images


def test_passing_faults_change_nothing_and_lasting_ones_stop_the_run_in_one_line(store: Store):
    remote = f"{store.url}/{{00000..00002}}.tar"
    expected = batches_of(config_of(remote), 4)
    store.faults = ["503", "", "", "cut", "", "", "500", "", "", "whole"]
    assert batches_of(config_of(remote), 4) == expected
    assert not store.faults
    again = r"4 tries failed \(.*{}.*\); check address and network, then resume"
    whole = r"the server does not support byte ranges \([\d,]+ bytes came instead of [\d,]+\); use one that does, such as "
    for fault, line in (
        ("503", again.format("Service Unavailable")),
        ("cut", again.format("")),
        ("whole", whole),
    ):
        store.faults = [fault] * 1000
        with pytest.raises(StorageError, match=rf"^{store.url}/0000\d.tar: {line}"):
            batches_of(config_of(remote), 4)
        store.faults = []
    for status, line in (
        ("404", "no such file, or it has changed"),
        ("403", "access was refused .*; check the credentials"),
    ):
        store.requests.clear()
        store.faults = [status]
        with pytest.raises(StorageError, match=rf"^{store.url}/0000\d.tar: {line}"):
            batches_of(config_of(remote), 4)
    assert batches_of(config_of(remote), 4) == expected


def test_faults_at_the_start_are_one_line(store: Store, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=rf"^{store.url}/9.tar: no such file, or it has changed"):
        open_source(f"{store.url}/9.tar")
    store.down = "503"
    with pytest.raises(UserError, match=rf"^{store.url}/00000.tar: 4 tries failed \(503"):
        open_source(f"{store.url}/00000.tar")
    store.down = ""
    store.faults = ["503", "cut", "503"]  # in the scan of headers
    assert len(open_source(f"{store.url}/00001.tar")) == NUM
    store.shutdown()
    store.server_close()
    with pytest.raises(
        UserError,
        match=r"00002.tar: 4 tries failed \(Cannot connect.*\); check address and network",
    ):
        open_source(f"{store.url}/00002.tar")
    with pytest.raises(
        UserError,
        match=r"^s3://bucket/x.tar: cannot be read \(Install s3fs to access S3\); pip install 'eve-vl\[remote\]' for s3",
    ):
        monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
        open_source("s3://bucket/x.tar")
    with pytest.raises(UserError, match=r"^nothing://bucket/x.tar: cannot be read"):
        open_source("nothing://bucket/x.tar")
    with pytest.raises(
        UserError,
        match="only tar shards and Parquet files are read from remote storage, not 'jsonl'",
    ):
        open_source("http://127.0.0.1/rows.jsonl")


def _in_memory(name: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe(f"/bucket/{name}", data)
    return f"memory://bucket/{name}"


def test_folders_and_parquet_files_of_an_object_store(store: Store):
    for number in range(2):
        _in_memory(f"pairs/{number}.tar", (store.folder / f"0000{number}.tar").read_bytes())
    assert [open_source("memory://bucket/pairs")[row].captions[0] for row in (0, NUM)] == [
        "a card 0",
        f"a card {NUM}",
    ]
    file = io.BytesIO()
    pq.write_table(
        pa.table({"image": [encoded_card("red")] * 4, "caption": list("abcd")}),
        file,
        row_group_size=2,
    )
    source = open_source(_in_memory("rows.parquet", file.getvalue()))
    assert [source[row].captions for row in range(4)] == [("a",), ("b",), ("c",), ("d",)]
    assert source.blocks() == [("rows.parquet:0", 2), ("rows.parquet:1", 2)]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_shard_that_changes_after_it_was_indexed_is_one_line(store: Store, is_remote: bool):
    path = store.folder / "00001.tar"
    source = open_source(f"{store.url}/00001.tar" if is_remote else path)
    image = source[2].image
    write_shard(path, 500, card=encoded_card("blue"))
    with pytest.raises(
        StorageError,
        match=r"00001.tar: has changed since it was indexed \(byte [\d,]+ begins no member",
    ):
        image.read()
    again = open_source(f"{store.url}/00001.tar" if is_remote else path)  # indexed again
    assert again[2].captions == ("a card 502",)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StorageError, match=r"00001.tar: .*has changed since it was indexed"):
        [again[row].image.read() for row in range(NUM)]
    if not is_remote:
        again = open_source(store.folder / "00002.tar")
        write_shard(store.folder / "00002.tar", 500, 20)
        tar_index.mapped_index.cache_clear()
        with pytest.raises(
            StorageError,
            match=r"00002.tar: has changed since it was indexed \(20,480 → 61,440 bytes\)",
        ):
            again[0]
        (store.folder / "00002.tar").unlink()
        with pytest.raises(UserError, match=r"00002.tar: cannot be read \(No such file"):
            again[0]


def test_an_order_by_shards_indexes_a_shard_when_it_reaches_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """The same steps for any world and workers, resumed anywhere; held-out takes whole shards and reads none."""
    for number in range(3, 60):
        write_shard(store.folder / f"{number:05}.tar", NUM * number)
    config, scanned, scan = (
        config_of(str(store.folder), order="shards"),
        list[Path](),
        tar_index._scan,
    )
    monkeypatch.setattr(tar_index, "_scan", lambda path: scanned.append(path) or scan(path))
    held_out = replace(config, data=replace(config.data, val=("held-out",), val_fraction=0.2))
    (train,), (val,) = open_train_and_val(held_out)
    assert len(scanned) == 1  # for the columns
    assert len(train) + len(val) == 60 * NUM and 30 < len(val) < 120 and not len(val) % NUM
    whole = batches_of(config, 6)
    assert len(scanned) < 60
    ranks = [batches_of(config, 6, rank=rank, world=2) for rank in range(2)]
    assert [one[0] + two[0] for one, two in zip(*ranks, strict=True)] == [
        where for where, *_ in whole
    ]
    assert (
        batches_of(
            replace(config, data=replace(config.data, num_workers=1)),
            2,
            consumed=4 * len(whole[0][0]),
        )
        == whole[4:]
    )
    names = [{part[row].where.split(":")[0] for row in range(len(part))} for part in (train, val)]
    assert names[0].isdisjoint(names[1]) and len(names[1]) == len(val) // NUM
    store.folder.rename(store.folder.with_name("moved"))
    for number in range(10):
        (
            store.folder.with_name("moved") / f"{number:05}.tar"
        ).unlink()  # the others stay where they are
    (moved,) = open_sources([str(store.folder.with_name("moved"))], config.data, 16)
    (rest,) = held_out_split([moved], [""], 0.2, by_shards=True).val
    assert {rest[row].where.split(":")[0] for row in range(len(rest))} == {
        name for name in names[1] if name > "00009.tar"
    }


def test_a_split_by_shards_takes_one_shard_at_least_and_far_too_much_is_refused(store: Store):
    (source,) = open_sources(
        [str(store.folder)], config_of(str(store.folder), order="shards").data, 16
    )
    splits = held_out_split([source], ["shards"], 0.17, by_shards=True)
    assert [len(splits.train[0]), len(splits.val[0])] == [2 * NUM, NUM]
    with pytest.raises(
        UserError,
        match=r"^shards: whole shards .*, 33.3% of its rows instead of 2.0%; give --data.val, ",
    ):
        held_out_split([source], ["shards"], 0.02, by_shards=True)


def test_the_numbers_of_rows_are_kept_and_checked(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_list, "MANY", 2)
    for is_lazy in (False, True):
        open_source(store.folder, by_shards=is_lazy)
        with monkeypatch.context() as context:
            context.setattr(shard_list, "find_index", None)
            context.setattr(shard_list, "_stated_rows", None)
            assert (
                len(shard_list.list_shards(sorted(store.folder.glob("*.tar")), is_lazy).num_rows_S)
                == 3
            )
    (store.folder / "00001_stats.json").write_text('{"successes": 5}')
    write_shard(
        store.folder / "00000.tar", 0
    )  # another time of change: the numbers are counted again
    source = open_source(store.folder, by_shards=True)
    assert len(source) == 3 * NUM - 1
    with pytest.raises(
        StorageError, match=r"00001.tar: has 6 rows, 00001_stats.json says 5; delete that file"
    ):
        source[NUM]
    (store.folder / "00001_stats.json").unlink()  # as the message says; the tars stay as they are
    assert len(open_source(store.folder, by_shards=True)) == 3 * NUM
    (store.folder / "00001_stats.json").write_text("{}")
    (store.folder / "00002_stats.json").unlink()
    write_shard(store.folder / "00000.tar", 0)
    assert len(open_source(store.folder, by_shards=True)) == 3 * NUM
