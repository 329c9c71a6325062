"""Damaged bytes for tests of readers and decoders, and what people may see of the errors."""

from collections.abc import Sequence

from hypothesis import strategies as st

from eve_vl.utils.errors import printable

PIECES = [
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"{",
    b"[" * 2000,
    b"null",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b'"\\ud800"',
    b"true",
    b"~x/",
    b"../",
    b"x" * 300,
    b"\x1b[2J",
    b"{}",
    b"[]",
    b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\x01",
]


@st.composite
def damaged(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """Return the bytes of a whole file, changed in a few places, or any bytes at all."""
    data = draw(st.sampled_from(originals) | st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 0, 1, 1, 4, 100, 10**6]))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=8))
        data = data[:start] + piece + data[start + length :]
    return data


def assert_plain(*texts: str) -> None:
    """A terminal shows each text as one line."""
    assert [printable(text) for text in texts] == [*texts]
