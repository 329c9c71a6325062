"""Ways to damage image files, tars, Parquet files and arrays so that their form stays plausible."""

import functools
import io
import struct
import zlib
from random import Random

import numpy as np

from helpers.byte_mutations import mutate_bytes, numbers_at
from helpers.encoded_images import png_chunk

PNG_CHUNKS = (b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"tRNS", b"PLTE")
PNG_CHUNKS += (b"gAMA", b"IDAT", b"pHYs")
TAR_SIZES = (
    b"-0000000001\0",
    b"77777777777\0",
    b"0o17       \0",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b" " * 12,
    b"_1_000\0",
)
TAR_KINDS = (b"L", b"x", b"g", b"K", b"S", b"1", b"2", b"5", b"6", b"\0", b"\xff")
TAR_NAMES = (
    b"\xff\xfe.jpg",
    b"..//../x.jpg",
    b"a" * 100,
    b"",
    b"\x1b[31m.jpg",
    b"0000.txt",
    "\u202e.jpg".encode(),
)
TAR_ATTRIBUTES = (
    b"13 size=-100\n",
    b"14 size=1e999\n",
    b"0 size=1\n",
    b"99 path=x.jpg\n",
    b"-5 a=b\n",
    b"x",
    b"20 size=99999999999\n",
    b"17 path=\xff\xfe.jpg\n",
)


# Images


def mutate_png(rng: Random, data: bytes) -> bytes:
    """Write another size, depth or kind of colour, or a further chunk; with true checksums."""
    if rng.random() < 0.6:
        header = bytearray(data[16:29])
        if rng.random() < 0.7:
            width = rng.choice((0, 1, 65_535, 8000, 9400, 40_000, 2**31 - 1, 2**32 - 1))
            header[:8] = struct.pack(">II", width, rng.choice((width, 1, 30)))
        else:
            value = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            header[rng.randrange(8, 13)] = value
        return data[:8] + png_chunk(b"IHDR", bytes(header)) + data[33:]
    kind = rng.choice(PNG_CHUNKS)
    noise = rng.randbytes(26)
    body = rng.choice((b"", b"x", noise, b"a\0\0" + compressed_zeros(), b"\0" * 200_000))
    return data[:33] + png_chunk(kind, body) + data[33:]


@functools.cache
def compressed_zeros() -> bytes:
    return zlib.compress(b"\0" * 50_000_000, 1)


def mutate_jpeg(rng: Random, data: bytes) -> bytes:
    """Write another size, or Exif data without meaning."""
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    if frame >= 0 and rng.random() >= 0.4:
        return numbers_at(frame + 5, ">HH")(rng, data)
    noise = rng.randbytes(4)
    start = rng.choice((b"II*\0", b"MM\0*", noise))
    exif = b"Exif\0\0" + start + rng.randbytes(rng.choice((4, 60, 2000)))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def mutate_tiff(rng: Random, data: bytes) -> bytes:
    """Write another value in one of the entries, or another offset of them."""
    order = "<" if data[:1] == b"I" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data) or rng.random() < 0.1:
        return numbers_at(4, f"{order}I")(rng, data)
    (num_entries,) = struct.unpack_from(f"{order}H", data, start)
    entry = start + 2 + 12 * rng.randrange(max(num_entries, 1))
    if rng.random() < 0.8:
        return numbers_at(entry + rng.choice((4, 8)), f"{order}I")(rng, data)
    return numbers_at(entry, f"{order}HH")(rng, data)


# Tars


def mutate_tar(rng: Random, data: bytes) -> bytes:
    """Write another size, kind or name of a member, or attributes before it.

    Mostly with a true checksum.
    """
    places = [place for place in range(0, len(data), 512) if is_tar_header(data, place)]
    place = rng.choice(places)
    header = bytearray(data[place : place + 512])
    match rng.randrange(4):
        case 0 | 1:
            octal = b"%011o\0" % rng.choice((0, 1, 511, 513, 10_000))
            header[124:136] = rng.choice((*TAR_SIZES, octal)).ljust(12, b"\0")[:12]
        case 2:
            header[156:157] = rng.choice(TAR_KINDS)
        case _:
            header[:100] = rng.choice(TAR_NAMES).ljust(100, b"\0")
    if rng.random() < 0.8:
        sign_tar_header(header)
    attributes = b""
    if rng.random() < 0.3:
        attributes = tar_attributes(rng.choice(TAR_ATTRIBUTES))
    return data[:place] + attributes + bytes(header) + data[place + 512 :]


def is_tar_header(data: bytes, place: int) -> bool:
    return data[place + 257 : place + 262] == b"ustar"


def sign_tar_header(header: bytearray) -> None:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


def tar_attributes(body: bytes) -> bytes:
    """Return a member with attributes of the next one, as the PAX format has."""
    header = bytearray(b"pax".ljust(124, b"\0") + b"%011o\0" % len(body)).ljust(512, b"\0")
    header[156:157] = b"x"
    header[257:265] = b"ustar\x0000"
    sign_tar_header(header)
    return bytes(header) + body.ljust(512, b"\0")


# Tables and arrays


def mutate_parquet(rng: Random, data: bytes) -> bytes:
    """Change the size of the footer, or bytes in it."""
    if rng.random() < 0.3:
        return numbers_at(len(data) - 8, "<I")(rng, data)
    (size,) = struct.unpack_from("<I", data, len(data) - 8)
    footer = bytearray(data[-8 - size : -8])
    for _ in range(rng.choice((1, 2, 5))):
        value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        footer[rng.randrange(size)] = value
    return data[: -8 - size] + bytes(footer) + data[-8:]


def mutate_npz(rng: Random, data: bytes) -> bytes:
    """Write another number, type or shape of an array, or leave an array out."""
    arrays = dict(np.load(io.BytesIO(data)))
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        return mutate_bytes(rng, data)  # a torch file is a zip file too
    name = rng.choice(list(arrays))
    array = arrays[name].copy()
    match rng.randrange(5):
        case 0 | 1 if array.size:
            limits = np.iinfo(array.dtype)
            largest = limits.max
            second = -1 if limits.min else 3
            value = rng.choice((limits.min, second, 0, 1, 7, 100, 10**5 % largest, largest))
            array.flat[rng.randrange(array.size)] = value
            arrays[name] = array
        case 2:
            arrays[name] = array.astype(rng.choice(("f4", "U5", "c8", "u1", "?", "M8[s]")))
        case 3:
            shapes = (
                array[:-1],
                array.ravel(),
                array[None],
                array[:0],
                np.array(5),
            )
            arrays[name] = rng.choice((*shapes, np.repeat(array, 2, 0)))
        case _:
            del arrays[name]
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
