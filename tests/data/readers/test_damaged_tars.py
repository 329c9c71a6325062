"""Damaged or hostile tars and indexes of tars, and a full disk."""

import resource

import pytest

from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import encoded_card
from helpers.source_files import assert_refused
from helpers.tars import tar_of

CARD = encoded_card("red")
TAR = tar_of(
    {
        "a.png": CARD,
        "a.txt": b"a red card",
        "b.png": CARD,
        "b.txt": b"a red card",
    }
)


def with_size(data: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a tar whose first header says another size, with the right checksum."""
    header = bytearray(data[:512])
    header[124:136] = size.ljust(12, b"\0")
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize(
    "size", [b"-0000001000", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777", b"0x10"]
)
def test_impossible_sizes_in_tar_headers_are_refused(tmp_path, size):
    path = tmp_path / "x.tar"
    for kind in (b"0", b"x", b"L", b"5"):
        path.write_bytes(with_size(TAR, size, kind))
        assert_refused(r"x.tar: (not a whole tar|none of the first)", path)


@pytest.mark.parametrize(
    "record", [b"20 size=-1024\n", b"13 size=1e9\n", b"30 size=99999999999999999\n"]
)
def test_impossible_sizes_in_pax_records_are_refused(tmp_path, record):
    header = with_size(TAR[:512], b"%o" % len(record), b"x")
    path = tmp_path / "x.tar"
    path.write_bytes(header + record.ljust(512, b"\0") + TAR)
    assert_refused(r"x.tar: not a whole tar", path)


def test_a_full_disk_leaves_nothing_beside_a_shard(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(TAR)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        source = open_source(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(source) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tar"]
