"""The base of tasks with logits over labels.

Letters: B batch, C classes, H height, W width, T text tokens, D width.
"""

import math
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.config import Config
from eve_vl.data.batches import normalize
from eve_vl.tasks.classifier.heads import ClassifierHeads
from eve_vl.tasks.routing import Routers
from eve_vl.tasks.task import PAIR, Settings, Sizes, Task
from eve_vl.train.devices import send_to_device
from eve_vl.train.step import StepOutput

FIELDS = {
    "pixels": "images_BCHW",
    "left": "images_BCHW",
    "right": "right_BCHW",
    "ids": "ids_BT",
    "is_padding": "is_padding_BT",
}
"""The fields of a batch by the arguments of `Classifier.logits`."""


class Classifier(Task[Settings]):
    """A task whose head gives each row logits over labels.

    Labels are classes, answers, or the truth of a statement.
    """

    reads: tuple[str, ...] = PAIR
    """The arguments of `logits`, by the names in FIELDS."""
    class_names: ClassVar[tuple[str, ...]] = ()
    """Names of the logits of a task without a list of labels."""
    heads = ClassifierHeads
    is_multilabel: bool = False
    """Whether a row may have several labels, each of its own probability."""
    accuracy: ClassVar[str] = "acc"
    """The log's name for the mean target of the best classes."""

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        if self.is_multilabel:
            # each label starts as one of many: a prior of one half costs the first hundred steps
            bias: Any = self.get_submodule(self.label_layer or "").bias
            nn.init.constant_(bias, -math.log(max(len(bias) - 1, 1)))

    def forward(self, batch: Any) -> StepOutput:
        """Return the loss over the classes plus the weighted balance loss."""
        logits_BC, routers = self.predict(batch)
        target = send_to_device(self.targets(batch), logits_BC.device)
        right = targets_of(logits_BC.argmax(1), target)
        losses = {self.section.name: self.loss(logits_BC, target)}
        return self.output(losses, routers, **{self.accuracy: right.float().mean()})

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of the tensors that `reads` names, and routers.

        Default: those of the head that `label_layer` is in, read off the [CLS]. num_real: number of
        tokens that are no padding, if known.
        """
        assert self.label_layer is not None
        inputs = dict(zip(self.reads, tensors, strict=True))
        images_BCHW = inputs.get("pixels")
        ids_BT = inputs.get("ids")
        image = None
        if images_BCHW is not None:
            image = self.encoder.image(normalize(images_BCHW))
        text = None
        if ids_BT is not None:
            text = self.encoder.text(ids_BT, inputs["is_padding"], num_real)
        cls_BD, routers = self.encoder.cls(image, text)
        head = self.get_submodule(self.label_layer.rpartition(".")[0])
        return head(cls_BD), routers

    def targets(self, batch: Any) -> Tensor:
        """Return the target of each class, float32 (B, C) in [0, 1], or the right class.

        Both are on the CPU; the right class is (B,). Raises UserError.
        """
        raise NotImplementedError

    def predict(self, batch: Any) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of a batch's rows, and the routers' statistics."""
        tensors = [getattr(batch, FIELDS[name]) for name in self.reads]
        return self.logits(*tensors, num_real=getattr(batch, "num_real", None))

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the probability of each class, float32 (B, C)."""
        if self.is_multilabel:
            return logits_BC.float().sigmoid()
        return logits_BC.float().softmax(1)

    def loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the rows.

        If they have several labels, it is the sum of binary ones over labels. labels: int64 (B,),
        or `targets`.
        """
        if self.is_multilabel:
            return objectives.answer_bce(logits_BC, labels.float())
        if labels.ndim == 1:
            labels = labels.long()
        return F.cross_entropy(logits_BC.float(), labels)

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of the pass over the rows."""
        return self.predict(batch)[1]


def targets_of(class_B: Tensor, target: Tensor) -> Tensor:
    """Return the target of a class of each row, or whether it is the right one.

    target: as `Classifier.targets` returns it.
    """
    if target.ndim == 1:
        return target == class_B
    return target.gather(1, class_B[:, None])
