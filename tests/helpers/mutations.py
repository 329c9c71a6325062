"""Ways to damage a file, sampled from one `random.Random`, for campaign.py."""

import io
import json
import os
import socket
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

DEEP, LONG, INFINITE = (
    "@@DEEP@@",
    "@@LONG@@",
    "@@INFINITE@@",
)  # in JSON: what json.dumps cannot write
RAW = {DEEP: "[" * 100_000 + "]" * 100_000, LONG: "9" * 5000, INFINITE: "1e400"}
NUMBERS: list[Any] = [
    -1,
    0,
    1,
    -(2**31),
    2**31,
    2**32 - 1,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    1e308,
    0.5,
    -0.0,
    99_999_999,
]
NUMBERS += [float("nan"), float("inf"), LONG, INFINITE, True]
TEXTS = [
    *(
        "",
        " ",
        "\0",
        "\n",
        "a\tb\r\nc",
        "\x1b[31mred\x1b[2J",
        "\x07\x08",
        "\x7f\x9b31m",
        "\ud800",
        "\udcff.png",
        "\u200b\u200b",
    ),
    *(
        "\u202eabc\u202c",
        "\u2028x\u2029",
        "\ufeff",
        "\ufffe",
        "İ",
        "𝕏\U000e0001",
        "a" * 300,
        "a" * 300 + ".png",
        "é" * 200,
    ),
    *(
        "word " * 1001,
        "x" * 200_000,
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "~nosuchuser/x.png",
        "~",
    ),
    *(
        "http://x/y.png",
        "[MASK] [CLS] [PAD]",
        "{0000..0003}.png",
        "[bold]x[/nope]",
        "%s%n",
        "-1",
        "NaN",
        "null",
        "1e400",
        ".",
    ),
    *("{0..99999999999999999999}", "a/b/../../..", "x" * 5000 + "/y.png", "0" * 5000),
]
SWAPS: list[Any] = [
    None,
    True,
    False,
    3,
    2.5,
    "text",
    "",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
    DEEP,
]


def mutate(rng: Random, name: str, data: bytes) -> bytes:
    """Return a damaged file: as bytes, or as what its name and first bytes say that it is."""
    ways: list[Callable[[Random, bytes], bytes]] = [mutate_bytes]
    if name.endswith((".json", ".jsonl")):
        ways += [mutate_json_file] * 5 + [mutate_text]
    elif name.endswith((".csv", ".tsv", ".txt")):
        ways += [mutate_text] * 3
    elif name.endswith(".safetensors"):
        ways += [mutate_safetensors] * 3
    else:
        ways += [
            lie for magic, lie in LIES.items() if data.startswith(magic) or data[257:262] == magic
        ] * 2
    damaged = rng.choice(ways)(rng, data)
    return mutate_bytes(rng, damaged) if rng.random() < 0.1 else damaged


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Flip bits, cut, insert, swap, repeat or blank blocks, replace a run of digits."""
    start, size = rng.randrange(len(data) + 1), rng.choice((1, 4, 64, 512, 5000))
    head, block, tail = data[:start], data[start : start + size], data[start + size :]
    match rng.randrange(8):
        case 0 | 1:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 3, 30)) if data else 0):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 2:
            return head
        case 3:
            return (
                head
                + rng.choice(
                    (rng.randbytes(size), b"\0" * size, b"\xff" * size, b"\n", b'"', b"{", b",")
                )
                + block
                + tail
            )
        case 4:
            return head + tail
        case 5:
            return head + block * rng.choice((2, 3, 50)) + tail
        case 6:
            other = rng.randrange(len(tail) + 1)
            return head + tail[:other] + block + tail[other:]
        case _:
            return head + rng.choice((b"\0", b"\xff")) * len(block) + tail


def mutate_text(rng: Random, data: bytes) -> bytes:
    """Put odd numbers and texts among those of a text, or write it in another encoding."""
    text = data.decode("utf-8", "surrogateescape")
    numbers = [place for place, letter in enumerate(text) if letter.isdigit()]
    place = rng.choice(numbers) if numbers and rng.random() < 0.4 else rng.randrange(len(text) + 1)
    odd = str(rng.choice(NUMBERS if rng.random() < 0.4 else TEXTS))
    match rng.randrange(6):
        case 0:
            encoding = rng.choice(
                ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp037")
            )
            return text.encode(encoding, "replace")
        case 1:
            return data.replace(
                b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"\0", b"", b"\x0b", b"\x85"))
            )
        case 2:
            words = text.split(" ")
            words[rng.randrange(len(words))] = odd
            text = " ".join(words)
        case 3:
            lines = text.split("\n")
            lines[rng.randrange(len(lines))] = odd
            text = "\n".join(lines)
        case _:
            text = text[:place] + RAW.get(odd, odd) + text[place + 1 :]
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def mutate_json_file(rng: Random, data: bytes) -> bytes:
    """Change a value, a type or a key of a JSON document or of one of a file of JSON lines."""
    try:
        return write_json(rng, mutate_json(rng, json.loads(data)))
    except ValueError:
        lines = data.splitlines()
    row = rng.randrange(max(len(lines), 1))
    try:
        lines[row] = write_json(rng, mutate_json(rng, json.loads(lines[row])))
    except (ValueError, IndexError):
        return mutate_bytes(rng, data)
    return b"\n".join(lines)


def mutate_json(rng: Random, value: Any) -> Any:
    """Return a JSON value with one to three things changed in it."""
    top: list[Any] = [value]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = [(top, 0)]
        for holder, key in places:  # it grows
            inner = holder[key]
            items = (
                inner.items()
                if isinstance(inner, dict)
                else enumerate(inner)
                if isinstance(inner, list)
                else ()
            )
            places += [(inner, key) for key, _ in list(items)[:200]]
        holder, key = (
            rng.choice(places)
            if len(places) == 1 or rng.random() < 0.05
            else rng.choice(places[1:])
        )
        odd = rng.choice(rng.choice((SWAPS, NUMBERS, TEXTS)))
        if type(holder[key]) in (int, float) and rng.random() < 0.5:
            odd = rng.choice(NUMBERS)
        match rng.randrange(6):
            case 0 if isinstance(holder, dict):
                new = rng.choice((key.upper(), key + "_", "", str(rng.choice(TEXTS))))
                holder[new] = holder.pop(key)
            case 1 if holder is not top:
                del holder[key]
            case 2 if isinstance(holder, list) and holder is not top:
                holder.insert(key, odd if rng.random() < 0.5 else holder[key])
            case 3:
                holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
            case _:
                holder[key] = odd
    return top[0]


def write_json(rng: Random, value: Any) -> bytes:
    """Return the value as JSON, sometimes with letters as they are, halves of surrogate pairs among them."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


def _png(rng: Random, data: bytes) -> bytes:
    """Another size, depth or kind of colour, or a further chunk; with true checksums."""
    if rng.random() < 0.6:
        header = bytearray(data[16:29])
        if rng.random() < 0.7:
            size = rng.choice((0, 1, 65_535, 8000, 9400, 40_000, 2**31 - 1, 2**32 - 1))
            header[:8] = struct.pack(">II", size, rng.choice((size, 1, 30)))
        else:
            header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        return data[:12] + _chunk(b"IHDR", bytes(header)) + data[33:]
    kind = rng.choice(
        (
            b"iCCP",
            b"eXIf",
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"acTL",
            b"fcTL",
            b"tRNS",
            b"PLTE",
            b"gAMA",
            b"IDAT",
            b"pHYs",
        )
    )
    body = rng.choice(
        (
            b"",
            b"x",
            rng.randbytes(26),
            b"a\0\0" + zlib.compress(b"\0" * 50_000_000, 1),
            b"\0" * 200_000,
        )
    )
    return data[:33] + _chunk(kind, body) + data[33:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return (
        struct.pack(">I", len(body))[4 * (kind == b"IHDR") :]
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
    )


def _sizes(offset: int, form: str) -> Callable[[Random, bytes], bytes]:
    """A lie about two numbers at an offset."""

    def lie(rng: Random, data: bytes) -> bytes:
        most = 256 ** struct.calcsize(form[:2]) - 1
        values = [rng.choice((0, 1, 30, 9000, most // 2, most)) & most for _ in form[1:]]
        return data[:offset] + struct.pack(form, *values) + data[offset + struct.calcsize(form) :]

    return lie


def _jpeg(rng: Random, data: bytes) -> bytes:
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    if frame < 0 or rng.random() < 0.4:
        exif = (
            b"Exif\0\0"
            + rng.choice((b"II*\0", b"MM\0*", rng.randbytes(4)))
            + rng.randbytes(rng.choice((4, 60, 2000)))
        )
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    return _sizes(frame + 5, ">HH")(rng, data)


def _tiff(rng: Random, data: bytes) -> bytes:
    """Another value in one of its entries, or another offset of them."""
    end = "<" if data[:1] == b"I" else ">"
    (start,) = struct.unpack_from(end + "I", data, 4)
    if start + 2 > len(data) or rng.random() < 0.1:
        return _sizes(4, end + "I")(rng, data)
    place = start + 2 + 12 * rng.randrange(max(struct.unpack_from(end + "H", data, start)[0], 1))
    return (
        _sizes(place + rng.choice((4, 8)), end + "I")(rng, data)
        if rng.random() < 0.8
        else _sizes(place, end + "HH")(rng, data)
    )


def _tar(rng: Random, data: bytes) -> bytes:
    """Another size, kind or name of a member, or attributes before it; mostly with a true checksum."""
    headers = [
        place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"
    ]
    place = rng.choice(headers)
    header = bytearray(data[place : place + 512])
    match rng.randrange(4):
        case 0 | 1:
            sizes = (
                b"-0000000001\0",
                b"77777777777\0",
                b"0o17       \0",
                b"\x80" + b"\xff" * 11,
                b"\xff" * 12,
                b" " * 12,
                b"_1_000\0",
            )
            header[124:136] = rng.choice(
                (*sizes, b"%011o\0" % rng.choice((0, 1, 511, 513, 10_000)))
            ).ljust(12, b"\0")[:12]
        case 2:
            header[156:157] = rng.choice(
                (b"L", b"x", b"g", b"K", b"S", b"1", b"2", b"5", b"6", b"\0", b"\xff")
            )
        case _:
            name = rng.choice(
                (
                    b"\xff\xfe.jpg",
                    b"..//../x.jpg",
                    b"a" * 100,
                    b"",
                    b"\x1b[31m.jpg",
                    b"0000.txt",
                    "\u202e.jpg".encode(),
                )
            )
            header[:100] = name.ljust(100, b"\0")
    if rng.random() < 0.8:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    pax = b""
    if rng.random() < 0.3:
        lines = (
            b"13 size=-100\n",
            b"14 size=1e999\n",
            b"0 size=1\n",
            b"99 path=x.jpg\n",
            b"-5 a=b\n",
            b"x",
            b"20 size=99999999999\n",
        )
        body = rng.choice((*lines, b"17 path=\xff\xfe.jpg\n"))
        attributes = bytearray(b"pax".ljust(124, b"\0") + b"%011o\0" % len(body)).ljust(512, b"\0")
        attributes[148:157], attributes[257:265] = b" " * 8 + b"x", b"ustar\x0000"
        attributes[148:156] = b"%06o\0 " % sum(attributes)
        pax = bytes(attributes) + body.ljust(512, b"\0")
    return data[:place] + pax + bytes(header) + data[place + 512 :]


def _parquet(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return _sizes(len(data) - 8, "<I")(rng, data)
    (size,) = struct.unpack_from("<I", data, len(data) - 8)
    footer = bytearray(data[-8 - size : -8])
    for _ in range(rng.choice((1, 2, 5))):
        footer[rng.randrange(size)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return data[: -8 - size] + bytes(footer) + data[-8:]


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """Another length of the header, or another header; the tensors stay."""
    (size,) = struct.unpack_from("<Q", data)
    if rng.random() < 0.2:
        return _sizes(0, "<Q")(rng, data)
    header = write_json(rng, mutate_json(rng, json.loads(data[8 : 8 + size])))
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def _npz(rng: Random, data: bytes) -> bytes:
    """Another number, type or shape in an array, or an array less."""
    arrays = dict(np.load(io.BytesIO(data)))
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        return mutate_bytes(rng, data)  # a torch file is a zip file too
    name = rng.choice(list(arrays))
    array = arrays[name].copy()
    match rng.randrange(5):
        case 0 | 1 if array.size:
            limits = np.iinfo(array.dtype)
            array.flat[rng.randrange(array.size)] = rng.choice(
                (limits.min, -1 if limits.min else 3, 0, 1, 7, 100, 10**5 % limits.max, limits.max)
            )
        case 2:
            array = array.astype(rng.choice(("f4", "U5", "c8", "u1", "?", "M8[s]")))
        case 3:
            array = rng.choice(
                (
                    array[:-1],
                    array.ravel(),
                    array[None],
                    array[:0],
                    np.array(5),
                    np.repeat(array, 2, 0),
                )
            )
        case _:
            del arrays[name]
    if name in arrays:
        arrays[name] = array
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


LIES: dict[bytes, Callable[[Random, bytes], bytes]] = {
    b"\x89PNG": _png,
    b"\xff\xd8": _jpeg,
    b"GIF8": _sizes(6, "<HH"),
    b"BM": _sizes(18, "<II"),
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"P": mutate_text,  # PPM; Parquet is below
    b"PAR1": _parquet,
    b"RIFF": _sizes(24, "<HH"),
    b"ustar": _tar,
    b"PK": _npz,
}


def make_special(rng: Random, path: Path) -> str:
    """Put something else in the place of a file; return what."""
    path.unlink(missing_ok=True)
    kinds = [
        "pipe",
        "device",
        "folder",
        "socket",
        "dangling link",
        "link to itself",
        "empty",
        "no permission",
    ]
    match kind := rng.choice(kinds[: 8 if os.geteuid() else 7]):
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600) if hasattr(os, "mknod") else socket.socket(
                socket.AF_UNIX
            ).bind(str(path))
        case "dangling link":
            path.symlink_to("nowhere")
        case "link to itself":
            path.symlink_to(path.name)
        case _:
            path.write_bytes(b"" if kind == "empty" else b"x")
            path.chmod(0 if kind == "no permission" else 0o644)
    return kind


def odd_name(rng: Random, name: str) -> bytes:
    """Return another name for a file, of the same kind by its last letters."""
    ending = name[name.index(".") :] if "." in name else ""
    names = (
        b"\xff\xfe",
        b"\x1b[31m",
        "\u202eabc".encode(),
        "\u200b".encode(),
        b"a\nb",
        b"a" * (250 - len(ending)),
        b"{0..3}",
        b" ",
        b"a#b",
    )
    return rng.choice(names) + ending.encode()
