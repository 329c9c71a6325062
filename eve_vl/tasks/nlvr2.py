"""NLVR2: is a statement true of two images? Each image is paired with the statement; a head reads both pairs.

Letters: B batch, N all tokens, D width.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.config import Config, NLVR2Config
from eve_vl.data.batch import normalize
from eve_vl.data.kinds.pairs import StatementBatch, StatementRows
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import nlvr2 as metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.model.embeddings import index_tokens
from eve_vl.model.encoder import initialize
from eve_vl.model.heads import MLPHead, PairedAttentionHead, SiameseHead
from eve_vl.tasks.task import Classifier, PublishedHead, Routers, Sizes, pair_tokens

PAIRED_HEAD_WIDTH = 64  # of an attention head of the paired head, where the backbone does not say
PAIRED = {
    "attend_right": "attn1",
    "attend_left": "attn2",
    "fuse.0": "fc.0",
    "score": "attn_pool.fc.0",
    "classify": "nlvr2_output",
}
ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
PUBLISHED = {
    "concat": {f"concat_head.{n}.{kind}": f"output.{n}.{kind}" for n in (0, 1, 3) for kind in ("weight", "bias")},
    "paired": {
        f"paired_head.{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs in PAIRED.items()
        for part in (ATTENTION if ours.startswith("attend") else ("weight", "bias"))
    },
}
"""Published names of both heads."""


def _published_settings(tensors: Mapping[str, Tensor], width: int) -> NLVR2Config | None:
    """Return the section of a checkpoint whose head is one of the two; VQA's is called `output` too, but reads one state."""
    if "nlvr2_output.weight" in tensors:
        return NLVR2Config(head="paired")
    reads_two = "output.0.weight" in tensors and tensors["output.0.weight"].shape[1] != width
    return NLVR2Config(head="concat") if reads_two else None


@dataclass(frozen=True, kw_only=True)
class NLVR2Example:
    """A statement with the model's verdict and the true label (None where it is kept back)."""

    statement: str
    identifier: str
    verdict: bool
    probability: float
    """Of being true."""
    label: bool | None
    group: str
    where: str
    name: str = ""


class NLVR2(Classifier[NLVR2Config]):
    """The task: encoder and one of three heads."""

    section = NLVR2Config
    dataset = StatementRows
    main_metric = "nlvr2_acc"
    against = (Baseline("nlvr2_acc", "pair", 0.5, "chance"),)
    class_names = ("False", "True")
    has_prediction_file = True
    published_head = PublishedHead(
        keys=lambda task: None if task.second_image_type_embedding else PUBLISHED.get(task.head),
        settings=_published_settings,
        words=40,
    )
    computation = "verify"
    reads = ("left", "right", "ids", "is_padding")
    meaning = "false, true; their softmax is the probability"

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        D, width = self.encoder.pair_dim, config.model.embed_dim
        match self.settings.head:
            case "concat":
                self.concat_head = MLPHead(2 * D, 2 * D, 2)
            case "compare":
                self.compare_head = SiameseHead(D)
            case "paired":
                num_heads = getattr(config.model, "num_heads", max(width // PAIRED_HEAD_WIDTH, 1))
                self.paired_head = PairedAttentionHead(width, num_heads)
        if self.settings.second_image_type_embedding:
            self.right_bias = nn.Parameter(torch.empty(width))  # what its type has beyond the left one's
        initialize(self, config.model)

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, 2), class 1 = true, and the routers' statistics of each pass."""
        left_BCHW, right_BCHW, ids_BT, is_padding_BT = tensors
        B = ids_BT.shape[0]
        image = self.encoder.image(torch.cat([normalize(left_BCHW), normalize(right_BCHW)]))
        if self.settings.second_image_type_embedding:
            image.x_BND = torch.cat([image.x_BND[:B], image.x_BND[B:] + self.right_bias])
        text = index_tokens(self.encoder.text(ids_BT, is_padding_BT), torch.arange(B, device=ids_BT.device).repeat(2))
        text.num_real = None if num_real is None else 2 * num_real
        if self.settings.head == "paired":
            encoded = self.encoder.encode(image, text, num_passes=2)
            left_BND, right_BND = encoded.x_BND.unflatten(0, (2, -1))
            is_padding_BN = None if encoded.is_padding_BN is None else encoded.is_padding_BN[:B]
            return self.paired_head(left_BND, right_BND, is_padding_BN), encoded.routers
        cls_XD, routers = self.encoder.cls(image, text, num_passes=2)
        left_BD, right_BD = cls_XD.unflatten(0, (2, -1))
        if self.settings.head == "compare":
            return self.compare_head(left_BD, right_BD), routers
        return self.concat_head(torch.cat([left_BD, right_BD], dim=1)), routers

    def targets(self, batch: StatementBatch) -> Tensor:
        """Return the class of each row, bool (B,) on the CPU."""
        return torch.tensor(batch.labels)

    def examples_of(self, batch: StatementBatch) -> list[NLVR2Example]:
        """Judge the statements of a batch."""
        probability_B = self.predict(batch)[0].float().softmax(1)[:, 1]
        return [
            NLVR2Example(verdict=probability > 0.5, probability=probability, **row)
            for row, probability in zip(batch.rows(), probability_B.tolist(), strict=True)
        ]

    def order(self, example: NLVR2Example) -> Any:
        """Sort by identifier."""
        return example.identifier, example.where

    def numbers(self, examples: Sequence[NLVR2Example]) -> dict[str, float]:
        """Return the numbers of `metrics.nlvr2`."""
        return metrics.summary(
            [each.verdict for each in examples], [each.label for each in examples], [each.group for each in examples]
        )

    def row_scores(self, examples: Sequence[NLVR2Example]) -> dict[str, float]:
        """Return whether each pair that has a label is judged right; those of one statement belong together."""
        known = [each for each in examples if each.label is not None]
        return {f"{each.name}{GROUP}{each.group or each.name}": float(each.verdict == each.label) for each in known}

    def prediction_file(self, examples: Sequence[NLVR2Example]) -> str:
        """Return the CSV that NLVR2's evaluation takes: identifier and True or False, no header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((each.identifier, each.verdict) for each in examples)
        return text.getvalue()

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of a step."""
        reads = "all" if self.settings.head == "paired" else "cls"
        return {"two fusion passes": 2 * self.encoder.flops(*pair_tokens(self.config), reads)}
