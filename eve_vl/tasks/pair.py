"""Are two items, each an image with a text, the same? The encoder reads each with the same weights, a head compares the two
[CLS] states (MLIM).

Training may leave out the images or the texts of both items (modality dropout), so that neither is leant on alone; evaluation
shows both, and tells how each does alone.

Letters: B batch, R rows of one kind, D width.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config, PairConfig
from eve_vl.data.batch import normalize
from eve_vl.data.kinds.pairs import ItemBatch, ItemRows
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import pair as metrics
from eve_vl.model.encoder import initialize
from eve_vl.model.heads import SiameseHead
from eve_vl.tasks.task import FIELDS, Classifier, Routers, Sizes, pair_tokens

SHOWN = {"pr_auc": "image_text", "pr_auc_images": "image", "pr_auc_texts": "text"}
"""What evaluation shows of the items, by the number that it makes."""


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """A pair of items with the probabilities of being the same, by the number that they make (SHOWN), and the true label (None
    where it is kept back)."""

    probabilities: Mapping[str, float]
    captions: tuple[str, str]
    label: bool | None
    where: str
    name: str = ""

    @property
    def probability(self) -> float:
        """That of whole items."""
        return self.probabilities[metrics.MAIN]

    @property
    def is_same(self) -> bool:
        """What the model says."""
        return self.probability > 0.5


class ItemPairs(Classifier[PairConfig]):
    """The task: encoder and the head that compares."""

    section = PairConfig
    dataset, scored = ItemRows, "pair_acc"
    main_metric = metrics.MAIN
    against = (
        Baseline("pr_auc", "pair", "pr_auc_chance", "a blind guess"),
        Baseline("pr_auc", "pair", "pr_auc_images", "of the images alone", "uses the texts"),
        Baseline("pr_auc", "pair", "pr_auc_texts", "of the texts alone", "uses the images"),
    )
    class_names = ("not the same", "the same")
    has_prediction_file = True
    computation = "comparer"
    reads = ("left", "right", "ids", "is_padding", "right_ids", "right_is_padding")
    meaning = "not the same, the same; their softmax is the probability"

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.find_unused_parameters = self.settings.modality_dropout  # a batch may show no images, or no texts
        self.compare_head = SiameseHead(config.model.embed_dim)
        initialize(self, config.model)

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, 2), class 1 = the same, and the routers' statistics of each pass."""
        (left_BD, right_BD), routers = self.states(tensors, "image_text")
        return self.compare_head(left_BD, right_BD), routers

    def states(self, tensors: Sequence[Tensor], shown: str) -> tuple[Tensor, Routers]:
        """Return the [CLS] states of both items, (2, B, D), and the routers' statistics of each pass. tensors: what `reads`
        names. shown: pairs of images and texts, images alone or texts alone."""
        left_BCHW, right_BCHW, *texts = tensors
        states, routers = [], []
        for images_BCHW, ids_BT, is_padding_BT in ((left_BCHW, *texts[:2]), (right_BCHW, *texts[2:])):
            image = None if shown == "text" else self.encoder.image(normalize(images_BCHW))
            text = None if shown == "image" else self.encoder.text(ids_BT, is_padding_BT)
            cls_BD, of_pass = self.encoder.cls(image, text)
            states.append(cls_BD)
            routers += of_pass
        return torch.stack(states), routers

    def predict(self, batch: ItemBatch) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of a batch's pairs as they are shown, and the routers' statistics of each pass."""
        tensors = [getattr(batch, FIELDS[name]) for name in self.reads]
        states, order, routers = [], [], []
        for kind in dict.fromkeys(batch.shown):
            rows = [row for row, shown in enumerate(batch.shown) if shown == kind]
            row_R = torch.tensor(rows, device=batch.ids_BT.device)
            states_2RD, of_passes = self.states([tensor.index_select(0, row_R) for tensor in tensors], kind)
            states.append(states_2RD)
            order.append(row_R)
            routers += of_passes
        left_BD, right_BD = torch.cat(states, dim=1)[:, torch.cat(order).argsort()]
        return self.compare_head(left_BD, right_BD), routers

    def targets(self, batch: ItemBatch) -> Tensor:
        """Return the class of each pair, bool (B,) on the CPU."""
        return torch.tensor(batch.labels)

    def examples_of(self, batch: ItemBatch) -> list[PairExample]:
        """Compare the items of a batch, whole and by images or texts alone."""
        found: dict[str, list[float]] = {}
        for name, shown in SHOWN.items():
            logits_B2, _ = self.predict(dataclasses.replace(batch, shown=(shown,) * len(batch.where)))
            found[name] = logits_B2.float().softmax(1)[:, 1].tolist()
        rows = zip(batch.rows(), *found.values(), strict=True)
        return [PairExample(probabilities=dict(zip(found, values, strict=True)), **row) for row, *values in rows]

    def numbers(self, examples: Sequence[PairExample]) -> dict[str, float]:
        """Return the numbers of `metrics.pair`."""
        probabilities = {name: [each.probabilities[name] for each in examples] for name in SHOWN}
        return metrics.summary(probabilities, [each.label for each in examples])

    def row_scores(self, examples: Sequence[PairExample]) -> dict[str, float]:
        """Return whether each pair that has a label is told right."""
        return {each.name: float(each.is_same == each.label) for each in examples if each.label is not None}

    def prediction_file(self, examples: Sequence[PairExample]) -> str:
        """Return a JSON line for each pair: its name, whether its items are the same and how probable that is."""
        lines = ({"row": each.where, "same": each.is_same, "probability": each.probability} for each in examples)
        return "".join(json.dumps(line) + "\n" for line in lines)

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of a step, of modality dropout on average."""
        num_image, num_text = pair_tokens(self.config)
        sizes = [(num_image, num_text), *[(num_image, 0), (0, num_text)] * self.settings.modality_dropout]
        return {"two items": 2 * sum(self.encoder.flops(*size, "cls") for size in sizes) / len(sizes)}
