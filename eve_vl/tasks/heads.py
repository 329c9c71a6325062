"""Heads of each task for other programs: ONNX graphs, transformers outputs.

Letters: B batch, I images, C classes or captions, T text tokens, N all tokens, V vocabulary, D
width, d width of features.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import class_for, load_part
from eve_vl.model.backbone import Encoded
from eve_vl.tasks.task import PAIR, Task, task_class
from eve_vl.utils.errors import UserError

IGNORED = -100  # label of a token that is not masked, as everywhere in transformers


class Graph(NamedTuple):
    """A function of tensors that a run exports, for programs without torch."""

    inputs: tuple[str, ...]
    """The arguments of `compute` in order: pixels, left, right (uint8, (B, 3, H, W)), ids (int64,
    (B, T)), is_padding (bool, (B, T)), right_ids and right_is_padding."""
    output: str
    meaning: str
    compute: Callable[..., Tensor]


class Heads:
    """Heads of one task, none by default. A subclass belongs to the tasks of its `section`."""

    section: ClassVar[type[TaskConfig]]
    missing: str | None = None
    """Description of the head that `outputs` needs and this run lacks."""
    class_names: tuple[str, ...] = ()
    """Names of the columns of its logits, unless the run has a list of labels."""

    def __init__(self, task: Any):
        self.task = task

    def graphs(self) -> dict[str, Graph]:
        """Return the graphs to export, by the name of the file."""
        task = self.task
        meaning = "of length 1; their dot product says how alike two are"
        if not task.is_comparable:
            meaning += "; an image and a text do not compare"
        return {
            "image_encoder": Graph(PAIR[:1], "features", meaning, task.image_features),
            "text_encoder": Graph(PAIR[1:], "features", meaning, task.text_features),
        }

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return the outputs by transformers' names, with labels also the `loss`.

        tensors: the given ones of pixels, right (float, (B, 3, H, W), in [-1, 1]), ids and
        is_padding. Raises UserError.
        """
        raise UserError(f"the task {self.task.section.name} has no head")

    def encode(self, tensors: Mapping[str, Tensor]) -> Encoded:
        """Return the states of images, of texts or of pairs.

        Raises UserError without either.
        """
        if not tensors:
            raise UserError("give pixel_values, input_ids or both")
        encoder = self.task.encoder
        image = None
        if "pixels" in tensors:
            image = encoder.image(tensors["pixels"])
        text = None
        if "ids" in tensors:
            text = encoder.text(tensors["ids"], tensors["is_padding"])
        return encoder.encode(image, text)


def heads_class(section: type[TaskConfig]) -> type[Heads]:
    """Return the heads of a section.

    Without heads of its own, it has those of the section that it refines, else those of its kind of
    task.
    """
    load_part(section, "heads")
    return class_for(Heads, section) or task_class(section).heads or Heads


def heads_of(task: Task[Any]) -> Heads:
    """Return the heads of a task."""
    return heads_class(task.section)(task)
