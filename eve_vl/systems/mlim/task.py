"""MLIM's tasks (arXiv 2109.12178).

Pre-training masks most of the image, most of the text, or little of both (modality-aware masking). The word [MASK] replaces a
masked patch, as it does in texts. Pairs of items go through one encoder, and a head compares their [CLS] states.

Letters: B batch, P patches, M masked patches or tokens, X values in a patch or channels, R rows of one kind, D width,
H height, W width of the image.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.data.batches import RowBatch, Sample, normalize
from eve_vl.data.masked_batches import MaskedImages, PairBatch
from eve_vl.data.records import Record
from eve_vl.model.backbone import Encoded
from eve_vl.model.encoder import Encoder
from eve_vl.model.heads import SiameseHead
from eve_vl.model.patches import gather_patches, patchify
from eve_vl.model.tokens import Tokens
from eve_vl.systems.mlim.config import MlimConfig, PairConfig
from eve_vl.systems.mlim.item_rows import ItemBatch, ItemRows
from eve_vl.tasks.classifier.heads import ClassifierHeads
from eve_vl.tasks.classifier.task import FIELDS, Classifier
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.masked_signal.task import MaskedSignalTask, mean_count
from eve_vl.tasks.task import Routers
from eve_vl.train.step import StepOutput

ITEM_FIELDS = FIELDS | {"right_ids": "right_ids_BT", "right_is_padding": "right_is_padding_BT"}
"""Fields of an `ItemBatch` by the argument of `ItemPairs.logits`."""
GROWING = (512, 256, 96, 48, 32, 16, 16)
"""Channels after each doubling of the sides; fewer doublings take the last ones."""
REFINING = (32, 32, 3)
"""Channels after each 3 × 3 convolution at the image's size."""


class ConvDecoder(nn.Sequential):
    """Decoder of whole images.

    Transposed 2 × 2 convolutions of stride 2 lead up to pixels, then 3 × 3 convolutions and a sigmoid. GELU stands between all.
    2,763,123 parameters at width 1,024 and seven doublings.
    """

    def __init__(self, embed_dim: int, patch_size: int):
        """patch_size: a power of 2, at most 128."""
        doublings = patch_size.bit_length() - 1
        growing = (embed_dim, *GROWING[len(GROWING) - doublings :])
        layers = [nn.ConvTranspose2d(*pair, 2, 2) for pair in pairwise(growing)]
        layers += [nn.Conv2d(*pair, 3, padding=1) for pair in pairwise((growing[-1], *REFINING))]
        super().__init__(
            *[part for layer in layers for part in (layer, nn.GELU())][:-1], nn.Sigmoid()
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Decode states of patches (B, P, D) to pixels in [0, 1] (B, 3, H, W)."""
        side = round(input.shape[1] ** 0.5)
        return super().forward(input.mT.unflatten(2, (side, side)))


class BatchByMask(RowBatch):
    """Pairs by masked side: the image, the text or both; None: no rows.

    Within a part, each row has the same number of masked patches.
    """

    image: PairBatch | None = None
    text: PairBatch | None = None
    both: PairBatch | None = None
    num_tokens: Tensor | None = None
    """Denominator of the masked-token loss, float32 scalar; None: the number of masked tokens in this batch."""
    num_patches: Tensor | None = None
    """Denominator of the loss of patches, likewise."""

    @property
    def parts(self) -> list[PairBatch]:
        """The parts that have rows."""
        return [part for part in (self.image, self.text, self.both) if part is not None]


class AwareMasks(MaskedPairs):
    """Pairs with MLIM's masks.

    Training masks most of the image, most of the text, or little of both, a third each. Evaluation always masks little of both.
    """

    by_mask = BatchByMask
    """Batch of training, by which FLOPs are counted."""

    def sample(self, row: Record, rng: np.random.Generator) -> Sample:
        """Return one pair with its masks. Raises BadSampleError."""
        task = cast(MlimConfig, self.config.task)
        ratios = task.hidden_shares()
        hides = list(ratios)[int(rng.integers(len(ratios)))] if self.training else "both"
        sample = self.masked(row, "image_text", *ratios[hides], rng)
        sample.hides = hides
        return sample

    def collate(self, samples: Sequence[Sample]) -> RowBatch:
        """Return the batch of some samples; in training, split by which side is masked."""
        if not self.training:
            return super().collate(samples)
        parts: dict[str, Any] = {}
        for hides in dict.fromkeys(sample.hides for sample in samples):
            parts[hides] = super().collate([sample for sample in samples if sample.hides == hides])
        skipped = sum((sample.skipped for sample in samples), ())
        return BatchByMask(
            where=tuple(sample.where for sample in samples), skipped=skipped, **parts
        )


class Mlim(MaskedSignalTask[MlimConfig]):
    """MLIM's pre-training; `mim` is its loss RECON."""

    section = MlimConfig
    dataset = AwareMasks

    def build(self) -> None:
        """Build the token head and the decoder."""
        super().build()
        self.passes_vary = (
            self.settings.masking == "aware"
        )  # one for each kind of masks among a process's rows

    def build_decoder(self) -> ConvDecoder:
        """Return the untrained decoder of whole images."""
        return ConvDecoder(self.config.model.embed_dim, self.config.input.patch_size)

    def before_step(self, micro_batches: list[BatchByMask]) -> list[Any]:
        """Set each micro-batch's mean numbers of masked tokens and of patches.

        They are means of the step.
        """
        parts = [part for batch in micro_batches for part in batch.parts]
        tokens = sum(len(part.places()) for part in parts)
        patches = sum(len(part.where) for part in parts) * self.config.input.num_patches
        counts_2 = torch.tensor(
            [tokens, patches], dtype=torch.float32, device=next(self.parameters()).device
        )
        num_tokens, num_patches = mean_count(counts_2, len(micro_batches))
        counted = [
            dataclasses.replace(batch, num_tokens=num_tokens, num_patches=num_patches)
            for batch in micro_batches
        ]
        return super().before_step(counted)

    def forward(self, batch: BatchByMask) -> StepOutput:
        """Return the sum of both losses; a loss without rows is 0.

        task.mlm_weight and task.mim_weight weigh them. Rows with the same number of masked patches go through the encoder
        together.
        """
        if batch.num_tokens is None or batch.num_patches is None:
            (batch,) = self.before_step([batch])
        assert batch.num_tokens is not None and batch.num_patches is not None
        zero, routers = batch.num_tokens.new_zeros(()), []
        mlm, mim, num_right = zero, zero, zero
        for part in batch.parts:
            encoded = self.encode(part, keep=True, mask=True)
            routers += encoded.routers
            logits_MV, targets_M = self.predict_tokens(encoded, part), part.targets()
            mlm = mlm + objectives.masked_tokens(logits_MV, targets_M, batch.num_tokens)
            num_right = num_right + (logits_MV.argmax(-1) == targets_M).sum()
            mim = mim + self.squared_errors(encoded, part).sum() / batch.num_patches
        return self.output({"mim": mim, "mlm": mlm}, routers, mlm_acc=num_right / batch.num_tokens)

    def squared_errors(self, encoded: Encoded, batch: MaskedImages) -> Tensor:
        """Return the squared errors of all patches, masked or not, float32 (B, P).

        Pixels are in [0, 1]; errors are summed over colours and averaged over a patch.
        """
        error_BPX = self.painted(encoded).float() - self.patches(batch)
        return 3 * (error_BPX / 2).square().mean(2)  # our pixels are in [-1, 1]

    def painted(self, encoded: Encoded) -> Tensor:
        """Return reconstructed images as patches (B, P, X) in [-1, 1]."""
        P = self.config.input.num_patches
        pixels_BCHW = self.pixel_decoder(encoded.x_BND[:, 1 : 1 + P])
        return patchify(pixels_BCHW, self.config.input.patch_size) * 2 - 1

    def predict_pixels(self, encoded: Encoded, batch: MaskedImages) -> Tensor:
        """Return the reconstructed masked patches (B, M, X) in [-1, 1]."""
        return gather_patches(self.painted(encoded), batch.hidden_BM)

    def embed_images(self, batch: MaskedImages) -> Tokens:
        """Embed images with the word [MASK] in place of masked patches."""
        assert isinstance(self.encoder, Encoder)
        word_BMD = self.encoder.text.without_positions(
            torch.full_like(batch.hidden_BM, self.sizes.mask_id)
        )
        return self.encoder.image(batch.pixels(), replacement=(batch.hidden_BM, word_BMD))

    def routers(self, batch: Any) -> Routers:
        """Return the router statistics with few patches and tokens masked."""
        return self.encode(batch, keep=True, mask=True).routers


class ItemPairs(Classifier[PairConfig]):
    """Comparison of two items: encoder and siamese head."""

    section = PairConfig
    dataset = ItemRows
    class_names = ("not the same", "the same")
    reads = ("left", "right", "ids", "is_padding", "right_ids", "right_is_padding")

    def build(self) -> None:
        """Build the head that compares two items."""
        self.passes_vary = self.settings.modality_dropout  # a batch may show no images, or no texts
        self.find_unused_parameters |= self.passes_vary
        self.compare_head = SiameseHead(self.config.model.embed_dim)

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, 2), class 1 = the same, and router statistics per pass."""
        (left_BD, right_BD), routers = self.states(tensors, "image_text")
        return self.compare_head(left_BD, right_BD), routers

    def states(self, tensors: Sequence[Any], shown: str) -> tuple[Tensor, Routers]:
        """Return the [CLS] states of both items, (2, B, D), and router statistics.

        tensors: those that `reads` names. shown: image_text, image or text.
        """
        left_BCHW, right_BCHW, *texts = tensors
        states, routers = [], []
        for images_BCHW, ids_BT, is_padding_BT in (
            (left_BCHW, *texts[:2]),
            (right_BCHW, *texts[2:]),
        ):
            image = None if shown == "text" else self.encoder.image(normalize(images_BCHW))
            text = None if shown == "image" else self.encoder.text(ids_BT, is_padding_BT)
            cls_BD, of_pass = self.encoder.cls(image, text)
            states.append(cls_BD)
            routers += of_pass
        return torch.stack(states), routers

    def predict(self, batch: ItemBatch) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of a batch's pairs as shown, and router statistics."""
        tensors = [getattr(batch, ITEM_FIELDS[name]) for name in self.reads]
        states, order, routers = [], [], []
        for kind in dict.fromkeys(batch.shown):
            rows = [row for row, shown in enumerate(batch.shown) if shown == kind]
            row_R = torch.tensor(rows, device=batch.ids_BT.device)
            states_2RD, of_passes = self.states(
                [each if each is None else each.index_select(0, row_R) for each in tensors], kind
            )
            states.append(states_2RD)
            order.append(row_R)
            routers += of_passes
        left_BD, right_BD = torch.cat(states, dim=1)[:, torch.cat(order).argsort()]
        return self.compare_head(left_BD, right_BD), routers

    def targets(self, batch: ItemBatch) -> Tensor:
        """Return the class of each pair, bool (B,) on the CPU."""
        return torch.tensor(batch.labels)


class PairHeads(ClassifierHeads):
    """The head that compares two items."""

    section, name = PairConfig, "comparer"
