"""Published weights for campaign.py: valid ones, ways to damage them, and what converts them."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from eve_vl.cli.main import dispatch as eve_command
from helpers.campaign_reader import Action, Files, Reader
from helpers.checkpoint_shapes import Shapes
from helpers.mutations import mutate
from helpers.odd_values import TEXTS

LEFT_OUT = object()
SHAPE = ("--num-heads", "2", "--num-experts", "4", "--num-deep-blocks", "1")
FLAGS = {
    "masked": SHAPE[:2],
    "vqa": (*SHAPE[:2], "--answers"),
    "vision": SHAPE,
}
"""Of `eve convert`, by the name of the weights."""
TYPES = (
    torch.int64,
    torch.bool,
    torch.float64,
    torch.bfloat16,
    torch.complex64,
    torch.uint8,
    torch.float8_e4m3fn,
)


def weight_readers(base: Path) -> dict[str, Reader]:
    """Return the readers of weights of runs that `make_base` has made, and of an image encoder."""
    texts = {
        "tokenizer.json": (base / "masked/tokenizer.json").read_bytes(),
        "answers.json": (base / "vqa/answers.json").read_bytes(),
    }
    readers = {}
    for name, flags in FLAGS.items():
        if name == "vision":
            tensors = image_encoder()
        else:
            tensors = torch.load(base / f"{name}.pth", weights_only=True)
        file = io.BytesIO()
        torch.save(tensors, file)
        weights = {
            "weights.pth": file.getvalue(),
            "weights.safetensors": save_safetensors(tensors),
        }
        readers[f"convert {name}"] = Reader(
            files=weights | texts,
            actions={"convert": convert_with(flags)},
            targets=tuple(weights),
            choose=choose_weights,
            damage=damage_weights,
            weight=1.5,
        )
    return readers


def image_encoder() -> dict[str, Tensor]:
    """Return the weights of a ViT of two blocks, named as timm names them."""
    width = 16
    shapes = Shapes()
    shapes["cls_token"] = (1, 1, width)
    shapes["pos_embed"] = (1, 17, width)
    shapes["patch_embed.proj.weight"] = (width, 3, 4, 4)
    shapes["patch_embed.proj.bias"] = (width,)
    shapes.norm("norm", width)
    for block in ("blocks.0", "blocks.1"):
        shapes.norm(f"{block}.norm1", width)
        shapes.norm(f"{block}.norm2", width)
        shapes.linear(f"{block}.attn.qkv", 3 * width, width)
        shapes.linear(f"{block}.attn.proj", width, width)
        shapes.linear(f"{block}.mlp.fc1", 64, width)
        shapes.linear(f"{block}.mlp.fc2", width, 64)
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def choose_weights(rng: Random, files: Files) -> Files:
    """Lay out weights as one of the two kinds of files."""
    left_out, name = rng.sample(("weights.pth", "weights.safetensors"), 2)
    chosen = {name: files[name]} | files
    del chosen[left_out]
    return chosen


def convert_with(flags: Sequence[str]) -> Action:
    """Return what `eve convert` does with the weights in a folder."""

    def convert(folder: Path) -> None:
        (source,) = folder.glob("weights.*")
        command = ["convert", str(source), str(folder.parent / "new")]
        command += ["--tokenizer", str(folder / "tokenizer.json"), *flags]
        if "--answers" in flags:
            command.append(str(folder / "answers.json"))
        eve_command(command)

    return convert


# Damage


def damage_weights(rng: Random, name: str, data: bytes) -> bytes:
    """Change tensors, or the bytes of the file."""
    if rng.random() < 0.25:
        return mutate(rng, name, data)
    if name.endswith("safetensors"):
        return write_safetensors(mutate_tensors(rng, load_safetensors(data)))
    tensors = torch.load(io.BytesIO(data), weights_only=True)
    return write_torch(rng, mutate_tensors(rng, tensors))


def mutate_tensors(rng: Random, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Change names, shapes, types or values of some tensors."""
    changed: dict[str, Any] = dict(tensors)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(list(changed) or ["x"])
        tensor = changed.pop(name, torch.zeros(1))
        # it may be an odd one already
        with contextlib.suppress(RuntimeError, LookupError, AttributeError, TypeError):
            new_name, value = change_tensor(rng, name, tensor)
            if value is not LEFT_OUT:
                changed[new_name] = value
    return changed


def change_tensor(rng: Random, name: str, tensor: Tensor) -> tuple[str, Any]:
    """Return another name or another value."""
    flat = tensor.flatten()
    match rng.randrange(6):
        case 0:
            return odd_tensor_name(rng, name), tensor
        case 1:
            return name, LEFT_OUT
        case 2:
            twice = torch.cat([flat, flat])
            shapes = (
                tensor[None],
                flat,
                tensor[..., :0],
                tensor[..., :1],
                twice,
                flat[0],
            )
            return name, rng.choice(shapes)
        case 3:
            return name, tensor.to(rng.choice(TYPES))
        case 4:
            nan = tensor * float("nan")
            values = (nan, tensor * 1e38, flat.expand(2, -1), tensor.mT)
            return name, rng.choice(values)
    return name, rng.choice(odd_tensors(tensor))


def odd_tensor_name(rng: Random, name: str) -> str:
    numbers = [part for part in name.split(".") if part.isdigit()] or ["0"]
    odd_number = rng.choice((99_999_999, -1, 7, "x", "0" * 5000))
    other_block = name.replace(f".{numbers[0]}.", f".{odd_number}.")
    odd_text = rng.choice(TEXTS[:12])
    return rng.choice(
        (
            other_block,
            f"{name}_",
            "",
            odd_text,
            name.upper(),
            f"module.{name}",
        )
    )


def odd_tensors(tensor: Tensor) -> list[Any]:
    """Return what a file of weights may hold and no model expects."""
    return [
        torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        tensor.to_sparse(),
        torch.empty(2, device="meta"),
        torch.nested.nested_tensor([torch.ones(2)]),
        torch.nn.Parameter(tensor.float()),
        None,
        3,
        "text",
        [1],
        {"a": tensor},
    ]


def write_safetensors(values: Mapping[str, Any]) -> bytes:
    """Return a file of those values that it can hold."""
    tensors = {}
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            continue
        if not (value.is_quantized or value.is_meta or value.is_nested):
            valid_name = name.encode("utf-8", "replace").decode()
            tensors[valid_name] = value.detach().contiguous().clone()
    return save_safetensors(tensors)


def write_torch(rng: Random, values: Mapping[str, Any]) -> bytes:
    """Return a file, sometimes nested as training scripts do."""
    nested = {"model": values, "epoch": 3}
    forms = (
        values,
        values,
        nested,
        {"state_dict": nested},
        {"module": {"module": values}},
    )
    file = io.BytesIO()
    torch.save(rng.choice(forms), file)
    return file.getvalue()
