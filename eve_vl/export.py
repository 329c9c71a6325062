"""A run as ONNX files, one for each thing that its heads can do, for programs that have no torch.

Each file is traced from the modules that `Eve` uses, the mixture of experts from its twin. onnxruntime then has to give torch's
numbers, at sizes that were not traced, before a run counts as exported.

Letters: B batch, D width, T text tokens, H height, W width.
"""

import importlib.util
import json
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from eve_vl.config import EveModelConfig
from eve_vl.data.batch import StatementBatch, normalize
from eve_vl.errors import UserError, nearest
from eve_vl.eve import Eve
from eve_vl.look import can_contrast, can_match
from eve_vl.model.embed import pair, patchify
from eve_vl.model.moe_traceable import traceable
from eve_vl.run import ANSWERS_FILE
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.vqa import VQA

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # largest difference from torch that passes
TRACED_BATCH = 3
LONGEST = 1_000_000  # tokens: as many as the run reads of a text
CHECKED = ((1, 2), (2, 5), (5, 9), (8, LONGEST))
"""Batch sizes and text lengths at which torch and onnxruntime are compared."""
TIMED_BATCHES = (1, 8)
ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one file computes."""

    call: str
    """The call of `Eve` that needs it."""
    inputs: tuple[str, ...]
    output: str
    meaning: str


FEATURES = "of length 1; their dot product says how alike two are; a picture and a text only if they are comparable"
PARTS = {
    "image_encoder": Part(call="encode_image", inputs=("pixels",), output="features", meaning=FEATURES),
    "text_encoder": Part(call="encode_text", inputs=("ids", "is_padding"), output="features", meaning=FEATURES),
    "matcher": Part(
        call="match",
        inputs=("pixels", "ids", "is_padding"),
        output="logits",
        meaning="no match, match; their softmax is the probability; the second alone puts candidates in order",
    ),
    "answerer": Part(
        call="answer",
        inputs=("pixels", "ids", "is_padding"),
        output="logits",
        meaning=f"one per answer of {ANSWERS_FILE}; the sigmoid of each is its probability of being right",
    ),
    "judge": Part(
        call="judge",
        inputs=("left", "right", "ids", "is_padding"),
        output="logits",
        meaning="false, true; their softmax is the probability",
    ),
}
PIXELS = "RGB from 0 to 255, the whole picture resized to a square, bicubic with antialiasing"
INPUTS = {
    "pixels": PIXELS,
    "left": PIXELS,
    "right": PIXELS,
    "ids": "of the tokenizer, [CLS] first, cut to max_text_tokens, shorter ones filled with pad_id",
    "is_padding": "true where a text has no token",
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One file that was written, and how it compares with torch."""

    name: str
    output_shape: tuple[str | int, ...]
    bytes: int
    largest_difference: float
    """Of any output value at any of the sizes checked."""
    speed: Mapping[int, tuple[float, ...]]
    """By batch size: torch's time over onnxruntime's, round by round; above 1, onnxruntime is faster."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values; of the rounds, median, least and largest."""
        speed = {
            str(batch): {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}
            for batch, ratios in self.speed.items()
        }
        return {"bytes": self.bytes, "largest_difference": self.largest_difference, "times_the_speed_of_torch": speed}


class Traced(nn.Module):
    """What a file computes, as a module: tensors in, one tensor out."""

    def __init__(self, eve: Eve, name: str):
        super().__init__()
        self.task, self.model = eve.task, eve.model
        self.compute: Callable[..., Tensor] = {
            "image_encoder": eve.image_features,
            "text_encoder": eve.text_features,
            "matcher": self._match,
            "answerer": self._answer,
            "judge": self._judge,
        }[name]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Pass the inputs on: pixels uint8 (B, 3, H, W), ids int64 (B, T), is_padding bool (B, T)."""
        return self.compute(*inputs)

    def _match(self, *inputs: Tensor) -> Tensor:
        assert can_match(self.task)
        assert self.task.contrast.match_head is not None
        return self.task.contrast.match_head(self._text_cls(*inputs))

    def _answer(self, *inputs: Tensor) -> Tensor:
        assert isinstance(self.task, VQA)
        return self.task.answer_head(self._text_cls(*inputs))

    def _judge(self, left_BCHW: Tensor, right_BCHW: Tensor, ids_BT: Tensor, is_padding_BT: Tensor) -> Tensor:
        assert isinstance(self.task, NLVR2)
        tensors = {"images_BCHW": left_BCHW, "right_BCHW": right_BCHW, "ids_BT": ids_BT, "is_padding_BT": is_padding_BT}
        unknown = dict.fromkeys(("statements", "labels", "identifiers", "groups", "where"), ())
        return self.task.predict(StatementBatch(**tensors, **unknown))[0]

    def _text_cls(self, pixels_BCHW: Tensor, ids_BT: Tensor, is_padding_BT: Tensor) -> Tensor:
        """Return the state of the text [CLS] of pairs, (B, D), and compute no other in the last block."""
        encoder = self.task.encoder
        image = encoder.image(patchify(normalize(pixels_BCHW), self.model.patch_size))
        tokens = pair(image, encoder.text(ids_BT, is_padding_BT))
        return encoder.encode(tokens, only=image.num_image).x_BND[:, 0]


def export_run(run: Path, folder: Path, parts: Sequence[str] = ()) -> list[Exported]:
    """Write a run's ONNX files into a new folder, with export.json, which says how to use them, and the tokenizer.

    parts: names of PARTS; none: all that the run's heads allow. Raises UserError, and writes nothing, if packages are missing,
    the folder is in use, the run lacks a head, its routing is random, or onnxruntime gives other numbers than torch.
    """
    check_packages()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already exists; name a new folder")
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise UserError(f"no part {nearest(unknown[0], PARTS)} (parts: {', '.join(PARTS)})")
    eve = Eve.load(run, device="cpu")
    for name in parts:
        eve.need(PARTS[name].call)
    if eve.model.routing == "official" and "moe" in eve.model.ffn_policies:
        raise UserError(
            f"{run}: model.routing is official, which draws second experts at random and lets tokens compete for room, so that "
            "no file can give the same numbers; export a run with routing stable or official-dropless"
        )
    names = parts or [name for name, part in PARTS.items() if part.call in eve.calls]
    folder = folder.absolute()  # so that "." has a name
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with torch.no_grad():
            exported = [_export(eve, name, temporary) for name in names]
        for name, text in _texts(eve, exported).items():
            (temporary / name).write_text(text)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return exported


def check_packages() -> None:
    """Raise UserError if a package is missing that exporting needs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs {', '.join(missing)}: pip install 'eve-vl[onnx]'")


def to_table(exported: Sequence[Exported]) -> Table:
    """Return what was written, for people to read."""
    table = Table(box=None)
    table.add_column("file", no_wrap=True)
    for column in ("MB", "largest difference", *(f"× torch's speed, batch {batch}" for batch in TIMED_BATCHES)):
        table.add_column(column, justify="right")
    for one in exported:
        speeds = [f"{statistics.median(r):.2f} ({min(r):.2f}–{max(r):.2f})" for r in one.speed.values()]
        table.add_row(f"{one.name}.onnx", f"{one.bytes / 1e6:.1f}", f"{one.largest_difference:.1e}", *speeds)
    return table


def example(name: str, model: EveModelConfig, vocab_size: int, batch: int, length: int, *, padded: bool) -> tuple[Tensor, ...]:
    """Return inputs of a part: noise, the same every time. padded: texts of all lengths from 1 to T, else all of T tokens."""
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    lengths_B1 = torch.arange(batch)[:, None] % length + 1 if padded else torch.full((batch, 1), length)

    def made(given: str) -> Tensor:
        if given == "is_padding":
            return torch.arange(length) >= lengths_B1
        if given == "ids":
            return torch.randint(vocab_size, (batch, length), generator=generator)
        return torch.randint(256, (batch, 3, model.image_size, model.image_size), dtype=torch.uint8, generator=generator)

    return tuple(made(given) for given in PARTS[name].inputs)


def _export(eve: Eve, name: str, folder: Path) -> Exported:
    """Write one file and compare it with torch. Raises UserError if it gives other numbers."""
    traced, path = Traced(eve, name).eval(), folder / f"{name}.onnx"

    def inputs(batch: int, length: int, *, padded: bool) -> tuple[Tensor, ...]:
        length = min(length, eve.model.max_text_tokens)
        return example(name, eve.model, eve.tokenizer.vocab_size, batch, length, padded=padded)

    with traceable(eve.task.encoder):
        _trace(traced, name, inputs(TRACED_BATCH, LONGEST, padded=True), path)
    session = _session(path)
    largest, shape = 0.0, ()
    for batch, length in CHECKED:
        for padded in (False, True):
            given = inputs(batch, length, padded=padded)
            expected, found = traced(*given), torch.from_numpy(_run(session, name, given))
            assert found.shape == expected.shape
            difference = float((found - expected).abs().max())
            if not difference <= TOLERANCE:  # so that NaN fails too
                raise UserError(
                    f"{path.name}: differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}, in a batch of {batch}; "
                    "nothing was written"
                )
            largest, shape = max(largest, difference), ("batch", *found.shape[1:])
    return Exported(
        name=name,
        output_shape=shape,
        bytes=sum(file.stat().st_size for file in folder.glob(f"{path.name}*")),  # large weights lie in a file beside it
        largest_difference=largest,
        speed={batch: _speed(traced, session, name, inputs(batch, LONGEST, padded=True)) for batch in TIMED_BATCHES},
    )


def _trace(traced: Traced, name: str, given: tuple[Tensor, ...], path: Path) -> None:
    """Write one file, without the exporter's notes on each operation: they name files of this machine."""
    part, text_axes = PARTS[name], {0: "batch", 1: "tokens"}
    axes = {"ids": text_axes, "is_padding": text_axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own code
        program = torch.onnx.export(
            traced,
            given,
            input_names=part.inputs,
            output_names=(part.output,),
            dynamic_shapes=(tuple(axes.get(name, {0: "batch"}) for name in part.inputs),),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()
        program.save(path)


def _session(path: Path) -> Any:
    """Return onnxruntime's session of a file, with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: Any, name: str, given: Sequence[Tensor]) -> np.ndarray:
    return session.run(None, {key: tensor.numpy() for key, tensor in zip(PARTS[name].inputs, given, strict=True)})[0]


def _speed(traced: Traced, session: Any, name: str, given: Sequence[Tensor]) -> tuple[float, ...]:
    """Return torch's time over onnxruntime's for the same inputs, round by round; the two take turns, the first round does
    not count."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    ratios = []
    for _ in range(1 + ROUNDS):
        start = now()
        traced(*given)
        middle = now()
        _run(session, name, given)
        ratios.append((middle - start) / (now() - middle))
    return tuple(ratios[1:])


def _texts(eve: Eve, exported: Sequence[Exported]) -> dict[str, str]:
    """Return the other files of the folder by name."""
    model, size = eve.model, eve.model.image_size
    picture = {"dtype": "uint8", "shape": ["batch", 3, size, size]}
    forms = {
        **dict.fromkeys(("pixels", "left", "right"), picture),
        "ids": {"dtype": "int64", "shape": ["batch", "tokens"]},
        "is_padding": {"dtype": "bool", "shape": ["batch", "tokens"]},
    }
    parts = {}
    for one in exported:
        part = PARTS[one.name]
        output = {"dtype": "float32", "shape": one.output_shape, "meaning": part.meaning}
        parts[one.name] = {
            "file": f"{one.name}.onnx",
            "inputs": {name: forms[name] | {"meaning": INPUTS[name]} for name in part.inputs},
            "outputs": {part.output: output},
        }
    texts = {"tokenizer.json": eve.tokenizer.to_json()}
    if isinstance(eve.task, VQA):
        texts[ANSWERS_FILE] = json.dumps(eve.task.answers, indent=1)
    about = {
        "task": eve.run.config.task.name,
        "step": eve.run.step,
        "image_size": size,
        "max_text_tokens": model.max_text_tokens,
        "cls_id": eve.tokenizer.cls_id,
        "pad_id": eve.tokenizer.pad_id,
        "comparable": can_contrast(eve.task),
        "parts": parts,
        "files": sorted(texts),
    }
    return texts | {"export.json": json.dumps(about, indent=1) + "\n"}
