"""Tars of given members."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_member(tar: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    """Add a file to a tar; fields: of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def tar_of(members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of files by their names."""
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file,
        mode="w",
        format=form,
    ) as tar:
        for name, data in members.items():
            add_member(tar, name, data)
    return file.getvalue()


def write_tar_of(path: Path, members: Mapping[str, bytes]) -> Path:
    path.write_bytes(tar_of(members))
    return path
