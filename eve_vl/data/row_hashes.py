"""Hashes that identify rows and their images."""

import dataclasses
import hashlib

from eve_vl.data.image_refs import ImageBytes, ImageFile, ImageRef, ImageSpan
from eve_vl.data.records import Record


def hash_of(data: bytes) -> int:
    """Return a signed 64-bit hash of some bytes."""
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def image_key(image: ImageRef, where: str) -> int:
    """Return a 64-bit hash that identifies an image without decoding it.

    A generated image is identified by its row, `where`.
    """
    match image:
        case ImageFile(path=path):
            name = str(path)
        case ImageSpan(path=path, offset=offset):
            name = f"{path}:{offset}"
        case ImageBytes(data=data):
            return hash_of(data)
        case _:
            name = where
    return hash_of(name.encode(errors="surrogatepass"))


def row_name(row: Record) -> str:
    """Return a row's unique name: its place, and a hash of its content.

    Files may share a name.
    """
    values = []
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        values.append(image_key(value, row.where) if isinstance(value, ImageRef) else value)
    return f"{row.where} {hash_of(repr(values).encode()):x}"


def row_keys(row: Record) -> tuple[int, ...]:
    """Return 64-bit hashes of a row's images or, without images, its texts.

    Training and validation share none.
    """
    if row.images:
        return tuple(image_key(image, row.where) for image in row.images)
    return tuple(hash_of(text.encode()) for text in row.texts)
