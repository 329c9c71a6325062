"""Runs and foreign weights for campaign.py: valid ones, ways to damage them, entry points."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from eve_vl.cli.main import dispatch as eve_command
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.eve import Eve
from eve_vl.interop.eve_checkpoints import export_published
from eve_vl.report.page import write_report
from eve_vl.run.flops import inspect_run
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.training import train
from eve_vl.train.checkpoint_files import checksum
from eve_vl.train.checkpoint_folders import CHECKPOINTS, checkpoint_folders
from helpers.campaign_actions import ASKED
from helpers.campaign_images import big_images, encode
from helpers.campaign_reader import Action, Files, Reader, files_in, lines
from helpers.mutations import mutate
from helpers.odd_values import TEXTS
from helpers.twins import CAPTIONS, tiny_config

LEFT_OUT = object()


def make_base(base: Path) -> None:
    """Make what takes long: images near the limit, and runs, one of pre-training, one of
    fine-tuning with best weights."""
    torch.set_num_threads(1)
    for name, data in {f"data/{n}.png": encode("PNG", size=(20, 20 + n)) for n in range(8)}.items():
        write(base / name, data)
    write(base / "data/7.png", b"no image")
    rows = [
        {
            "image": f"{n}.png",
            "caption": CAPTIONS[n % 4],
            "question": "what is it",
            "answer": ("cat", "dog")[n % 2],
        }
        for n in range(8)
    ]
    write(base / "data/rows.jsonl", lines(rows))
    write(base / "data/val.jsonl", lines(rows[:7]))
    often = {
        "steps": 3,
        "batch_size": 4,
        "save_every": 1,
        "val_every": 2,
        "log_every": 1,
        "keep_checkpoints": 2,
    }
    sources = {
        "train": (str(base / "data/rows.jsonl"),),
        "val": (str(base / "data/val.jsonl"),),
        "max_invalid_fraction": 0.5,
    }
    config = tiny_config(data={"crop_scale": (1, 1), "flip": False, **sources}, train=often)
    train(replace(config, out=base / "masked"))
    train(replace(config, task=ASKED, init=base / "masked", out=base / "vqa"))
    for name in ("masked", "vqa"):
        write_report(base / name)
        export_published(base / name, base / f"{name}.pth")
    for name, data in big_images().items():
        write(base / "big" / name, data)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def run_actions(base: Path, name: str) -> dict[str, Action]:
    """Return all that a run folder may be given to."""
    config, tuned, image = read_config(base / name), read_config(base / "vqa"), base / "data/0.png"
    start = replace(tuned, train=replace(tuned.train, steps=1))

    def ask(folder: Path) -> None:
        eve = Eve.load(folder)
        eve.encode_image(image)
        eve.answer(image, "what is it") if name == "vqa" else eve.fill_mask(image, "a [MASK]")

    def resume(folder: Path) -> None:
        train(replace(config, out=folder))

    def go_on(folder: Path) -> None:
        for path in checkpoint_folders(folder)[-1:]:
            path.rename(folder.parent / "removed")
        train(replace(config, out=folder))

    return {
        "Eve.load": ask,
        "load_run": load_run,
        "resume": resume,
        "go on": go_on,
        "report": write_report,
        "init": lambda folder: train(replace(start, init=folder, out=folder.parent / "new")),
        "scratch": lambda folder: train(
            replace(start, init=folder, out=folder.parent / "new", scratch=True)
        ),
        "inspect": inspect_run,
        "evaluate": lambda folder: evaluated(load_run(folder), 4).numbers,
        "export": lambda folder: eve_command(
            ["convert", str(folder), str(folder.parent / "out.pth")]
        ),
    }


def mend_checksums(rng: Random, folder: Path) -> None:
    """Mostly let the checksums be those of the damaged files, or be absent as in older versions, so
    that more is read."""
    for state in (*folder.glob(f"{CHECKPOINTS}/*/state.json"), folder / "best/state.json"):
        if rng.random() < 0.3 or not state.is_file() or state.is_symlink():
            continue
        try:
            values = json.loads(state.read_bytes())
            sums = {
                name: checksum(state.parent / name)
                for name in values.pop("sha256")
                if (state.parent / name).is_file()
            }
            values |= {"sha256": sums} if rng.random() < 0.7 else {}
            state.write_text(json.dumps(values))
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, OSError):
            continue


def run_readers(base: Path) -> dict[str, Reader]:
    """Return the readers of run folders and of foreign weights, which `make_base` has made."""
    readers = {}
    for name in ("masked", "vqa"):
        files = {
            name: data
            for name, data in files_in(base / name).items()
            if not name.startswith(("tensorboard", "report", "."))
        }
        newest = max(name for name in files if name.startswith(CHECKPOINTS)).split("/")[1]
        texts = [name for name in files if not name.endswith("safetensors")]
        targets = [
            *files,
            *texts,
            *(name for name in files if newest in name),
            *(name for name in files if name.startswith("best/")),
        ]
        actions = run_actions(base, name)
        readers[f"run {name}"] = Reader(
            files=files,
            actions=actions,
            num_actions=2,
            targets=targets,
            afterwards=mend_checksums,
            weight=4,
        )
    tokenizer, answers = (
        (base / "masked/tokenizer.json").read_bytes(),
        (base / "vqa/answers.json").read_bytes(),
    )
    texts = {"tokenizer.json": tokenizer, "answers.json": answers}
    shape = ("--num-heads", "2", "--num-experts", "4", "--num-deep-blocks", "1")
    for name, flags in [
        ("masked", shape[:2]),
        ("vqa", (*shape[:2], "--answers")),
        ("vision", shape),
    ]:
        tensors = (
            image_encoder()
            if name == "vision"
            else torch.load(base / f"{name}.pth", weights_only=True)
        )
        torch.save(tensors, file := io.BytesIO())
        weights = {"weights.pth": file.getvalue(), "weights.safetensors": save_safetensors(tensors)}
        readers[f"convert {name}"] = Reader(
            files=weights | texts,
            actions={"convert": convert_with(flags)},
            targets=tuple(weights),
            choose=choose_weights,
            damage=damage_weights,
            weight=1.5,
        )
    return readers


def choose_weights(rng: Random, files: Files) -> Files:
    """Lay out weights as one of the two kinds of files."""
    left_out, name = rng.sample(("weights.pth", "weights.safetensors"), 2)
    return {name: files[name]} | {key: data for key, data in files.items() if key != left_out}


def damage_weights(rng: Random, name: str, data: bytes) -> bytes:
    """Change tensors, or the bytes of the file."""
    if rng.random() < 0.25:
        return mutate(rng, name, data)
    tensors = (
        load_safetensors(data)
        if name.endswith("safetensors")
        else torch.load(io.BytesIO(data), weights_only=True)
    )
    return write_tensors(rng, name, mutate_tensors(rng, tensors))


def convert_with(flags: Sequence[str]) -> Action:
    """What `eve convert` does with the weights in a folder."""

    def convert(folder: Path) -> None:
        (source,) = folder.glob("weights.*")
        answers = (str(folder / "answers.json"),) if "--answers" in flags else ()
        eve_command(
            [
                "convert",
                str(source),
                str(folder.parent / "new"),
                "--tokenizer",
                str(folder / "tokenizer.json"),
                *flags,
                *answers,
            ]
        )

    return convert


def image_encoder() -> dict[str, torch.Tensor]:
    """Return the weights of a ViT of two blocks, named as timm names them."""
    width, rng = 16, torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 17, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
    }
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    for block in ("blocks.0", "blocks.1"):
        shapes |= {
            f"{block}.norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")
        }
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.qkv.bias": (3 * width,),
        }
        shapes |= {f"{block}.attn.proj.weight": (width, width), f"{block}.attn.proj.bias": (width,)}
        shapes |= {f"{block}.mlp.fc1.weight": (64, width), f"{block}.mlp.fc1.bias": (64,)}
        shapes |= {f"{block}.mlp.fc2.weight": (width, 64), f"{block}.mlp.fc2.bias": (width,)}
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def mutate_tensors(rng: Random, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Change names, shapes, types or values of some tensors."""
    changed: dict[str, Any] = dict(tensors)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(list(changed) or ["x"])
        tensor = changed.pop(name, torch.zeros(1))
        with contextlib.suppress(
            RuntimeError, LookupError, AttributeError, TypeError
        ):  # one that is odd already
            other, value = change_tensor(rng, name, tensor)
            changed |= {} if value is LEFT_OUT else {other: value}
    return changed


def change_tensor(rng: Random, name: str, tensor: Tensor) -> tuple[str, Any]:
    """Return another name or another value."""
    match rng.randrange(6):
        case 0:
            numbers = [part for part in name.split(".") if part.isdigit()] or ["0"]
            new = name.replace(
                f".{numbers[0]}.", f".{rng.choice((99_999_999, -1, 7, 'x', '0' * 5000))}."
            )
            return rng.choice(
                (new, f"{name}_", "", rng.choice(TEXTS[:12]), name.upper(), f"module.{name}")
            ), tensor
        case 1:
            return name, LEFT_OUT
        case 2:
            shapes = (
                tensor[None],
                tensor.flatten(),
                tensor[..., :0],
                tensor[..., :1],
                torch.cat([tensor.flatten()] * 2),
            )
            return name, rng.choice((*shapes, tensor.flatten()[0]))
        case 3:
            types = (
                torch.int64,
                torch.bool,
                torch.float64,
                torch.bfloat16,
                torch.complex64,
                torch.uint8,
                torch.float8_e4m3fn,
            )
            return name, tensor.to(rng.choice(types))
        case 4:
            return name, rng.choice(
                (tensor * float("nan"), tensor * 1e38, tensor.flatten().expand(2, -1), tensor.mT)
            )
    quantized = torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    odd = (
        quantized,
        tensor.to_sparse(),
        torch.empty(2, device="meta"),
        torch.nested.nested_tensor([torch.ones(2)]),
    )
    return name, rng.choice(
        (*odd, torch.nn.Parameter(tensor.float()), None, 3, "text", [1], {"a": tensor})
    )


def write_tensors(rng: Random, name: str, tensors: Mapping[str, Any]) -> bytes:
    """Return a .safetensors or torch file of what `mutate_tensors` gave, sometimes nested as
    training scripts do."""
    if name.endswith(".safetensors"):
        plain = {
            key: value
            for key, value in tensors.items()
            if isinstance(value, Tensor) and value.layout == torch.strided
        }
        dense = {
            k: v.detach().contiguous().clone()
            for k, v in plain.items()
            if not (v.is_quantized or v.is_meta or v.is_nested)
        }
        return save_safetensors(
            {key.encode("utf-8", "replace").decode(): value for key, value in dense.items()}
        )
    file = io.BytesIO()
    nested = {"model": tensors, "epoch": 3}
    torch.save(
        rng.choice(
            (tensors, tensors, nested, {"state_dict": nested}, {"module": {"module": tensors}})
        ),
        file,
    )
    return file.getvalue()
