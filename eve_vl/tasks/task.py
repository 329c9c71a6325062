"""The base class of all tasks: training and raw outputs.

Trainer, evaluation, predictors and interop reach a task through it and never ask which one it is.

Letters: B batch, T text tokens, D width, d width of features, H height, W width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import Config, TaskConfig
from eve_vl.config.kinds import load_part, subclasses
from eve_vl.data.batches import normalize
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import RowDataset
from eve_vl.model.initialization import initialize
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.backbones import build_backbone
from eve_vl.tasks.routing import Routers, routing_terms
from eve_vl.train.step import StepOutput
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

Settings = TypeVar("Settings", bound=TaskConfig)

PAIR = ("pixels", "ids", "is_padding")
"""The names of an image–text pair's tensors, for other programs."""


class Sizes(Frozen):
    """What a task is built from besides its config."""

    vocab_size: int
    mask_id: int = 0
    labels: tuple[str, ...] = ()
    """The answers or classes of a classifier's logits, in order."""


class Prepared(Frozen):
    """Training data as a task has prepared it, before the task is built."""

    sources: Sequence[Source[Any]]
    """The rows to train on."""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the log."""


@dataclass
class Losses:
    """Losses by name, before their weights, and what the passes behind them tell."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Further scalars for the log."""
    routers: Routers = field(default_factory=list)

    def add(self, losses: "Losses") -> None:
        """Add the losses of further passes."""
        self.losses.update(losses.losses)
        self.terms.update(losses.terms)
        self.routers = [*self.routers, *losses.routers]


class Task(nn.Module, Generic[Settings]):
    """A backbone with the heads and losses of one job.

    Subclasses build heads in `build`; the initial values of all weights follow.
    """

    section: ClassVar[type[TaskConfig]]
    """The class of its section in the config, whose `name` is the task's name."""
    dataset: ClassVar[type[RowDataset]]
    """The dataset of training."""
    labels_file: ClassVar[str | None] = None
    """The file of a run folder that stores `labels`, for classifiers."""
    heads: ClassVar[Any] = None
    """Its heads for other programs (`tasks.heads.Heads`), unless the file heads.py of its
    folder has them."""
    is_comparable: bool = False
    """Whether features of images and of texts compare with each other."""
    label_layer: ClassVar[str | None] = None
    """The layer with a row per label; a run with other labels starts it afresh."""

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__()
        assert isinstance(config.task, self.section)
        self.config = config
        self.sizes = sizes
        self.settings: Settings = config.task  # pyright: ignore[reportAttributeAccessIssue]
        self.encoder = build_backbone(config.model, config.input, sizes.vocab_size)
        # passed to DDP: whether a step leaves parameters without a gradient, such as text weights
        # when training on images only
        self.find_unused_parameters = self.encoder.find_unused_parameters
        self.build()
        initialize(self, config.model)

    def build(self) -> None:
        """Build what the encoder lacks; its initial values follow."""

    @classmethod
    def prepare(
        cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None
    ) -> Prepared:
        """Prepare the training sources before the task is built.

        labels: of the run to resume. Raises UserError.
        """
        return Prepared(sources=sources)

    def before_step(self, micro_batches: list[Any]) -> list[Any]:
        """Return the micro-batches of a step with the values that need all of them.

        Such a value is the mean number of masked tokens.
        """
        return micro_batches

    def output(self, losses: Mapping[str, Tensor], routers: Routers, **terms: Tensor) -> StepOutput:
        """Return the weighted sum of the losses plus the weighted balance loss.

        A loss has the weight `task.<name>_weight`, if there is one, else 1. terms: further scalars
        for the log.
        """
        total = torch.zeros(())
        for name, loss in losses.items():
            total = total + getattr(self.settings, f"{name}_weight", 1.0) * loss
        routing = routing_terms(routers)
        if routing:
            total = total + self.encoder.balance_weight * routing["balance"]
        return StepOutput(loss=total, terms={**losses, **terms, **routing})

    def init_weights_from(
        self, tensors: Mapping[str, Tensor], labels: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return the weights of another run that this one can start from.

        labels: of that run.
        """
        if self.label_layer is None or tuple(labels) == self.sizes.labels:
            return dict(tensors)
        prefix = f"{self.label_layer}."
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}

    def as_task(self, name: str) -> "Task[Any] | None":
        """Return these weights as another task whose heads they have; None if they lack them."""
        return None

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of the passes that training makes.

        batch: of evaluation.
        """
        raise NotImplementedError

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Return features of length 1, float32 (B, d), of uint8 images."""
        image = self.encoder.image(normalize(images_BCHW))
        return F.normalize(self._state(image, None), dim=1)

    def text_features(self, ids_BT: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        """Return features of length 1, float32 (B, d), of token ids."""
        text = self.encoder.text(ids_BT, is_padding_BT)
        return F.normalize(self._state(None, text), dim=1)

    def _state(self, image: Tokens | None, text: Tokens | None) -> Tensor:
        """Return the state that represents an image or a text, (B, D)."""
        return self.encoder.cls(image, text)[0]

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.config.model.embed_dim


def label_files(task: Task[Any]) -> dict[str, str]:
    """Return the text of a task's `labels_file` by its name; empty for a task without labels."""
    if task.labels_file is None:
        return {}
    return {task.labels_file: json.dumps(task.sizes.labels, indent=1)}


def task_class(section: type[TaskConfig]) -> type[Task[Any]]:
    """Return the task of a section. Raises UserError if there is none."""
    load_part(section, "task")
    for task in subclasses(Task):
        if vars(task).get("section") is section:
            return task
    raise UserError(f"{section.__name__}: no task has this section; define one in the same file")
