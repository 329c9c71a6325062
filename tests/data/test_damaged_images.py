"""Damaged or hostile images: an error per row, and no more memory than their header says."""

import io  # noqa: I001
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from PIL import Image, TiffImagePlugin

from tests.data.test_damaged_data import assert_plain, damaged
from eve_vl.data import decoding, decoding_cost, pillow_decoding, plain_jpeg_png
from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.utils.errors import BadSampleError

# Memory


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def peak(work: Callable[[], object]) -> int:
    """How many bytes more than before are in memory at the worst moment of some work."""
    Path("/proc/self/clear_refs").write_text("5")
    status = {
        line.split(":")[0]: line for line in Path("/proc/self/status").read_text().splitlines()
    }
    before = int(status["VmRSS"].split()[1])
    work()
    status = {
        line.split(":")[0]: line for line in Path("/proc/self/status").read_text().splitlines()
    }
    return 1024 * (int(status["VmHWM"].split()[1]) - before)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks cannot be measured here"
)
@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"exif": turned()}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("CMYK", "JPEG", {"progressive": True}),
        ("RGB", "PNG", {"compress_level": 1, "exif": turned()}),
        ("RGBA", "PNG", {"compress_level": 1, "exif": turned()}),
        ("I;16", "PNG", {"compress_level": 1}),
        ("P", "GIF", {}),
        ("RGBA", "WEBP", {"method": 0}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_decoding_needs_no_more_than_the_header_says(
    monkeypatch: pytest.MonkeyPatch, mode: str, form: str, options: dict
):
    monkeypatch.setattr(pillow_decoding, "STRIP_PIXELS", 2**16)
    data = encode(Image.linear_gradient("L").resize((2400, 2400)).convert(mode), form, **options)
    needed = []
    monkeypatch.setattr(decoding_cost, "MAX_BYTES", 0)
    with pytest.raises(BadSampleError, match=r"2400x2400 .* needs \d+ MB to decode") as error:
        decode(ImageBytes(data=data), "row")
    needed = int(error.value.reason.split("needs ")[1].split()[0])
    monkeypatch.undo()
    monkeypatch.setattr(pillow_decoding, "STRIP_PIXELS", 2**16)
    assert peak(lambda: decode(ImageBytes(data=data), "row")) < (needed + 8) * 2**20


def blank(side: int, mode: str) -> bytes:
    """Only the header of a PNG, which states a large image."""
    data = encode(Image.new(mode, (1, 1)), "PNG")
    return data.replace(b"\0\0\0\1\0\0\0\1", side.to_bytes(4, "big") * 2)


@pytest.mark.parametrize(
    ("side", "mode", "problem"),
    [(9400, "RGBA", "MB to decode"), (9400, "I;16", "MB to dec"), (10**4, "RGB", "pixels")],
)
def test_what_is_too_much_is_refused_before_it_is_decoded(
    side: int, mode: str, problem: str, monkeypatch: pytest.MonkeyPatch
):

    monkeypatch.setattr(decoding, "decode_plain", None)
    data = blank(side, mode)
    with pytest.raises(BadSampleError, match=problem):
        decode(
            ImageBytes(data=data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]),
            "row",
        )


def in_scans(num: int, exif: bytes = b"") -> bytes:
    """A progressive JPEG of 64 pixels whose last scan is there again and again. exif: what it has in front."""
    data = encode(
        Image.linear_gradient("L").resize((64, 64)).convert("RGB"),
        "JPEG",
        progressive=True,
        exif=exif,
    )
    last = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    return data[:-2] + last * (num - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_in_endless_scans_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding_cost, "MAX_SCANNED", 20 * 64 * 64)
    decode(ImageBytes(data=in_scans(20)), "row")
    with pytest.raises(
        BadSampleError,
        match="64x64 JPEG has 21 scans, at most 20 of so large an image are accepted",
    ):
        decode(ImageBytes(data=in_scans(21)), "row")


def test_what_lies_before_or_behind_a_jpeg_is_no_scan_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding_cost, "MAX_SCANNED", 20 * 64 * 64)
    data = in_scans(20, exif=b"Exif\0\0" + b"\xff\xda" * 30)
    for film in (b"", b"\xff\xda" * 30):
        decode(ImageBytes(data=data + film), "row")


def test_a_server_counts_scans_beyond_the_usual_as_pixels():
    assert [decoding.size_of(in_scans(num), "row") for num in (10, 40)] == [
        (64, 64, 64 * 64),
        (64, 64, 4 * 64 * 64),
    ]


def test_an_image_in_very_small_parts_is_refused():
    """Pillow parses these in Python; 10 MB of them took seconds."""
    jpeg, gif, bmp = (
        encode(Image.new("RGB", (9, 9)), "JPEG"),
        encode(Image.new("P", (9, 9)), "GIF"),
        encode_runs(30_000),
    )
    for num in (10, 100_000):
        comments = {
            "PPM": b"P6\n#" + b"c" * num + b"\n9 9\n255\n" + bytes(243),
            "JPEG": jpeg[:2] + b"\xff\xfe\0\2" * num + jpeg[2:],
            "JPEG, before a scan": jpeg[: jpeg.index(b"\xff\xda")]
            + b"\xff\xfe\0\2" * num
            + jpeg[jpeg.index(b"\xff\xda") :],
            "GIF": gif[:-1] + b"!\xfe" + b"\1c" * num + b"\0;",
        }
        for data in comments.values():
            if num == 10:
                assert decode(ImageBytes(data=data), "row").shape == (3, 9, 9)
            else:
                with pytest.raises(
                    BadSampleError, match="it has too many small parts; save it again"
                ):
                    decode(ImageBytes(data=data), "row")
    assert decode(ImageBytes(data=bmp), "row").shape == (3, 1, 30_000)  # of which each byte is one
    strips = io.BytesIO()
    Image.new("1", (100, 9000)).save(
        strips, "TIFF", tiffinfo={TiffImagePlugin.ROWSPERSTRIP: 1}
    )  # as scanners write them
    assert decode(ImageBytes(data=strips.getvalue()), "row").shape == (3, 9000, 100)


def encode_runs(width: int) -> bytes:
    """A BMP of one row in runs of one pixel."""
    sizes = struct.pack("<IiiHHIIIIII", 40, width, 1, 1, 8, 1, 0, 0, 0, 256, 0)
    return (
        struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078)
        + sizes
        + bytes(1024)
        + b"\1\1" * width
        + b"\0\1"
    )


def test_an_upload_costs_no_more_than_its_pixels(monkeypatch: pytest.MonkeyPatch):
    """A PNG may hold gigabytes behind its last row, which libpng inflates."""
    data = encode(Image.linear_gradient("L").convert("RGB"), "PNG")
    expected = decode(ImageBytes(data=data), "row")
    monkeypatch.setattr(plain_jpeg_png, "decode_png", None)
    assert torch.equal(decode(ImageBytes(data=data, is_upload=True), "row"), expected)


def test_files_far_too_large_are_not_read(tmp_path: Path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(10**12)  # of which nothing is on the disk
    with pytest.raises(BadSampleError, match="has more than 256 MB"):
        decode(ImageFile(path=tmp_path / "x.png"), "row")


# Any bytes


IMAGES = [
    *(
        encode(Image.linear_gradient("L").resize((40, 30)).convert("RGB"), form)
        for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
    ),
    encode(
        Image.new("RGBA", (20, 20)),
        "PNG",
        save_all=True,
        append_images=[Image.new("RGBA", (20, 20), "red")],
        exif=turned(),
    ),
    encode(Image.new("CMYK", (20, 20)), "JPEG", progressive=True, exif=turned()),
    encode(Image.new("I;16", (20, 20)), "TIFF"),
]


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(data=damaged(IMAGES))
def test_any_bytes_are_a_image_or_an_error_for_people(data: bytes):
    try:
        pixels = decode(ImageBytes(data=data), "row")
    except BadSampleError as error:
        assert_plain(str(error))
    else:
        assert pixels.shape[0] == 3
