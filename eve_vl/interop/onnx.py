"""Export of runs as ONNX files, one per graph of the task.

They serve programs without torch. Each file is traced from the code of evaluation and `Eve`,
experts from a traceable twin. An export succeeds only if onnxruntime gives torch's numbers, at
other sizes than the traced one.

Letters: B batch, T text tokens, H height, W width.
"""

import importlib.util
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eve_vl.interop.traceable_moe import traceable
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.run.writing import check_new
from eve_vl.tasks.heads import heads_of
from eve_vl.tasks.task import Task, label_files
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import atomic_folder
from eve_vl.utils.frozen import Frozen

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # largest difference from torch that passes
TRACED_BATCH = 3
LONGEST = 1_000_000  # tokens; cut to the run's longest text
CHECKED_SIZES = ((1, 2), (2, 5), (5, 9), (8, LONGEST))
"""Batch sizes and text lengths at which torch and onnxruntime are compared."""
RESIZING = {
    "squash": "the whole image resized to a square",
    "crop": "the middle of an image whose shorter side is resized",
}


class Exported(Frozen):
    """A written file and its comparison with torch."""

    name: str
    output_shape: tuple[str | int, ...]
    bytes: int
    largest_difference: float
    """Largest difference of an output value at any checked size."""

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:.1f} MB"
        return (
            f"{self.name}.onnx: {size}, largest difference from torch {self.largest_difference:.1e}"
        )


class Part(nn.Module):
    """A graph as a module: tensors in, one tensor out."""

    def __init__(self, task: Task[Any], name: str):
        super().__init__()
        self.task = task
        self.graph = heads_of(task).graphs()[name]
        self.inputs = self.graph.inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        """Compute the graph.

        pixels: uint8 (B, 3, H, W). ids: int64 (B, T). is_padding: bool (B, T).
        """
        return self.graph.compute(*tensors)


def export_run(path: Path, folder: Path, parts: Sequence[str] = ()) -> list[Exported]:
    """Write a run's ONNX files, export.json and the tokenizer into a new folder.

    parts: names of the task's graphs; empty: all. Raises UserError and writes nothing if packages
    are missing, the folder is in use, the run has no such graph, its results are random, or
    onnxruntime gives other numbers.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs {', '.join(missing)}: pip install 'eve-vl[onnx]'")
    check_new(folder)
    run = load_run(path, torch.device("cpu"))
    graphs = heads_of(run.task).graphs()
    unknown = [name for name in parts if name not in graphs]
    if unknown:
        task = run.config.task.name
        raise UserError(
            f"{path}: task {task} has no part {nearest(unknown[0], graphs)} (parts: "
            f"{', '.join(graphs)})"
        )
    if run.task.encoder.results_depend_on_batch:
        reason = (
            "samples second experts and drops tokens over capacity, "
            "so no file gives the same numbers"
        )
        fix = "export a run with routing dropless or reference-dropless"
        raise UserError(f"{path}: model.routing is reference, which {reason}; {fix}")
    with atomic_folder(folder.absolute()) as temporary, torch.no_grad():  # "." has no name
        exported = [_export(run, name, temporary) for name in parts or graphs]
        for name, text in _texts(run, exported).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return exported


def example(
    run: LoadedRun, inputs: Sequence[str], batch: int, length: int, *, padded: bool = True
) -> tuple[Tensor, ...]:
    """Return fixed random inputs.

    padded: texts of all lengths from 1 to T, else all of T tokens.
    """
    sizes = run.config.input
    length = min(length, sizes.max_text_tokens)
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    lengths_B1 = torch.full((batch, 1), length)
    if padded:
        lengths_B1 = torch.arange(batch)[:, None] % length + 1
    ids_BT = torch.randint(run.tokenizer.vocab_size, (batch, length), generator=generator)
    is_padding_BT = torch.arange(length) >= lengths_B1
    texts = {
        "ids": ids_BT,
        "is_padding": is_padding_BT,
        "right_ids": ids_BT.flip(0),
        "right_is_padding": is_padding_BT.flip(0),
    }
    shape = (batch, 3, sizes.image_size, sizes.image_size)
    pixels = {
        name: torch.randint(256, shape, dtype=torch.uint8, generator=generator) for name in inputs
    }
    return tuple(texts.get(name, pixels[name]) for name in inputs)


def _export(run: LoadedRun, name: str, folder: Path) -> Exported:
    """Write one file and compare it with torch. Raises UserError for other numbers."""
    part = Part(run.task, name).eval()
    path = folder / f"{name}.onnx"
    twin = Part(traceable(run.task), name).eval()
    _trace(twin, example(run, part.inputs, TRACED_BATCH, LONGEST), path)
    onnx = opened(path, part.inputs)
    largest_difference = 0.0
    output_shape = ()
    for (batch, length), padded in itertools.product(CHECKED_SIZES, (False, True)):
        inputs = example(run, part.inputs, batch, length, padded=padded)
        expected = part(*inputs)
        output = torch.from_numpy(onnx(*inputs))
        assert output.shape == expected.shape
        difference = float((output - expected).abs().max())
        if not difference <= TOLERANCE:  # NaN fails too
            problem = (
                f"differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}, "
                f"in a batch of {batch}"
            )
            raise UserError(f"{path.name}: {problem}; nothing was written")
        largest_difference = max(largest_difference, difference)
        output_shape = ("batch", *output.shape[1:])
    files = folder.glob(f"{path.name}*")  # large weights are in a second file
    return Exported(
        name=name,
        output_shape=output_shape,
        bytes=sum(file.stat().st_size for file in files),
        largest_difference=largest_difference,
    )


def _trace(part: Part, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write one file without the exporter's notes, which name files of this machine."""
    axes = {
        "ids": {0: "batch", 1: "tokens"},
        "is_padding": {0: "batch", 1: "tokens"},
        "right_ids": {0: "batch", 1: "right_tokens"},
        "right_is_padding": {0: "batch", 1: "right_tokens"},
    }
    axes_of_inputs = tuple(axes.get(name, {0: "batch"}) for name in part.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own code
        program = torch.onnx.export(
            part,
            inputs,
            input_names=part.inputs,
            output_names=(part.graph.output,),
            dynamic_shapes=(axes_of_inputs,),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()
        program.save(path)


def opened(path: Path, inputs: Sequence[str]) -> Callable[..., np.ndarray]:
    """Return a function that runs a file with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> np.ndarray:
        arrays = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return session.run(None, arrays)[0]

    return run


def inputs_of(run: LoadedRun) -> dict[str, dict[str, Any]]:
    """Return type, meaning and shape of the graphs' inputs by name."""
    sizes = run.config.input
    resizing = f"{RESIZING[sizes.resize]}, {sizes.interpolation} with antialiasing"
    order = "[CLS] first, cut to max_text_tokens"
    if run.tokenizer.end_id is not None:
        order = "[CLS] last, which a text cut to max_text_tokens keeps"
    length = f" to {sizes.padded_text_length} tokens" if sizes.padded_text_length else ""
    image = {
        "dtype": "uint8",
        "meaning": f"RGB from 0 to 255, {resizing}",
        "shape": ["batch", 3, sizes.image_size, sizes.image_size],
    }
    ids = {
        "dtype": "int64",
        "meaning": f"of the tokenizer, {order}, then filled with pad_id{length}",
        "shape": ["batch", "tokens"],
    }
    is_padding = {
        "dtype": "bool",
        "meaning": "true where a text has no token",
        "shape": ["batch", "tokens"],
    }
    return {
        "pixels": image,
        "left": image,
        "right": image,
        "ids": ids,
        "is_padding": is_padding,
        "right_ids": ids,
        "right_is_padding": is_padding,
    }


def _texts(run: LoadedRun, exported: Sequence[Exported]) -> dict[str, str]:
    """Return the texts of the folder's other files by name."""
    graphs = heads_of(run.task).graphs()
    inputs = inputs_of(run)
    parts: dict[str, dict[str, Any]] = {}
    for file in exported:
        graph = graphs[file.name]
        output = {"dtype": "float32", "shape": file.output_shape, "meaning": graph.meaning}
        parts[file.name] = {
            "file": f"{file.name}.onnx",
            "inputs": {name: inputs[name] for name in graph.inputs},
            "outputs": {graph.output: output},
        }
    texts = {"tokenizer.json": run.tokenizer.to_json(), **label_files(run.task)}
    facts = {
        "task": run.config.task.name,
        "step": run.step,
        "image_size": run.config.input.image_size,
        "max_text_tokens": run.config.input.max_text_tokens,
        "cls_id": run.tokenizer.cls_id,
        "pad_id": run.tokenizer.pad_id,
        "comparable": run.task.is_comparable,
        "parts": parts,
        "files": sorted(texts),
    }
    return texts | {"export.json": json.dumps(facts, indent=1) + "\n"}
