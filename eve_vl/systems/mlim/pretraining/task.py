"""MLIM's pre-training (arXiv 2109.12178).

It masks most of the image, most of the text, or little of both (modality-aware masking). The word
[MASK] replaces a masked patch, as it does in texts.

Letters: B batch, P patches, M masked patches or tokens, X values in a patch, V vocabulary, N all
tokens, D width, C channels, H height, W width of the image.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.data.masked_batches import MaskedImages
from eve_vl.model.backbone import Encoded
from eve_vl.model.encoder import Encoder
from eve_vl.model.patches import gather_patches, patchify
from eve_vl.model.tokens import Tokens
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.systems.mlim.pretraining.dataset import AwareMasks, BatchByMask
from eve_vl.systems.mlim.pretraining.decoder import ConvDecoder
from eve_vl.tasks.masked_signal.task import MaskedSignalTask, mean_count
from eve_vl.tasks.task import Routers
from eve_vl.train.step import StepOutput


class Mlim(MaskedSignalTask[MlimConfig]):
    """MLIM's pre-training; `mim` is its loss RECON."""

    section = MlimConfig
    dataset = AwareMasks

    def build(self) -> None:
        """Build the token head and the decoder."""
        super().build()
        # one pass for each kind of masks among a process's rows
        self.passes_vary = self.settings.masking == "aware"

    def build_decoder(self) -> ConvDecoder:
        """Return the untrained decoder of whole images."""
        return ConvDecoder(self.config.model.embed_dim, self.config.input.patch_size)

    def before_step(self, micro_batches: list[BatchByMask]) -> list[Any]:
        """Set each micro-batch's mean numbers of masked tokens and of patches.

        They are means of the step.
        """
        parts = [part for batch in micro_batches for part in batch.parts]
        num_tokens = sum(len(part.places()) for part in parts)
        num_patches = sum(len(part.where) for part in parts) * self.config.input.num_patches
        device = next(self.parameters()).device
        counts_2 = torch.tensor([num_tokens, num_patches], dtype=torch.float32, device=device)
        mean_tokens, mean_patches = mean_count(counts_2, len(micro_batches))
        counted = []
        for batch in micro_batches:
            counted.append(
                dataclasses.replace(batch, num_tokens=mean_tokens, num_patches=mean_patches)
            )
        return super().before_step(counted)

    def forward(self, batch: BatchByMask) -> StepOutput:
        """Return the sum of both losses; a loss without rows is 0.

        task.mlm_weight and task.mim_weight weigh them. Rows with the same number of masked patches
        go through the encoder together.
        """
        if batch.num_tokens is None or batch.num_patches is None:
            (batch,) = self.before_step([batch])
        assert batch.num_tokens is not None and batch.num_patches is not None
        zero = batch.num_tokens.new_zeros(())
        mlm = mim = num_right = zero
        routers = []
        for part in batch.parts:
            encoded = self.encode(part, keep=True, mask=True)
            routers += encoded.routers
            logits_MV = self.predict_tokens(encoded, part)
            targets_M = part.targets()
            mlm = mlm + objectives.masked_tokens(logits_MV, targets_M, batch.num_tokens)
            num_right = num_right + (logits_MV.argmax(-1) == targets_M).sum()
            mim = mim + self.squared_errors(encoded, part).sum() / batch.num_patches
        return self.output({"mim": mim, "mlm": mlm}, routers, mlm_acc=num_right / batch.num_tokens)

    def squared_errors(self, encoded: Encoded, batch: MaskedImages) -> Tensor:
        """Return the squared errors of all patches, masked or not, float32 (B, P).

        Pixels are in [0, 1]; errors are summed over colours and averaged over a patch.
        """
        error_BPX = self.reconstructed(encoded).float() - self.patches(batch)
        return 3 * (error_BPX / 2).square().mean(2)  # our pixels are in [-1, 1]

    def reconstructed(self, encoded: Encoded) -> Tensor:
        """Return reconstructed images as patches (B, P, X) in [-1, 1]."""
        P = self.config.input.num_patches
        pixels_BCHW = self.pixel_decoder(encoded.x_BND[:, 1 : 1 + P])
        return patchify(pixels_BCHW, self.config.input.patch_size) * 2 - 1

    def predict_pixels(self, encoded: Encoded, batch: MaskedImages) -> Tensor:
        """Return the reconstructed masked patches (B, M, X) in [-1, 1]."""
        return gather_patches(self.reconstructed(encoded), batch.hidden_BM)

    def embed_images(self, batch: MaskedImages) -> Tokens:
        """Embed images with the word [MASK] in place of masked patches."""
        assert isinstance(self.encoder, Encoder)
        mask_ids_BM = torch.full_like(batch.hidden_BM, self.sizes.mask_id)
        word_BMD = self.encoder.text.without_positions(mask_ids_BM)
        return self.encoder.image(batch.pixels(), replacement=(batch.hidden_BM, word_BMD))

    def routers(self, batch: Any) -> Routers:
        """Return the router statistics with few patches and tokens masked."""
        return self.encode(batch, keep=True, mask=True).routers
