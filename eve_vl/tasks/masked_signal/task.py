"""Pre-training by masked signal modelling.

Masked pixels or tokens are reconstructed from the rest and the other modality. Source: the paper's
"Pre-training Task"; masking ratios from its Fig. 4, the joint-masking ablation from its Table 5.
Rows of images only or of texts only (`data.modality`) train one of the two, for pre-training in
stages.

Letters: B batch, P patches, K kept patches, M masked patches or masked tokens, T text tokens, N all
tokens, D width, X values in a patch, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.data.masked_batches import MaskedImages, MaskedTexts, PairBatch
from eve_vl.model.backbone import Encoded
from eve_vl.model.heads import TokenHead
from eve_vl.model.patches import gather_patches, gray_out, patchify, scatter_patches, to_images
from eve_vl.model.pixel_decoder import PixelDecoder
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.routing import Routers
from eve_vl.tasks.task import Losses, Task
from eve_vl.train.processes import sum_over_processes, world_size
from eve_vl.train.step import StepOutput

MaskedBatch = PairBatch | MaskedImages | MaskedTexts
Settings = TypeVar("Settings", bound=MaskedSignalConfig)


class MaskedSignalTask(Task[Settings]):
    """Encoder, token head and pixel decoder with their losses.

    Subclasses add losses of their own.
    """

    dataset = MaskedPairs

    def build(self) -> None:
        """Build the token head and the pixel decoder."""
        model = self.config.model
        self.find_unused_parameters |= self.config.data.modality != "image_text"
        if self.settings.mlm_weight:
            self.token_head = TokenHead(model.embed_dim, self.sizes.vocab_size, model.text_norm_eps)
        if self.settings.mim_weight:
            self.pixel_decoder = self.build_decoder()
        super().build()

    def build_decoder(self) -> Any:
        """Return the untrained decoder from states to pixels."""
        return PixelDecoder(
            self.config.model.embed_dim,
            self.config.input.patch_dim,
            self.config.model.block,
            depth=self.settings.decoder_depth,
            dim=self.settings.decoder_dim,
            num_heads=self.settings.decoder_num_heads,
        )

    def before_step(self, micro_batches: list[Any]) -> list[Any]:
        """Give each micro-batch the step's mean number of masked tokens."""
        if isinstance(micro_batches[0], MaskedTexts):
            mean = mean_masked(micro_batches)
            micro_batches = [
                dataclasses.replace(batch, num_targets=mean) for batch in micro_batches
            ]
        return super().before_step(micro_batches)

    # losses

    def masked_losses(self, batch: MaskedBatch) -> Losses:
        """Return the losses `mim` and `mlm`, scalars for the log, and routers.

        A loss without a weight, or without rows for it, is left out.
        """
        joint = None
        if self.settings.joint_masking:
            joint = self.encode(batch, keep=True, mask=True)
        losses = Losses()
        if self.settings.mim_weight and isinstance(batch, MaskedImages):
            losses.add(self.pixel_losses(batch, joint))
        if self.settings.mlm_weight and isinstance(batch, MaskedTexts):
            losses.add(self.token_losses(batch, joint))
        return losses

    def pixel_losses(self, batch: MaskedImages, joint: Encoded | None) -> Losses:
        """Return the loss of masked patches (`mim`).

        joint: states that masked both modalities; None: the text is visible, and in training only
        task.mim_share of the rows count.
        """
        if joint is None and self.training:
            batch = batch.first(math.ceil(self.settings.mim_share * len(batch.hidden_BM)))
        encoded = joint or self.encode_for_pixels(batch)
        target_BMX = gather_patches(self.targets(self.patches(batch)), batch.hidden_BM)
        loss = objectives.masked_pixels(self.predict_pixels(encoded, batch), target_BMX)
        return Losses({"mim": loss}, routers=encoded.routers)

    def token_losses(self, batch: MaskedTexts, joint: Encoded | None) -> Losses:
        """Return the loss of masked tokens (`mlm`) and the share of right guesses.

        joint: states that masked both modalities, whose routers count for `mim`; None: the image is
        visible.
        """
        routers: Routers = []
        if joint is None:
            image, text = self.embed(batch, mask=True)
            states_MD, routers = self.encoder.for_tokens(image, text, batch.places())
            logits_MV = self.token_head(states_MD)
        else:
            logits_MV = self.predict_tokens(joint, batch)
        targets_M = batch.targets()
        num_targets = batch.num_targets
        if num_targets is None:
            num_targets = mean_masked([batch])
        loss = objectives.masked_tokens(logits_MV, targets_M, num_targets)
        accuracy = (logits_MV.argmax(-1) == targets_M).sum() / num_targets
        return Losses({"mlm": loss}, {"mlm_acc": accuracy}, routers)

    # passes

    def embed(
        self, batch: MaskedBatch, *, keep: bool = False, mask: bool = False
    ) -> tuple[Tokens | None, Any]:
        """Embed a batch.

        `keep`: only the kept patches. `mask`: [MASK] for masked tokens.
        """
        image = None
        text = None
        if isinstance(batch, MaskedImages):
            image = self.embed_images(batch) if keep else self.encoder.image(batch.pixels())
        if isinstance(batch, MaskedTexts):
            ids_BT = self.with_masked_tokens(batch) if mask else batch.ids_BT
            text = self.encoder.text(ids_BT, batch.is_padding_BT, batch.num_real)
        return image, text

    def embed_images(self, batch: MaskedImages) -> Tokens:
        """Embed the kept patches of images."""
        return self.encoder.image(batch.pixels(), batch.keep_BK)

    def encode(self, batch: MaskedBatch, *, keep: bool = False, mask: bool = False) -> Encoded:
        """Embed and encode a batch; see `embed`."""
        image, text = self.embed(batch, keep=keep, mask=mask)
        return self.encoder.encode(image, text)

    def encode_for_pixels(self, batch: MaskedBatch) -> Encoded:
        """Return the states that masked patches are predicted from."""
        image, text = self.embed(batch, keep=True, mask=self.settings.joint_masking)
        assert image is not None
        return self.encoder.for_pixels(image, text)

    def with_masked_tokens(self, batch: MaskedTexts) -> Tensor:
        """Return the ids (B, T) with [MASK] for masked tokens.

        In training a share of task.mask_replace_prob keeps its token or gets a wrong one, half of
        the share each.
        """
        share = self.settings.mask_replace_prob if self.training else 0.0
        if not share:
            return batch.ids_BT.masked_fill(batch.is_masked_BT, self.sizes.mask_id)
        true_M = batch.targets()
        draw_M = torch.rand(true_M.shape, device=true_M.device)
        if self.settings.mask_replace_source == "batch":
            wrong_M = true_M[torch.randperm(len(true_M), device=true_M.device)]
        else:
            wrong_M = torch.randint(self.sizes.vocab_size, true_M.shape, device=true_M.device)
        token_M = true_M.where(draw_M < share / 2, wrong_M)
        token_M = token_M.masked_fill(draw_M >= share, self.sizes.mask_id)
        return batch.ids_BT.masked_scatter(batch.is_masked_BT, token_M)

    def predict_pixels(self, encoded: Encoded, batch: MaskedImages) -> Tensor:
        """Return the masked patches (B, M, X) in the space of the targets."""
        return self.pixel_decoder(encoded, batch.keep_BK, batch.hidden_BM)

    def predict_tokens(self, encoded: Encoded, batch: MaskedTexts) -> Tensor:
        """Return logits (M, V) of the masked tokens, in the order of batch.is_masked_BT."""
        states_MD = encoded.text_BTD.flatten(0, 1).index_select(0, batch.places())
        return self.token_head(states_MD)

    def routers(self, batch: MaskedBatch) -> Routers:
        """Return the routers' statistics of each pass that masks.

        If training masks nothing, they are of one pass over the whole rows.
        """
        if self.settings.joint_masking:
            return self.encode(batch, keep=True, mask=True).routers
        masks_image = bool(self.settings.mim_weight) and isinstance(batch, MaskedImages)
        masks_text = bool(self.settings.mlm_weight) and isinstance(batch, MaskedTexts)
        routers: Routers = []
        if masks_image:
            routers += self.encode(batch, keep=True).routers
        if masks_text:
            routers += self.encode(batch, mask=True).routers
        if not masks_image and not masks_text:
            routers += self.encode(batch).routers
        return routers

    # pixels

    def patches(self, batch: MaskedImages) -> Tensor:
        """Return the patches of the images (B, P, X), in [-1, 1]."""
        return patchify(batch.pixels(), self.config.input.patch_size)

    def targets(self, patches_BPX: Tensor) -> Tensor:
        """Return the target of each patch: its pixels, raw or normalised per patch."""
        if not self.settings.normalize_targets:
            return patches_BPX
        mean, std = objectives.patch_statistics(patches_BPX)
        return (patches_BPX - mean) / std

    def reconstruct(self, batch: MaskedImages) -> Tensor:
        """Return the patches (B, P, X) with the masked ones predicted.

        If targets are normalised per patch, predictions are scaled back with the masked patches'
        true mean and standard deviation, as in the figures of MAE.
        """
        patches_BPX = self.patches(batch)
        predicted_BMX = self.predict_pixels(self.encode_for_pixels(batch), batch)
        if self.settings.normalize_targets:
            mean, std = objectives.patch_statistics(gather_patches(patches_BPX, batch.hidden_BM))
            predicted_BMX = predicted_BMX * std + mean
        return scatter_patches(patches_BPX, batch.hidden_BM, predicted_BMX)

    def reconstructions(self, batch: MaskedImages) -> dict[str, list[np.ndarray]]:
        """Return images as they are, masked in grey, and reconstructed, by name.

        All are uint8 (H, W, 3).
        """
        patches_BPX = self.patches(batch)
        patch_size = self.config.input.patch_size
        return {
            "original": to_images(patches_BPX, patch_size),
            "masked": to_images(gray_out(patches_BPX, batch.hidden_BM), patch_size),
            "reconstructed": to_images(self.reconstruct(batch), patch_size),
        }


class MaskedSignal(MaskedSignalTask[MaskedSignalConfig]):
    """EVE's pre-training."""

    section = MaskedSignalConfig

    def forward(self, batch: MaskedBatch) -> StepOutput:
        """Return the weighted sum of the losses.

        Weights: task.mim_weight, task.mlm_weight, the model's balance weight.
        """
        masked = self.masked_losses(batch)
        return self.output(masked.losses, masked.routers, **masked.terms)


def mean_masked(micro_batches: Sequence[MaskedTexts]) -> Tensor:
    """Return the mean number of masked tokens per micro-batch, float32 scalar.

    The mean is over all processes, and the total is at least 1. Losses are divided by it. Gradients
    averaged over micro-batches and processes are then those of the whole batch.
    """
    counts = torch.stack([batch.is_masked_BT.sum().float() for batch in micro_batches])
    return mean_count(counts.sum(), len(micro_batches))


def mean_count(count: Tensor, num_micro_batches: int) -> Tensor:
    """Return the mean per micro-batch of counts over all processes.

    The total is at least 1. count: of this process, float32.
    """
    return sum_over_processes(count).clamp(min=1) / (world_size() * num_micro_batches)
