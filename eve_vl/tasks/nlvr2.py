"""NLVR2: is a statement true of two pictures? Each picture is paired with the statement; a head reads both pairs.

Letters: B batch, N all tokens, D width.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.config import Config, NLVR2Config
from eve_vl.data.batch import StatementBatch, normalize
from eve_vl.data.downstream import Statements
from eve_vl.metrics import nlvr2 as metrics
from eve_vl.model.embed import Tokens, pair, patchify
from eve_vl.model.encoder import Encoder, initialize
from eve_vl.model.heads import CompareHead, MLPHead, PairedAttentionHead
from eve_vl.model.moe import RouterStats
from eve_vl.tasks.contrast import pick
from eve_vl.tasks.routing import routing_terms
from eve_vl.train.distributed import gather_objects
from eve_vl.train.trainer import StepOutput


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A statement with the model's verdict and the true label (None where it is kept back)."""

    statement: str
    identifier: str
    verdict: bool
    probability: float
    """Of being true."""
    label: bool | None
    group: str
    where: str


class NLVR2(nn.Module):
    """The task: encoder and one of three heads."""

    dataset = Statements
    main_metric = "nlvr2_acc"

    def __init__(self, config: Config, *, vocab_size: int):
        super().__init__()
        assert isinstance(config.task, NLVR2Config)
        self.config, self.settings = config, config.task
        self.encoder = Encoder(config.model, vocab_size)
        D = config.model.embed_dim
        match self.settings.head:
            case "concat":
                self.concat_head = MLPHead(2 * D, 2 * D, 2)
            case "compare":
                self.compare_head = CompareHead(D)
            case "paired":
                self.paired_head = PairedAttentionHead(D, config.model.num_heads)
        initialize(self, config.model)

    def forward(self, batch: StatementBatch) -> StepOutput:
        """Return the loss over the two classes plus the weighted balance loss."""
        logits_B2, routers = self.predict(batch)
        label_B = torch.tensor(batch.labels, device=logits_B2.device)
        loss = objectives.matching(logits_B2, label_B)
        accuracy = (logits_B2.argmax(1) == label_B).float().mean()
        terms = {"nlvr2": loss, "acc": accuracy, **routing_terms(routers)}
        if "balance" in terms:
            loss = loss + self.config.model.balance_weight * terms["balance"]
        return StepOutput(loss=loss, terms=terms)

    def predict(self, batch: StatementBatch) -> tuple[Tensor, list[list[RouterStats]]]:
        """Return logits (B, 2), class 1 = true, and the routers' statistics of each pass."""
        B = len(batch.ids_BT)
        pixels = torch.cat([batch.pixels(), normalize(batch.right_BCHW)])
        image = self.encoder.image(patchify(pixels, self.config.input.patch_size))
        text = self.encoder.text(batch.ids_BT, batch.is_padding_BT)
        tokens: Tokens = pair(image, pick(text, torch.arange(B, device=pixels.device).repeat(2)))
        x_BND, routers = self.encoder.encode_parts(tokens, 2)
        left_BND, right_BND = x_BND.unflatten(0, (2, B))
        left_BD, right_BD = left_BND[:, image.num_image], right_BND[:, image.num_image]
        match self.settings.head:
            case "concat":
                logits_B2 = self.concat_head(torch.cat([left_BD, right_BD], dim=1))
            case "compare":
                logits_B2 = self.compare_head(left_BD, right_BD)
            case "paired":
                is_padding_BN = None if tokens.is_padding_BN is None else tokens.is_padding_BN[:B]
                logits_B2 = self.paired_head(left_BND, right_BND, is_padding_BN)
        return logits_B2, routers

    @torch.no_grad()
    def judge(self, loader: Iterable[StatementBatch]) -> list[Judged]:
        """Judge the statements of all processes, in order of identifier."""
        found: list[Judged] = []
        for batch in loader:
            probability_B = self.predict(batch)[0].float().softmax(1)[:, 1]
            for row, probability in enumerate(probability_B.tolist()):
                found.append(
                    Judged(
                        statement=batch.statements[row],
                        identifier=batch.identifiers[row],
                        verdict=probability > 0.5,
                        probability=probability,
                        label=batch.labels[row],
                        group=batch.groups[row],
                        where=batch.where[row],
                    )
                )
        return sorted(itertools.chain(*gather_objects(found)), key=lambda judged: (judged.identifier, judged.where))

    def evaluate(self, loader: Iterable[StatementBatch]) -> dict[str, float]:
        """Return the numbers of `metrics.nlvr2` over all processes; deterministic."""
        return self.numbers(self.judge(loader))

    def numbers(self, judged: Sequence[Judged]) -> dict[str, float]:
        """Return the numbers of judged statements."""
        return metrics.summary(
            [each.verdict for each in judged], [each.label for each in judged], [each.group for each in judged]
        )
