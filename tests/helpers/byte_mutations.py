"""Ways to damage bytes and texts, sampled from one `random.Random`."""

import struct
from collections.abc import Callable
from random import Random

from helpers.odd_values import NUMBERS, RAW, TEXTS

Mutation = Callable[[Random, bytes], bytes]


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """Flip bits, cut, insert, swap, repeat or blank blocks."""
    start = rng.randrange(len(data) + 1)
    size = rng.choice((1, 4, 64, 512, 5000))
    head = data[:start]
    block = data[start : start + size]
    tail = data[start + size :]
    match rng.randrange(8):
        case 0 | 1:
            return flip_bits(rng, data)
        case 2:
            return head
        case 3:
            noise = rng.randbytes(size)
            zeros = b"\0" * size
            ones = b"\xff" * size
            inserted = rng.choice((noise, zeros, ones, b"\n", b'"', b"{", b","))
            return head + inserted + block + tail
        case 4:
            return head + tail
        case 5:
            return head + block * rng.choice((2, 3, 50)) + tail
        case 6:
            place = rng.randrange(len(tail) + 1)
            return head + tail[:place] + block + tail[place:]
        case _:
            return head + rng.choice((b"\0", b"\xff")) * len(block) + tail


def flip_bits(rng: Random, data: bytes) -> bytes:
    """Flip one to thirty bits."""
    if not data:
        return data
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30))):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def mutate_text(rng: Random, data: bytes) -> bytes:
    """Put odd numbers and texts among those of a text, or write it in another encoding."""
    text = data.decode("utf-8", "surrogateescape")
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    at_digit = digits and rng.random() < 0.4
    place = rng.choice(digits) if at_digit else rng.randrange(len(text) + 1)
    values = NUMBERS if rng.random() < 0.4 else TEXTS
    odd = str(rng.choice(values))
    match rng.randrange(6):
        case 0:
            encodings = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp037")
            return text.encode(rng.choice(encodings), "replace")
        case 1:
            line_ends = (b"\r\n", b"\r", b"\n\n", b"\0", b"", b"\x0b", b"\x85")
            return data.replace(b"\n", rng.choice(line_ends))
        case 2:
            text = replace_part(rng, text, " ", odd)
        case 3:
            text = replace_part(rng, text, "\n", odd)
        case _:
            text = text[:place] + RAW.get(odd, odd) + text[place + 1 :]
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def replace_part(
    rng: Random,
    text: str,
    separator: str,
    odd: str,
) -> str:
    """Replace one of the words or lines of a text."""
    parts = text.split(separator)
    parts[rng.randrange(len(parts))] = odd
    return separator.join(parts)


def numbers_at(offset: int, form: str) -> Mutation:
    """Return a mutation that replaces the numbers at an offset. form: as for struct."""

    def mutate_numbers(rng: Random, data: bytes) -> bytes:
        most = 256 ** struct.calcsize(form[:2]) - 1
        sizes = (0, 1, 30, 9000, most // 2, most)
        values = [rng.choice(sizes) & most for _ in form[1:]]
        end = offset + struct.calcsize(form)
        return data[:offset] + struct.pack(form, *values) + data[end:]

    return mutate_numbers
