"""The base classes of all tasks: training and raw outputs.

Trainer, evaluation, predictors and interop reach a task through these classes and never ask which one it is.

Letters: B batch, C classes, T text tokens, D width, d width of features, H height, W width, L blocks with experts, P passes,
E experts; 2 modalities, 4 kinds of sums.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.config import Config, HeadlessConfig, TaskConfig
from eve_vl.data.dataset import RowDataset, normalize
from eve_vl.data.records import Source
from eve_vl.model import build_backbone
from eve_vl.model.encoder import initialize
from eve_vl.model.packing import Tokens
from eve_vl.train import StepOutput
from eve_vl.train.processes import send, sum_over_processes
from eve_vl.utils.errors import UserError

Settings = TypeVar("Settings", bound=TaskConfig)
Routers = list[list[Tensor]]
"""Per pass, the statistics of each block with experts; see `model.moe.router_stats`."""
PAIR = ("pixels", "ids", "is_padding")
FIELDS = {"pixels": "images_BCHW", "left": "images_BCHW", "right": "right_BCHW", "ids": "ids_BT", "is_padding": "is_padding_BT"}
FIELDS |= {"right_ids": "right_ids_BT", "right_is_padding": "right_is_padding_BT"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a task is built from besides its config."""

    vocab_size: int
    mask_id: int = 0
    labels: tuple[str, ...] = ()
    """The answers or classes of a classifier's logits, in order."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Training data as a task has prepared it, before the task is built."""

    sources: Sequence[Source[Any]]
    """The rows to train on."""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the log."""


class Task(nn.Module, Generic[Settings]):
    """A backbone with the heads and losses of one job.

    Subclasses build heads in their `__init__` and then call `model.encoder.initialize`.
    """

    section: ClassVar[type[TaskConfig]]
    """The class of its section in the config, whose `name` is the task's name."""
    dataset: ClassVar[type[RowDataset]]
    """The dataset of training."""
    labels_file: ClassVar[str | None] = None
    """The file of a run folder that stores `labels`, for classifiers."""
    find_unused_parameters: bool = False
    """Passed to DDP: whether a step leaves parameters without a gradient, such as text weights when training on images only."""
    is_comparable: bool = False
    """Whether features of images and of texts compare with each other."""
    label_layer: ClassVar[str | None] = None
    """The layer with a row per label; a run with other labels starts it afresh."""

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__()
        assert isinstance(config.task, self.section)
        self.config, self.sizes = config, sizes
        self.settings: Settings = config.task  # pyright: ignore[reportAttributeAccessIssue]
        self.encoder = build_backbone(config.model, config.input, sizes.vocab_size)
        self.find_unused_parameters = self.encoder.find_unused_parameters

    @classmethod
    def prepare(cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None) -> Prepared:
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

        A loss has the weight `task.<name>_weight`, if there is one, else 1. terms: further scalars for the log.
        """
        routing = routing_terms(routers)
        weighted = [getattr(self.settings, f"{name}_weight", 1.0) * loss for name, loss in losses.items()]
        weighted += [self.encoder.balance_weight * routing["balance"]] if routing else []
        return StepOutput(loss=sum(weighted, start=torch.zeros(())), terms={**losses, **terms, **routing})

    def init_weights_from(self, tensors: Mapping[str, Tensor], labels: Sequence[str]) -> dict[str, Tensor]:
        """Return the weights of another run that this one can start from.

        labels: of that run.
        """
        unfit = f"{self.label_layer}." if self.label_layer and tuple(labels) != self.sizes.labels else None
        return {name: tensor for name, tensor in tensors.items() if not (unfit and name.startswith(unfit))}

    def as_task(self, name: str) -> "Task[Any] | None":
        """Return these weights as another task whose heads they have.

        None if they lack them.
        """
        return None

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of the passes that training makes.

        batch: of evaluation.
        """
        raise NotImplementedError

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Return features of length 1, float32 (B, d), of uint8 images."""
        return F.normalize(self._state(self.encoder.image(normalize(images_BCHW)), None), dim=1)

    def text_features(self, ids_BT: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        """Return features of length 1, float32 (B, d), of token ids."""
        return F.normalize(self._state(None, self.encoder.text(ids_BT, is_padding_BT)), dim=1)

    def _state(self, image: Tokens | None, text: Tokens | None) -> Tensor:
        """Return the state that represents an image or a text, (B, D)."""
        return self.encoder.cls(image, text)[0]

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.config.model.embed_dim


class Classifier(Task[Settings]):
    """A task whose head gives each row logits over labels.

    Labels are classes, answers, or the truth of a statement.
    """

    reads: tuple[str, ...] = PAIR
    """The arguments of `logits`, by the names in FIELDS."""
    class_names: ClassVar[tuple[str, ...]] = ()
    """Names of the logits of a task without a list of labels."""
    is_multilabel: bool = False
    """Whether a row may have several labels, each of its own probability."""
    accuracy: ClassVar[str] = "acc"
    """The log's name for the mean target of the best classes."""

    def forward(self, batch: Any) -> StepOutput:
        """Return the loss over the classes plus the weighted balance loss."""
        logits_BC, routers = self.predict(batch)
        target, best_B = send(self.targets(batch), logits_BC.device), logits_BC.argmax(1)
        right_B = target == best_B if target.ndim == 1 else target.gather(1, best_B[:, None])
        losses = {self.section.name: self.loss(logits_BC, target)}
        return self.output(losses, routers, **{self.accuracy: right_B.float().mean()})

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of the tensors that `reads` names, and routers.

        Default: those of the head that `label_layer` is in, read off the [CLS]. num_real: number of tokens that are no padding,
        if known.
        """
        assert self.label_layer is not None
        given = dict(zip(self.reads, tensors, strict=True))
        image = None if (images_BCHW := given.get("pixels")) is None else self.encoder.image(normalize(images_BCHW))
        text = None if (ids_BT := given.get("ids")) is None else self.encoder.text(ids_BT, given["is_padding"], num_real)
        cls_BD, routers = self.encoder.cls(image, text)
        return self.get_submodule(self.label_layer.rpartition(".")[0])(cls_BD), routers

    def targets(self, batch: Any) -> Tensor:
        """Return the target of each class, float32 (B, C) in [0, 1], or the right class.

        Both are on the CPU; the right class is (B,). Raises UserError.
        """
        raise NotImplementedError

    def predict(self, batch: Any) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of a batch's rows, and the routers' statistics."""
        return self.logits(*(getattr(batch, FIELDS[name]) for name in self.reads), num_real=getattr(batch, "num_real", None))

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the probability of each class, float32 (B, C)."""
        return logits_BC.float().sigmoid() if self.is_multilabel else logits_BC.float().softmax(1)

    def loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the rows.

        If they have several labels, it is the sum of binary ones over labels. labels: int64 (B,), or `targets`.
        """
        if self.is_multilabel:
            return objectives.answer_bce(logits_BC, labels.float())
        return F.cross_entropy(logits_BC.float(), labels.long() if labels.ndim == 1 else labels)

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of the pass over the rows."""
        return self.predict(batch)[1]


def label_files(task: Task[Any]) -> dict[str, str]:
    """Return the text of a task's `labels_file` by its name.

    Empty for a task without labels.
    """
    return {} if task.labels_file is None else {task.labels_file: json.dumps(task.sizes.labels, indent=1)}


def routing_terms(routers: Routers) -> dict[str, Tensor]:
    """Return the balance loss, and each block's load and entropy, as log terms.

    Load is that of the busiest expert; entropy is that of the gate. The loss is the mean over blocks and passes; all terms are
    over the tokens of all processes. Empty without `moe` blocks. routers: per pass through the encoder, the statistics of each
    `moe` block.
    """
    if not routers or not routers[0]:
        return {}
    sums_LP24E = torch.stack([torch.stack(block) for block in zip(*routers, strict=True)])
    sums_LP4E = sum_over_processes(sums_LP24E).sum(2).unflatten(2, (4, -1))  # one exchange for all
    gate_LPE = sums_LP4E[:, :, 1]
    first_LPE, _, entropy_LPE, _ = sums_LP4E.detach().unbind(2)
    balance_LP = objectives.balance(first_LPE, gate_LPE, first_LPE.sum(2))
    total_L, first_LE = first_LPE.sum((1, 2)), first_LPE.sum(1)
    values = {"max_load": first_LE.amax(1) / total_L, "entropy": entropy_LPE.sum((1, 2)) / total_L}
    logged = {f"{name}/{number}": value_L[number] for number in range(len(total_L)) for name, value_L in values.items()}
    return {"balance": balance_LP.mean(), **logged}


class NoRows(RowDataset):
    """The dataset of a task without losses and metrics."""

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Raise UserError: there is nothing to train or to measure."""
        raise UserError("the task headless has no losses and no numbers: start another run from this one with --init")


class Headless(Task[HeadlessConfig]):
    """An encoder from elsewhere: a start for other runs, and a source of features."""

    section = HeadlessConfig
    dataset = NoRows

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        initialize(self, config.model)
