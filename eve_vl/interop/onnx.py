"""Export of runs as ONNX files, one per graph of the task.

They serve programs without torch. Each file is traced from the code of evaluation and `Eve`, experts from a traceable twin. An
export succeeds only if onnxruntime gives torch's numbers, at other sizes than the traced one.

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
from torch.nn import functional as F

from eve_vl.model.moe import MoE
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.reference_moe import ReferenceMoE
from eve_vl.model.submodules import Module, replace_submodules
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
CHECKED = ((1, 2), (2, 5), (5, 9), (8, LONGEST))
"""Batch sizes and text lengths at which torch and onnxruntime are compared."""
FORMS = {
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
        return f"{self.name}.onnx: {self.bytes / 1e6:.1f} MB, largest difference from torch {self.largest_difference:.1e}"


class Part(nn.Module):
    """A graph as a module: tensors in, one tensor out."""

    def __init__(self, task: Task[Any], name: str):
        super().__init__()
        self.task, self.graph = task, heads_of(task).graphs()[name]
        self.inputs = self.graph.inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        """Compute the graph.

        pixels: uint8 (B, 3, H, W). ids: int64 (B, T). is_padding: bool (B, T).
        """
        return self.graph.compute(*tensors)


def export_run(path: Path, folder: Path, parts: Sequence[str] = ()) -> list[Exported]:
    """Write a run's ONNX files, export.json and the tokenizer into a new folder.

    parts: names of the task's graphs; empty: all. Raises UserError and writes nothing if packages are missing, the folder is in
    use, the run has no such graph, its results are random, or onnxruntime gives other numbers.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"exporting needs {', '.join(missing)}: pip install 'eve-vl[onnx]'")
    check_new(folder)
    run = load_run(path, torch.device("cpu"))
    known = heads_of(run.task).graphs()
    if unknown := [name for name in parts if name not in known]:
        name = run.config.task.name
        raise UserError(
            f"{path}: task {name} has no part {nearest(unknown[0], known)} (parts: {', '.join(known)})"
        )
    if run.task.encoder.results_depend_on_batch:
        why = "samples second experts and drops tokens over capacity, so no file gives the same numbers"
        fix = "export a run with routing dropless or reference-dropless"
        raise UserError(f"{path}: model.routing is reference, which {why}; {fix}")
    with atomic_folder(folder.absolute()) as temporary, torch.no_grad():  # "." has no name
        exported = [_export(run, name, temporary) for name in parts or known]
        for name, text in _texts(run, exported).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return exported


def example(
    run: LoadedRun, inputs: Sequence[str], batch: int, length: int, *, padded: bool = True
) -> tuple[Tensor, ...]:
    """Return fixed random inputs.

    padded: texts of all lengths from 1 to T, else all of T tokens.
    """
    length, size = min(length, run.config.input.max_text_tokens), run.config.input.image_size
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    lengths_B1 = (
        torch.arange(batch)[:, None] % length + 1 if padded else torch.full((batch, 1), length)
    )
    ids_BT = torch.randint(run.tokenizer.vocab_size, (batch, length), generator=generator)
    texts = {"ids": ids_BT, "is_padding": torch.arange(length) >= lengths_B1}
    texts |= {f"right_{name}": tensor.flip(0) for name, tensor in texts.items()}
    pixels = {
        name: torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        for name in inputs
    }
    return tuple(texts.get(name, pixels[name]) for name in inputs)


def _export(run: LoadedRun, name: str, folder: Path) -> Exported:
    """Write one file and compare it with torch. Raises UserError for other numbers."""
    part, path = Part(run.task, name).eval(), folder / f"{name}.onnx"
    _trace(
        Part(traceable(run.task), name).eval(),
        example(run, part.inputs, TRACED_BATCH, LONGEST),
        path,
    )
    onnx = opened(path, part.inputs)
    largest, shape = 0.0, ()
    for (batch, length), padded in itertools.product(CHECKED, (False, True)):
        given = example(run, part.inputs, batch, length, padded=padded)
        expected, found = part(*given), torch.from_numpy(onnx(*given))
        assert found.shape == expected.shape
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE:  # NaN fails too
            problem = f"differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}, in a batch of {batch}"
            raise UserError(f"{path.name}: {problem}; nothing was written")
        largest, shape = max(largest, difference), ("batch", *found.shape[1:])
    num_bytes = sum(
        file.stat().st_size for file in folder.glob(f"{path.name}*")
    )  # large weights are in a second file
    return Exported(name=name, output_shape=shape, bytes=num_bytes, largest_difference=largest)


def _trace(part: Part, given: tuple[Tensor, ...], path: Path) -> None:
    """Write one file without the exporter's notes, which name files of this machine."""
    axes = {name: {0: "batch", 1: "tokens"} for name in ("ids", "is_padding")}
    axes |= {f"right_{name}": {0: "batch", 1: "right_tokens"} for name in axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own code
        names: dict[str, Any] = {"input_names": part.inputs, "output_names": (part.graph.output,)}
        shapes = (tuple(axes.get(name, {0: "batch"}) for name in part.inputs),)
        program = torch.onnx.export(
            part, given, **names, dynamic_shapes=shapes, dynamo=True, verbose=False
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
    return lambda *given: session.run(
        None, {name: each.numpy() for name, each in zip(inputs, given, strict=True)}
    )[0]


def inputs_of(run: LoadedRun) -> dict[str, dict[str, Any]]:
    """Return type, meaning and shape of the graphs' inputs by name."""
    sizes, text = run.config.input, ["batch", "tokens"]
    pixels = f"RGB from 0 to 255, {FORMS[sizes.resize]}, {sizes.interpolation} with antialiasing"
    order = "[CLS] first, cut to max_text_tokens"
    if run.tokenizer.end_id is not None:
        order = "[CLS] last, which a text cut to max_text_tokens keeps"
    filled = f" to {sizes.padded_text_length} tokens" if sizes.padded_text_length else ""
    image = {
        "dtype": "uint8",
        "meaning": pixels,
        "shape": ["batch", 3, sizes.image_size, sizes.image_size],
    }
    ids = {
        "dtype": "int64",
        "meaning": f"of the tokenizer, {order}, then filled with pad_id{filled}",
        "shape": text,
    }
    is_padding = {"dtype": "bool", "meaning": "true where a text has no token", "shape": text}
    shaped = dict.fromkeys(("pixels", "left", "right"), image) | {
        "ids": ids,
        "is_padding": is_padding,
    }
    return shaped | {"right_ids": ids, "right_is_padding": is_padding}


def _texts(run: LoadedRun, exported: Sequence[Exported]) -> dict[str, str]:
    """Return the texts of the folder's other files by name."""
    sizes, graphs = run.config.input, heads_of(run.task).graphs()
    shaped, parts = inputs_of(run), {}
    for one in exported:
        graph = graphs[one.name]
        inputs = {name: shaped[name] for name in graph.inputs}
        output = {"dtype": "float32", "shape": one.output_shape, "meaning": graph.meaning}
        parts[one.name] = {
            "file": f"{one.name}.onnx",
            "inputs": inputs,
            "outputs": {graph.output: output},
        }
    texts = {"tokenizer.json": run.tokenizer.to_json(), **label_files(run.task)}
    about = {"task": run.config.task.name, "step": run.step, "image_size": sizes.image_size}
    about |= {
        "max_text_tokens": sizes.max_text_tokens,
        "cls_id": run.tokenizer.cls_id,
        "pad_id": run.tokenizer.pad_id,
    }
    about |= {"comparable": run.task.is_comparable, "parts": parts, "files": sorted(texts)}
    return texts | {"export.json": json.dumps(about, indent=1) + "\n"}


class TraceableMoE(nn.Module):
    """Twin of a mixture of experts without drops, in operations that ONNX has.

    It shares the weights. Each expert selects its own rows, so that only chosen experts compute, as in `MoE`.
    """

    def __init__(self, moe: MoE):
        super().__init__()
        self.router, self.activation, all_ = moe.router, moe.experts.activation, moe.experts
        self.experts_see_modality = isinstance(moe, ReferenceMoE)
        stacks = (all_.fc1_weight, all_.fc1_bias, all_.fc2_weight, all_.fc2_bias)
        # of each expert its own, so that a file holds them separately
        self.experts: Any = nn.ModuleList(
            map(nn.ParameterList, zip(*(stack.detach() for stack in stacks), strict=True))
        )

    def forward(
        self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, None]:
        """Return what the experts make of rows (S, D), and no statistics."""
        assert read is None, "in evaluation, rows that are read are chosen before"
        seen_SD = x_SD
        if self.router.modality_embed is not None:
            seen_SD = x_SD + self.router.modality_embed.index_select(0, rows.is_text_S)
        gates_SE = F.linear(seen_SD, self.router.weight).softmax(-1)
        top_gates_SK, experts_SK = gates_SE.topk(self.router.top_k)
        top_gates_SK = top_gates_SK / top_gates_SK.sum(-1, keepdim=True)
        gates_SE = torch.zeros_like(gates_SE).scatter(1, experts_SK, top_gates_SK)
        if self.experts_see_modality:
            x_SD = seen_SD
        y_SD = torch.zeros_like(x_SD)
        for gate_S, (weight, bias, out_weight, out_bias) in zip(
            gates_SE.unbind(1), self.experts, strict=True
        ):
            row_R = gate_S.nonzero().squeeze(1)
            hidden_RF = self.activation(F.linear(x_SD.index_select(0, row_R), weight, bias))
            y_RD = gate_S.index_select(0, row_R)[:, None] * F.linear(
                hidden_RF, out_weight, out_bias
            )
            y_SD = y_SD.index_add(0, row_R, y_RD)
        return y_SD, None


def traceable(module: Module) -> Module:
    """Return a twin of a module with traceable mixtures of experts.

    It has the same weights.
    """
    experts = {name: part for name, part in module.named_modules() if isinstance(part, MoE)}
    return replace_submodules(module, {name: TraceableMoE(moe) for name, moe in experts.items()})
