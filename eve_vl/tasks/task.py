"""What every task is to the rest of the house: trainer, loading, evaluation, `Eve`, command line, report, export and the hub
interface reach a task through this class and never ask which one it is.

Letters: B batch, T text tokens, D width, d width of features, H height, W width.
"""

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import Config, TaskConfig
from eve_vl.data.batch import normalize
from eve_vl.data.dataset import RowDataset
from eve_vl.data.records import Source
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.ablations import How
from eve_vl.evaluation.significance import Baseline, verdict_of
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.model.build import build_backbone
from eve_vl.model.moe import RouterStats
from eve_vl.model.packing import Tokens
from eve_vl.tasks.router_losses import routing_terms
from eve_vl.train.collectives import gather_objects
from eve_vl.train.device import send
from eve_vl.train.trainer import StepOutput
from eve_vl.utils.errors import UserError

Settings = TypeVar("Settings", bound=TaskConfig)
Routers = list[list[RouterStats]]
NUM_GLIMPSED = 4
NO_BASELINE = "without a baseline to compare it with"
PAIR = ("pixels", "ids", "is_padding")
FIELDS = {"pixels": "images_BCHW", "left": "images_BCHW", "right": "right_BCHW", "ids": "ids_BT", "is_padding": "is_padding_BT"}
FIELDS |= {"right_ids": "right_ids_BT", "right_is_padding": "right_is_padding_BT"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a task is built for, besides its config."""

    vocab_size: int
    mask_id: int = 0
    labels: tuple[str, ...] = ()
    """What the outputs of a classifier stand for: answers or classes."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a task makes of its training data before it is built."""

    sources: Sequence[Source[Any]]
    """The rows to train on."""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences for the log."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The numbers of an evaluation and, of a task that has them, the rows that they come from."""

    numbers: dict[str, float]
    examples: Sequence[Any] = ()
    row_scores: Mapping[str, float] = field(default_factory=dict)
    """What each row adds to the main number, by its name; see `Task.row_scores`."""
    notes: Sequence[str] = ()
    """What people should know of the rows, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class Computation:
    """Something that a run computes from tensors alone, for programs without torch."""

    inputs: tuple[str, ...]
    """Of pixels, left and right (uint8, (B, 3, H, W)), ids (int64, (B, T)) and is_padding (bool, (B, T)), those of a right item
    as right_ids and right_is_padding too, in the order of `compute`."""
    output: str
    meaning: str
    compute: Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class PublishedHead:
    """What the published checkpoints hold of a task's heads, for conversion in both directions."""

    keys: Callable[[Any], Mapping[str, str] | None] = lambda _: {}
    """By the task's section, the published name of each of our tensors; what has none is left out. None: the published models
    have another head in its place."""
    settings: Callable[[Mapping[str, Tensor], int], TaskConfig | None] = lambda *_: None
    """The section that a checkpoint's tensors and width ask for; None: its head is another task's."""
    words: int = 30
    """Words that the published evaluation keeps of a text."""
    older_names: Mapping[str, str] = field(default_factory=dict)
    """Earlier names of published tensors, with those of `keys`; where several are there, the last counts."""


class Task(nn.Module, Generic[Settings]):
    """A backbone with the heads and losses of one job, and all that follows from what the job is.

    Subclasses build heads in their `__init__` and then call `model.encoder.initialize`.
    """

    section: ClassVar[type[TaskConfig]]
    """Its section in the config, whose `name` is the task's."""
    dataset: ClassVar[type[RowDataset]]
    """What training goes through."""
    main_metric: str | None = None
    """The number by which the best weights are chosen, higher is better; None: the last ones count."""
    scored: ClassVar[str] = ""
    """What `row_scores` are of; "": the main number."""
    against: ClassVar[tuple[Baseline, ...]] = ()
    """What its numbers must be better than to mean anything, the easiest first."""
    main_loss: str | None = None
    """Where there is no main metric, the number of validation that early stopping watches, lower is better."""
    labels_file: ClassVar[str | None] = None
    """File of a run folder that keeps `labels`, for classifiers."""
    has_prediction_file: ClassVar[bool] = False
    """Whether `prediction_file` writes one, as an official server takes it."""
    find_unused_parameters: bool = False
    """Whether a step leaves parameters without a gradient, as those of texts where rows are images alone."""
    missing_head: str | None = None
    """What `outputs` needs and this run lacks, in words."""
    blinds: tuple[How, ...] = ()
    """What evaluation takes away from rows to see what a number is worth without it."""
    class_names: tuple[str, ...] = ()
    """What the columns of its logits stand for where it has no list of labels; empty if they are no classes."""
    label_layer: ClassVar[str | None] = None
    """The layer whose rows stand for labels: of no use to a run with other ones."""
    published_head: ClassVar[PublishedHead] = PublishedHead()
    """How conversion knows its heads; by default no published checkpoint has any."""

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__()
        assert isinstance(config.task, self.section)
        self.config, self.sizes = config, sizes
        self.settings: Settings = config.task  # pyright: ignore[reportAttributeAccessIssue]
        self.encoder = build_backbone(config.model, config.input, sizes.vocab_size)
        self.find_unused_parameters = self.encoder.find_unused_parameters

    # Training

    @classmethod
    def kind(cls, config: Config) -> str:
        """Return the kind of rows that its sources hold."""
        return cls.dataset.kind_of(config)

    @classmethod
    def prepare(cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None) -> Prepared:
        """Look at the training sources before the task is built. labels: those of the run that goes on. Raises UserError."""
        return Prepared(sources=sources)

    def before_step(self, micro_batches: list[Any]) -> list[Any]:
        """Return the micro-batches of an optimiser step with what only all of them together say."""
        return micro_batches

    def output(self, losses: Mapping[str, Tensor], routers: Routers, **terms: Tensor) -> StepOutput:
        """Return the sum of the losses, each times `task.<name>_weight` where there is one, and of the balance loss times its
        weight. terms: further scalars for the log."""
        routing = routing_terms(routers)
        weighted = [getattr(self.settings, f"{name}_weight", 1.0) * loss for name, loss in losses.items()]
        weighted += [self.encoder.balance_weight * routing["balance"]] if routing else []
        return StepOutput(loss=sum(weighted, start=torch.zeros(())), terms={**losses, **terms, **routing})

    def kept_of(self, tensors: Mapping[str, Tensor], labels: Sequence[str]) -> dict[str, Tensor]:
        """Return the weights of another run, whose labels are given, that are of use to this one."""
        useless = f"{self.label_layer}." if self.label_layer and tuple(labels) != self.sizes.labels else None
        return {name: tensor for name, tensor in tensors.items() if not (useless and name.startswith(useless))}

    def label_files(self) -> dict[str, str]:
        """Return the text of `labels_file` by its name; empty for a task without one."""
        return {} if self.labels_file is None else {self.labels_file: json.dumps(self.sizes.labels, indent=1)}

    # Evaluation

    @classmethod
    def eval_dataset(cls, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer) -> Any:
        """Return what evaluation goes through."""
        return cls.dataset(sources, config, tokenizer, training=False)

    def check_heads(self, flags: Mapping[str, Any]) -> None:
        """Raise UserError if flags of evaluation need a head that the run lacks."""

    def check_flags(self, flags: Mapping[str, Any], dataset: Any) -> None:
        """Raise UserError if flags of evaluation do not fit the data."""

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Return the numbers of validation, of all batches of all processes; deterministic."""
        return self.evaluated(loader).numbers

    def chosen(self, numbers: Mapping[str, float]) -> Settings:
        """Return the section with what validation chose, by its numbers, for the use of these weights."""
        return self.settings

    def evaluated(self, loader: Iterable[Any]) -> Evaluated:
        """Return the numbers of all batches of all processes with their rows; deterministic."""
        examples = self.examples(loader)
        return Evaluated(numbers=self.numbers(examples), examples=examples, row_scores=self.row_scores(examples))

    def examples(self, loader: Iterable[Any]) -> Sequence[Any]:
        """Return what the model makes of the rows of all processes, in an order that does not depend on batches."""
        raise NotImplementedError

    def numbers(self, examples: Sequence[Any]) -> dict[str, float]:
        """Return the numbers of examples."""
        raise NotImplementedError

    def row_scores(self, examples: Sequence[Any]) -> dict[str, float]:
        """Return how well each row is done, higher is better, by its name, so that two runs can be compared row by
        row (`metrics.certainty.paired`): of labels whether they are right, of queries whether the first hit is, of texts the
        share of masked tokens guessed right. Rows that have no truth are left out. Names are those of `row_name` with what else
        makes a score another one and, after GROUP, which rows belong together."""
        return {}

    def baselines(self, examples: Sequence[Any]) -> dict[str, float]:
        """Return baselines that need the training data and no model; empty if the data is out of reach."""
        return {}

    def remarks(self, numbers: Mapping[str, float]) -> list[str]:
        """Return what people should know about numbers, a sentence each."""
        skipped = numbers.get("num_skipped")
        return [f"rows left out, as they cannot be used: {skipped:,}"] if skipped else []

    def verdict(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence of judgement on numbers that know their intervals; "" if there are none."""
        said, ours = verdict_of(numbers, self.against), numbers.get(self.main_metric or "")
        if not said and isinstance(ours, MeasuredValue):
            return f"{self.main_metric} {ours:.3f} ({ours.margin}), {NO_BASELINE}"
        return said

    def glimpse(self, batch: Any, tokenizer: Tokenizer) -> Mapping[str, np.ndarray | str]:
        """Return what people can look at while it trains, by name: an image (uint8, (H, W, 3)) or a text that shows what the
        model makes of the first rows of an evaluation batch. Draws nothing at random and talks to no other process."""
        return {}

    def prediction_file(self, examples: Sequence[Any]) -> str:
        """Return the file that the official server takes."""
        raise NotImplementedError

    def with_settings(self, settings: TaskConfig) -> Self:
        """Return a twin with the same weights and another section."""
        twin = copy.copy(self)
        twin.settings = settings  # pyright: ignore[reportAttributeAccessIssue]
        return twin

    def seen_as(self, name: str) -> "Task[Any] | None":
        """Return these weights as another task whose heads they have; None if they lack them."""
        return None

    def routers(self, batch: Any) -> Routers:
        """Return what the experts' routers do in training's passes over an evaluation batch; for people to look at."""
        raise NotImplementedError

    # Use

    is_comparable: bool = False
    """Whether features of images and of texts compare with each other."""

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Return features of length 1, float32 (B, d), of uint8 images."""
        return F.normalize(self.alone(self.encoder.image(normalize(images_BCHW)), None), dim=1)

    def text_features(self, ids_BT: Tensor, is_padding_BT: Tensor | None) -> Tensor:
        """Return features of length 1, float32 (B, d), of token ids."""
        return F.normalize(self.alone(None, self.encoder.text(ids_BT, is_padding_BT)), dim=1)

    def alone(self, image: Tokens | None, text: Tokens | None) -> Tensor:
        """Return the state that stands for an image or for a text, (B, D)."""
        return self.encoder.cls(image, text)[0]

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.config.model.embed_dim

    def computations(self) -> dict[str, Computation]:
        """Return what the run computes, by the name of its file."""
        meaning = "of length 1; their dot product says how alike two are"
        meaning += "" if self.is_comparable else "; an image and a text do not compare"
        features = {"image_encoder": (self.image_features, PAIR[:1]), "text_encoder": (self.text_features, PAIR[1:])}
        return {
            name: Computation(inputs=inputs, output="features", meaning=meaning, compute=compute)
            for name, (compute, inputs) in features.items()
        }

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return what the heads say, by the names that transformers has for it, and with labels the `loss`.

        tensors: of pixels, right (float, (B, 3, H, W), in [-1, 1]), ids and is_padding, those that are given. Raises UserError
        for what does not fit.
        """
        raise UserError(f"the task {self.section.name} has no head")

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of each part of a training step, per row with a text of full length, matrix products only."""
        return {}


class Classifier(Task[Settings]):
    """A task whose head gives each row logits over labels, or over what is true."""

    computation: ClassVar[str]
    """What the head computes, as a file's name."""
    reads: tuple[str, ...] = PAIR
    """What `logits` takes, as `Computation.inputs`."""
    meaning: str
    """Of the logits, as `Computation.meaning`."""
    accuracy: ClassVar[str] = "acc"
    """What the log calls the mean target of the best classes."""

    def forward(self, batch: Any) -> StepOutput:
        """Return the loss over the classes plus the weighted balance loss."""
        logits_BC, routers = self.predict(batch)
        target, best_B = send(self.targets(batch), logits_BC.device), logits_BC.argmax(1)
        right_B = target == best_B if target.ndim == 1 else target.gather(1, best_B[:, None])
        losses = {self.section.name: self.loss(logits_BC, target)}
        return self.output(losses, routers, **{self.accuracy: right_B.float().mean()})

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of the tensors that `reads` names, and the routers' statistics of each pass; default: those of
        the head that `label_layer` is in, read off the [CLS]. num_real: tokens of texts that are no padding, where known."""
        assert self.label_layer is not None
        given = dict(zip(self.reads, tensors, strict=True))
        image = None if (images_BCHW := given.get("pixels")) is None else self.encoder.image(normalize(images_BCHW))
        text = None if (ids_BT := given.get("ids")) is None else self.encoder.text(ids_BT, given["is_padding"], num_real)
        cls_BD, routers = self.encoder.cls(image, text)
        return self.get_submodule(self.label_layer.rpartition(".")[0])(cls_BD), routers

    def targets(self, batch: Any) -> Tensor:
        """Return what each class of each row is worth, float32 (B, C) in [0, 1], or which is right, (B,), on the CPU. Raises
        UserError."""
        raise NotImplementedError

    def predict(self, batch: Any) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of a batch's rows, and the routers' statistics of each pass."""
        return self.logits(*(getattr(batch, FIELDS[name]) for name in self.reads), num_real=getattr(batch, "num_real", None))

    def loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of the rows; default: the cross-entropy of one class each. labels: int64 (B,), or `targets`.
        Raises UserError for labels that do not fit."""
        return F.cross_entropy(logits_BC.float(), labels.long() if labels.ndim == 1 else labels)

    def examples_of(self, batch: Any) -> list[Any]:
        """Return what the model makes of the rows of a batch."""
        raise NotImplementedError

    def glimpse(self, batch: Any, tokenizer: Tokenizer) -> Mapping[str, np.ndarray | str]:
        """Return what the model makes of the first rows."""
        return {"examples": "\n\n".join(map(str, self.examples_of(batch)[:NUM_GLIMPSED]))}

    def order(self, example: Any) -> Any:
        """Return what examples are sorted by."""
        return example.where

    @torch.no_grad()
    def examples(self, loader: Iterable[Any]) -> list[Any]:
        """Return what the model makes of the rows of all processes, sorted by `order`."""
        own = [example for batch in loader for example in self.examples_of(batch)]
        return sorted(itertools.chain(*gather_objects(own)), key=self.order)

    def routers(self, batch: Any) -> Routers:
        """Return what the routers do with the rows."""
        return self.predict(batch)[1]

    def computations(self) -> dict[str, Computation]:
        """Return what the run computes, by the name of its file."""
        head = Computation(
            inputs=self.reads, output="logits", meaning=self.meaning, compute=lambda *tensors: self.logits(*tensors)[0]
        )
        return super().computations() | {self.computation: head}

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `logits` (B, C) and with labels, as `loss` takes them, the `loss`. `pixels` may be those on the left."""
        logits_BC, routers = self.logits(*(tensors["pixels" if name == "left" else name] for name in self.reads))
        if labels is None:
            return {"logits": logits_BC}
        return {"loss": self.output({self.section.name: self.loss(logits_BC, labels)}, routers).loss, "logits": logits_BC}


def pair_tokens(config: Config) -> tuple[int, int]:
    """Return the tokens of an image, [CLS] included, and of a text of full length."""
    return 1 + config.input.num_patches, config.input.text_length
