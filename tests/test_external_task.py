"""A task from outside the package gets ONNX files, a transformers class and conversion."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_runs import assert_close, noise, pixels
from torch import Tensor, nn
from torch.nn import functional as F
from twins import tiny_config, tiny_tokenizer

from eve_vl.config import Config, TaskConfig
from eve_vl.data.dataset import RowDataset, normalize
from eve_vl.interop import hf
from eve_vl.interop.convert import write_run
from eve_vl.interop.heads import Graph, Heads
from eve_vl.interop.onnx import export_run
from eve_vl.interop.published import export_published
from eve_vl.run.loading import build_task, load_run
from eve_vl.tasks.task import Sizes, Task

COLOURS = ("red", "green", "none of these")


class MainColourConfig(TaskConfig):
    """What colour an image has."""

    name: ClassVar[str] = "main_colour"
    title: ClassVar[str] = "the colour of an image"
    has_numbers: ClassVar[bool] = False  # so that the command line, which other tests read, does not offer it
    palette: Path | None = None


class MainColour(Task[MainColourConfig]):
    """One linear layer on the state of an image."""

    section = MainColourConfig
    dataset = RowDataset
    labels_file = "colours.json"

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.head = nn.Linear(config.model.embed_dim, len(sizes.labels))

    def logits(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.encoder.cls(self.encoder.image(normalize(images_BCHW)), None)[0])


class MainColourHeads(Heads):
    """The linear layer for other programs."""

    section = MainColourConfig

    def graphs(self) -> dict[str, Graph]:
        namer = Graph(inputs=("pixels",), output="logits", meaning="one per colour", compute=self.task.logits)
        return super().graphs() | {"namer": namer}

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Labels: int64 (B,)."""
        logits_BC = self.task.logits(tensors["pixels"])
        return {"logits": logits_BC} | ({} if labels is None else {"loss": F.cross_entropy(logits_BC, labels)})


def test_a_task_from_outside_the_package(tmp_path):
    config = tiny_config(task=MainColourConfig(palette=tmp_path / "palette.txt"), model={"depth": 1, "num_deep_blocks": 0})
    task = build_task(config, tiny_tokenizer(), COLOURS)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    write_run(tmp_path / "run", config, tiny_tokenizer(), task.eval())
    images = pixels(noise(0), noise(1))
    with torch.no_grad():
        assert isinstance(task, MainColour)
        expected = task.logits(images)

    model, processor = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForMainColour
    assert model.__doc__ == "The colour of an image.\n\nLabels: int64 (B,)."
    assert model.config.id2label == dict(enumerate(COLOURS))
    model.save_pretrained(tmp_path / "hub")
    assert str(tmp_path) not in (tmp_path / "hub" / "config.json").read_text()
    again = hf.EveForMainColour.from_pretrained(tmp_path / "hub")
    labels = torch.tensor([2, 0])
    output = again(processor(images=[noise(0), noise(1)])["pixel_values"], labels=labels)
    assert_close(output.logits.detach().numpy(), expected)
    assert output.loss.item() == pytest.approx(F.cross_entropy(expected, labels).item(), rel=1e-5)
    hf.to_run(again, processor, tmp_path / "back")
    assert load_run(tmp_path / "back").task.sizes.labels == COLOURS

    export_run(tmp_path / "run", tmp_path / "onnx", ("namer",))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "namer.onnx", providers=["CPUExecutionProvider"])
    given = ((images + 1) * 127.5).round().byte().numpy()
    assert_close(np.asarray(session.run(None, {"pixels": given})[0]), expected)
    assert json.loads((tmp_path / "onnx" / "colours.json").read_text()) == list(COLOURS)

    assert "left out 2 that the published models do not have: head" in export_published(tmp_path / "run", tmp_path / "eve.pth")
