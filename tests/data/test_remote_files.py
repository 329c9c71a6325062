"""Shards and Parquet files on a server that fails, against the same files on disk."""

import io
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eve_vl.data import fingerprint, remote_ranges, remote_requests, remote_stores
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.opening import open_sources
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.records import fetch_places, usable_rows
from eve_vl.data.sample_set import SampleSet
from eve_vl.data.source_check import check_source
from eve_vl.data.source_names import absolute_spec, refuse_missing
from eve_vl.predict.inputs import Inputs
from eve_vl.tasks.ablated_rows import AblatedRows
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.utils.errors import StorageError
from helpers.color_cards import encoded_card
from helpers.shard_store import CARD_TOKENIZER, NUM, batches_of, config_of, write_shard
from helpers.source_files import assert_refused, values_of


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_remote_shards_equal_those_of_local_ones(store, num_workers, capsys):
    assert absolute_spec(store.shards) == store.shards
    assert absolute_spec(f"file://{store.local_shards}") == store.local_shards
    expected = batches_of(config_of(store.local_shards), 5)
    assert batches_of(config_of(store.shards, num_workers=num_workers), 5) == expected
    assert f"reading the sizes of 3 shards in {store.url}\n" in capsys.readouterr().out
    suffixes = sorted(entry.suffix for entry in store.folder.iterdir())
    assert suffixes == [".index"] * 3 + [".json"] * 3 + [".tar"] * 3


def test_rows_of_a_batch_are_requested_together(store):
    config = config_of(store.shards)
    sources = open_sources([store.shards], config.data, 16)
    dataset = CaptionedImages(sources, config, CARD_TOKENIZER, training=False)
    store.requests.clear()
    dataset.__getitems__([(0, 0, row) for row in (0, 7, 9)])
    assert sorted(store.requests) == ["GET /00000.tar", "GET /00001.tar", "GET /00001.tar"]


def samples_of(dataset: SampleSet) -> list[Any]:
    """Return pixels and ids of all rows, with those of wrong partners."""
    content = []
    for batch in dataset.eval_batches(64, 0, 1):
        for sample in dataset.__getitems__(batch):
            for part in (sample, sample.wrong):
                for name in ("image", "ids_T"):
                    if hasattr(part, name):
                        content.append(getattr(part, name).tolist())
    return content


class Readings:
    """The ways to read all rows of a source."""

    def __init__(self, spec: str):
        self.spec = spec
        self.config = config_of(spec)
        self.sources = open_sources([spec], self.config.data, 16)
        self.source: Any = self.sources[0]

    def read_wrong_images(self) -> Any:
        dataset = CaptionedImages(self.sources, self.config, CARD_TOKENIZER, training=False)
        return samples_of(AblatedRows(dataset, "wrong_image"))

    def read_masked_pairs(self) -> Any:
        dataset = MaskedPairs(self.sources, self.config, CARD_TOKENIZER, training=False)
        return samples_of(dataset)

    def read_search(self) -> Any:
        config = replace(self.config, task=RetrievalConfig())
        return samples_of(SearchSet(self.sources, config, CARD_TOKENIZER))

    def read_fingerprint(self) -> Any:
        return fingerprint.of_sources([("", self.source)])

    def read_rows(self) -> Any:
        return [row.captions for _, row in usable_rows(self.source)]

    def read_column(self) -> Any:
        return list(self.source.values("caption"))

    def read_check(self) -> Any:
        return check_source(self.source, num_workers=0)

    def read_images(self) -> Any:
        inputs = Inputs(self.config.input, CARD_TOKENIZER, torch.device("cpu"))
        stream = inputs.stream_images(self.spec, self.config.data, skipped=[])
        return [pixels.tolist() for _, pixels in stream]


@pytest.mark.parametrize("name", [name for name in vars(Readings) if name.startswith("read_")])
def test_evaluation_reads_many_remote_rows_in_one_call(store, monkeypatch, name):
    """Wrong images are read after all rows."""
    calls = []
    request_ranges = remote_requests.request_ranges

    def note_and_request(ranges):
        calls.append(ranges)
        return request_ranges(ranges)

    monkeypatch.setattr(remote_requests, "request_ranges", note_and_request)
    for number, color in enumerate(("blue", "green"), start=1):  # wrong images differ
        write_shard(store.folder / f"{number:05}.tar", NUM * number, color=color)
    expected = getattr(Readings(store.local_shards), name)()
    read = getattr(Readings(store.shards), name)
    calls.clear()
    assert expected
    assert read() == expected
    assert len(calls) <= (3 if name == "read_wrong_images" else 2)


def test_passing_faults_change_nothing(store):
    config = config_of(store.shards)
    expected = batches_of(config, 4)
    store.faults = ["503", "", "", "cut", "", "", "500", "", "", "whole"]
    assert batches_of(config, 4) == expected
    assert not store.faults


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        (["503"] * 99, r"4 tries failed \(.*Service Unavailable.*\); check address and network"),
        (["cut"] * 99, r"4 tries failed \(Response payload is not completed.*\); check address"),
        (["garbage"] * 99, r"4 tries failed \(its answer is no valid HTTP: .*\); check address"),
        (
            ["whole"] * 99,
            r"the server does not support byte ranges \([\d,]+ bytes came instead of [\d,]+\);"
            " use one that does, such as ",
        ),
        (["no_range"] * 99, r"the server does not support byte ranges \(status 200 instead of 206"),
        (["other_range"] * 99, r"4 tries failed \(bytes [\d/-]+ came instead of bytes [\d-]+\);"),
        (["stall"] * 99, r"4 tries failed \(Timeout on reading data from socket\);"),
        (["redirect_loop"] * 99, "the server redirects in a loop; check the address"),
        (["400"], r"the server cannot answer the request \(400,.*\); check the address"),
        (["404"], "no such file, or it has changed"),
        (["403"], "access was refused .*; check the credentials"),
    ],
)
def test_lasting_faults_stop_a_run_in_one_line(store, monkeypatch, faults, problem):
    monkeypatch.setattr(remote_stores, "READ_SECONDS", 0.05)
    config = config_of(store.shards)
    expected = batches_of(config, 4)
    store.faults = faults
    with pytest.raises(StorageError, match=rf"^{store.url}/0000\d.tar: {problem}"):
        batches_of(config, 4)
    store.faults = []
    assert batches_of(config, 4) == expected


def test_faults_at_the_start_are_one_line(store, monkeypatch):
    missing = f"^{store.url}/9.tar: no such file, or it has changed"
    assert_refused(missing, f"{store.url}/9.tar")
    store.down = "503"
    assert_refused(rf"^{store.url}/00000.tar: 4 tries failed \(503", f"{store.url}/00000.tar")
    store.down = ""
    store.faults = ["503", "cut", "503"]  # in the scan of headers
    assert len(open_source(f"{store.url}/00001.tar")) == NUM
    store.shutdown()
    store.server_close()
    gone = r"00002.tar: 4 tries failed \(Cannot connect.*\); check address and network"
    assert_refused(gone, f"{store.url}/00002.tar")
    monkeypatch.setattr(remote_requests, "MAX_SECONDS_UNREACHABLE", 0)
    assert_refused(gone.replace("4 tries", "1 try"), f"{store.url}/00002.tar")


def test_a_download_that_fails_is_not_taken_for_a_damaged_tar(store):
    store.faults = ["long_length"] * 4
    assert_refused(r"^\S+/00000.tar: 4 tries failed \(.*\); check", f"{store.url}/00000.tar")


class S3Error(Exception):
    """botocore's error of an S3 server."""

    response: ClassVar = {"ResponseMetadata": {"HTTPStatusCode": 404}}


def test_a_missing_bucket_is_named_after_one_request(monkeypatch):
    num_requests = 0

    def info(_: Any) -> None:
        nonlocal num_requests
        num_requests += 1
        answer = S3Error("An error occurred (NoSuchBucket) when calling ListObjectsV2")
        raise FileNotFoundError("The specified bucket does not exist") from answer

    monkeypatch.setattr(remote_requests, "store", lambda: SimpleNamespace(info=info))
    assert_refused("^s3://bucket/x.tar: no such bucket; check its name", "s3://bucket/x.tar")
    assert num_requests == 1


def test_a_remote_source_is_printed_before_it_is_opened(capsys):
    refuse_missing(["s3://nowhere/{0..3}.tar"])
    assert capsys.readouterr().out == "opening s3://nowhere/{0..3}.tar\n"


def test_addresses_that_cannot_be_read_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    install = (
        r"^s3://bucket/x.tar: cannot be read \(Install s3fs to access S3\);"
        r" pip install 'eve-vl\[remote\]' for s3"
    )
    assert_refused(install, "s3://bucket/x.tar")
    assert_refused("^nothing://bucket/x.tar: cannot be read", "nothing://bucket/x.tar")
    form = "only tar shards and Parquet files are read from remote storage, not 'jsonl'"
    assert_refused(form, "http://127.0.0.1/rows.jsonl")


def test_folders_and_parquet_files_of_an_object_store(store):
    memory = fsspec.filesystem("memory")
    for number in range(2):
        data = (store.folder / f"0000{number}.tar").read_bytes()
        memory.pipe(f"/bucket/pairs/{number}.tar", data)
    source = open_source("memory://bucket/pairs")
    assert source[0].captions == ("a card 0",)
    assert source[NUM].captions == (f"a card {NUM}",)

    file = io.BytesIO()
    columns = {"image": [encoded_card("red")] * 3, "caption": ["a", "b", "c"]}
    pq.write_table(pa.table(columns), file, row_group_size=2)
    memory.pipe("/bucket/rows.parquet", file.getvalue())
    source: Any = open_source("memory://bucket/rows.parquet")
    assert values_of(source, "captions") == [("a",), ("b",), ("c",)]
    assert source.blocks() == [("rows.parquet:0", 2), ("rows.parquet:1", 1)]


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_shard_that_changes_after_it_was_indexed_is_one_line(store, is_remote):
    path = store.folder / "00001.tar"
    spec = f"{store.url}/00001.tar" if is_remote else path
    image = open_source(spec)[2].image
    write_shard(path, 500, color="blue")
    changed = r"00001.tar: has changed since it was indexed"
    with pytest.raises(StorageError, match=rf"{changed} \(byte [\d,]+ begins no member"):
        image.read()
    source = open_source(spec)  # indexed again
    assert source[2].captions == ("a card 502",)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StorageError, match=r"00001.tar: .*has changed since it was indexed"):
        [source[row].image.read() for row in range(NUM)]


def test_a_shard_that_is_replaced_by_one_of_equal_sizes_stops_a_run(store, monkeypatch):
    source = open_source(store.shards)
    write_shard(store.folder / "00001.tar", NUM, color="blue")
    store.requests.clear()
    assert values_of(source, "captions")  # a minute has not passed
    assert not [request for request in store.requests if "HEAD" in request]

    monkeypatch.setattr(remote_ranges, "CHECK_SECONDS", 0)
    assert source[0].image.read()
    with pytest.raises(StorageError, match=r"00001.tar: has changed since it .*\(another .* ETag"):
        source[NUM].image.read()
    with pytest.raises(StorageError, match=r"00001.tar: has changed since it"):
        fetch_places([(source, row) for row in range(3 * NUM)])


def test_a_shard_that_is_replaced_while_it_is_indexed_is_refused(store, monkeypatch):
    request_ranges = remote_requests.request_ranges

    def replace_and_request(ranges: Any) -> Any:
        write_shard(store.folder / "00001.tar", NUM, color="blue")
        return request_ranges(ranges)

    with monkeypatch.context() as context:
        context.setattr(remote_requests, "request_ranges", replace_and_request)
        assert_refused("00001.tar: has changed since it was indexed", f"{store.url}/00001.tar")
    source = open_source(f"{store.url}/00001.tar")
    assert source[0].image.read() == encoded_card("blue") + bytes(NUM)


def test_a_parquet_file_that_is_replaced_stops_a_run(store, monkeypatch):
    monkeypatch.setattr(remote_ranges, "CHECK_SECONDS", 0)
    path = store.folder / "rows.parquet"

    def write(caption: str) -> None:
        columns = {"image": [encoded_card("red")] * 4, "caption": [caption] * 4}
        pq.write_table(pa.table(columns), path, row_group_size=2)

    write("a")
    source = open_source(f"{store.url}/rows.parquet")
    assert source[0].captions == ("a",)
    write("b")
    with pytest.raises(StorageError, match=r"rows.parquet: has changed since it was indexed"):
        source[3]
