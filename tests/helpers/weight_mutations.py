"""Ways to change one thing in a published checkpoint: in its weights, its settings or a file.

A mutation changes files in place and returns what it did; None if the files have no such thing.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.json_mutations import places_in
from helpers.odd_values import RAW, SWAPS

Mutation = Callable[[Random, Path], str | None]
TensorChange = Callable[[Random, dict[str, Tensor], str], str]
DTYPES = (
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
)
FACTORS = (1e38, 1e30, 1e10, 100.0, -1.0, 0.0)
TYPICAL: list[Any] = [*SWAPS, 0, 1, 2, -1, 0.0, 0.5, 1e30, 1e-30, "gelu", "three", [0.5] * 3]
"""JSON values that a setting may get."""


# Weights


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder's one file of weights, read without the code under test."""
    path = weights_file(folder)
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def weights_file(folder: Path) -> Path:
    """Return a folder's one file of weights."""
    (path,) = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    return path


def missing(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    del tensors[name]
    return "missing"


def missing_layer(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    """Delete all tensors below a name, such as those of a block."""
    prefix = name[
        : rng.choice([place for place, letter in enumerate(name) if letter == "."] or [0])
    ]
    for other in [other for other in tensors if other.startswith(prefix)]:
        del tensors[other]
    return f"missing below {prefix}"


def extra(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    prefixes = ("extra.", "module.", "vision_model.", "")
    suffix = rng.choice(("", ".weight", ".bias", "_"))
    new = rng.choice(prefixes) + name + suffix
    tensors[new] = tensors[name] * 2
    return f"twice as {new}"


def renamed(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    new = rng.choice(
        (
            name.upper(),
            f"{name}_",
            f"x.{name}",
            name.replace(".0.", ".7."),
        )
    )
    other = rng.choice(sorted(tensors))
    if not name.endswith("k_proj.bias"):  # no result depends on it, but on the other tensor
        new = rng.choice((new, other))
    tensors[new] = tensors.pop(name)
    return f"renamed {new}"


def reshaped(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    tensor = tensors[name]
    flat = tensor.flatten()
    shapes = [
        flat,
        tensor[None],
        tensor[..., None],
        flat.view(1, -1, 1),
        torch.cat([flat, flat]),
    ]
    if tensor.ndim:
        shapes += [tensor[..., :1], tensor[:-1]]
    if tensor.ndim > 1:
        shapes += [
            tensor.transpose(0, 1),
            tensor.movedim(1, -1),
            tensor.mT,
        ]
        shapes.append(tensor.reshape(tensor.shape[1], tensor.shape[0], *tensor.shape[2:]))
    tensors[name] = rng.choice(shapes).contiguous()
    return f"shape {tuple(tensor.shape)} → {tuple(tensors[name].shape)}"


def retyped(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    dtype = rng.choice(DTYPES)
    tensors[name] = tensors[name].to(dtype)
    return str(dtype)


def broken_number(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    value = rng.choice(
        (
            float("nan"),
            float("inf"),
            float("-inf"),
        )
    )
    tensor = tensors[name].float().flatten().clone()
    tensor[rng.randrange(len(tensor)) :][:1] = value
    tensors[name] = tensor.view(tensors[name].shape)
    return str(value)


def scaled(rng: Random, tensors: dict[str, Tensor], name: str) -> str:
    factor = rng.choice(FACTORS)
    tensors[name] = tensors[name] * factor
    return f"× {factor:g}"


TENSOR_CHANGES: list[TensorChange] = [
    missing,
    missing_layer,
    extra,
    renamed,
    reshaped,
    retyped,
    broken_number,
    scaled,
]


def change_tensor(rng: Random, folder: Path, change: TensorChange) -> str:
    """Change one tensor and write the file."""
    path = weights_file(folder)
    tensors = read_weights(folder)
    name = rng.choice(sorted(tensors))
    if change is missing_layer and not list(folder.glob("*config.json")):
        change = missing  # nothing says how many layers there were
    done = change(rng, tensors, name)
    if path.suffix == ".safetensors":
        separate = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(separate, path, {"format": "pt"})
    else:
        torch.save(tensors, path)
    return f"{name}: {done}"


# Settings


def change_setting(rng: Random, folder: Path, *files: str) -> str | None:
    """Change, delete or rename one value of one of some JSON files."""
    paths = [folder / name for name in files if (folder / name).is_file()]
    if not paths:
        return None
    path = rng.choice(paths)
    content = json.loads(path.read_text())
    holder, key = rng.choice(settings_in(content))
    old = holder[key]
    match rng.randrange(6):
        case 0:
            del holder[key]
            done = "deleted"
        case 1 if isinstance(old, bool):
            holder[key] = not old
            done = str(holder[key])
        case 1 | 2 if isinstance(old, int | float):
            holder[key] = rng.choice(
                (
                    old + 1,
                    old - 1,
                    old * 2,
                    old / 2,
                    -old,
                    float(old),
                )
            )
            done = str(holder[key])
        case _:
            holder[key] = rng.choice(TYPICAL)
            done = repr(holder[key])[:40]
    text = json.dumps(content)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    path.write_text(text)
    return f"{path.name} {key} ({str(old)[:30]}): {done}"


def settings_in(content: Any) -> list[tuple[Any, Any]]:
    """Return the places of all values but a vocabulary's and its merges."""
    places = places_in([content])[1:]
    few = []
    for holder, key in places:
        is_large = len(holder) > 100 or (isinstance(holder[key], str) and key == "content")
        if not is_large and holder is not content.get("merges"):
            few.append((holder, key))
    return few


def change_config(rng: Random, folder: Path) -> str | None:
    return change_setting(rng, folder, "config.json", "open_clip_config.json")


def change_images(rng: Random, folder: Path) -> str | None:
    return change_setting(rng, folder, "preprocessor_config.json", "processor_config.json")


def change_tokenizer(rng: Random, folder: Path) -> str | None:
    """Change the tokenizer's settings, or leave out some of its tokens."""
    if rng.random() < 0.6:
        return change_setting(rng, folder, "tokenizer.json", "tokenizer_config.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    tokens = rng.sample(sorted(vocab), rng.choice((1, 10)))
    for token in tokens:
        del vocab[token]
    path.write_text(json.dumps(content))
    return f"tokenizer.json without {tokens[0]!r} and {len(tokens) - 1} more"


def cut_file(rng: Random, folder: Path) -> str:
    """Cut, empty or delete a file."""
    path = rng.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    size = rng.choice((0, 1, len(data) // 2, len(data) - 1, rng.randrange(len(data))))
    if rng.random() < 0.2:
        path.unlink()
        return f"{path.name} deleted"
    path.write_bytes(data[:size])
    return f"{path.name} cut to {size} of {len(data)} bytes"


OTHER_MUTATIONS: list[Mutation] = [change_config, change_images, change_tokenizer]


def mutate(rng: Random, folder: Path) -> str:
    """Change one thing of a checkpoint's files; return what."""
    while True:
        kind = rng.randrange(20)
        if kind == 0:
            return cut_file(rng, folder)
        if kind < 10:
            return change_tensor(rng, folder, rng.choice(TENSOR_CHANGES))
        done = rng.choice(OTHER_MUTATIONS)(rng, folder)
        if done is not None:
            return done
