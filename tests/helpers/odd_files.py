"""Special files and odd names of files, for the fault campaigns."""

import os
import stat
from pathlib import Path
from random import Random

SPECIAL_KINDS = [
    "pipe",
    "device",
    "folder",
    "socket",
    "dangling link",
    "link to itself",
    "empty",
    "no permission",
]


def make_special(rng: Random, path: Path) -> str:
    """Put something else in the place of a file; return its kind."""
    path.unlink(missing_ok=True)
    # root may read everything
    kinds = SPECIAL_KINDS if os.geteuid() else SPECIAL_KINDS[:-1]
    kind = rng.choice(kinds)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "dangling link":
            path.symlink_to("nowhere")
        case "link to itself":
            path.symlink_to(path.name)
        case "empty":
            path.write_bytes(b"")
        case _:
            path.write_bytes(b"x")
            path.chmod(0)
    return kind


def odd_name(rng: Random, name: str) -> bytes:
    """Return another name for a file, of the same kind by its last letters."""
    ending = name[name.index(".") :] if "." in name else ""
    long_name = b"a" * (250 - len(ending))
    names = [
        b"\xff\xfe",
        b"\x1b[31m",
        "\u202eabc".encode(),
        "\u200b".encode(),
        b"a\nb",
    ]
    names += [long_name, b"{0..3}", b" ", b"a#b"]
    return rng.choice(names) + ending.encode()
