"""Damage of the files of a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

Damage = Callable[[Path], object]


def edit_state(**changes: object) -> Damage:
    def edit(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text()) | changes
        (folder / "state.json").write_text(json.dumps(state))

    return edit


def flip_a_bit(name: str) -> Damage:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return flip


def cut(name: str) -> Damage:
    """Cut a file short; the checkpoint is of an older version, which has no checksums."""

    def cut_file(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        if name != "state.json":
            edit_state(sha256={})(folder)

    return cut_file


def edit_tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    """Change tensors in a checkpoint of an older version, which has no checksums."""

    def edit(folder: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)
        edit_state(sha256={})(folder)

    return edit
