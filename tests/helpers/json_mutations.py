"""Ways to damage JSON, sampled from one `random.Random`."""

import json
import struct
from random import Random
from typing import Any

from helpers.byte_mutations import mutate_bytes, numbers_at
from helpers.odd_values import NUMBERS, RAW, SWAPS, TEXTS

Place = tuple[Any, Any]
"""A list or an object, and the index or key of a value in it."""


def mutate_json_file(rng: Random, data: bytes) -> bytes:
    """Change a value, a type or a key of a JSON document or of a JSON line."""
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
    top = [value]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = places_in(top)
        if len(places) > 1 and rng.random() >= 0.05:
            places = places[1:]
        holder, key = rng.choice(places)
        change_value(rng, holder, key, is_top=holder is top)
    return top[0]


def places_in(top: list[Any]) -> list[Place]:
    """Return the places of a value and of all values within it, at most 200 of each."""
    places: list[Place] = [(top, 0)]
    for holder, key in places:  # it grows
        inner = holder[key]
        keys = []
        if isinstance(inner, dict):
            keys = list(inner)
        elif isinstance(inner, list):
            keys = list(range(len(inner)))
        places += [(inner, inner_key) for inner_key in keys[:200]]
    return places


def change_value(
    rng: Random,
    holder: Any,
    key: Any,
    *,
    is_top: bool,
) -> None:
    """Rename, delete, insert, nest or replace a value."""
    odd = rng.choice(rng.choice((SWAPS, NUMBERS, TEXTS)))
    if type(holder[key]) in (int, float) and rng.random() < 0.5:
        odd = rng.choice(NUMBERS)
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            text = str(rng.choice(TEXTS))
            new_key = rng.choice((key.upper(), key + "_", "", text))
            holder[new_key] = holder.pop(key)
        case 1 if not is_top:
            del holder[key]
        case 2 if isinstance(holder, list) and not is_top:
            holder.insert(key, odd if rng.random() < 0.5 else holder[key])
        case 3:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
        case _:
            holder[key] = odd


def write_json(rng: Random, value: Any) -> bytes:
    """Return the value as JSON, sometimes with letters and halves of surrogate pairs as they
    are."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """Write another length of the JSON header, or another header; the tensors stay."""
    (size,) = struct.unpack_from("<Q", data)
    if rng.random() < 0.2:
        return numbers_at(0, "<Q")(rng, data)
    header = write_json(rng, mutate_json(rng, json.loads(data[8 : 8 + size])))
    return struct.pack("<Q", len(header)) + header + data[8 + size :]
