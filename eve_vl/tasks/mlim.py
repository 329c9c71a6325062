"""Pre-training as MLIM does (arXiv 2109.12178): one pass over texts and images of which both may be partly hidden, then
hidden tokens are guessed and whole images are painted by convolutions.

Of each pair most of the image is hidden, or most of the text, or little of both (modality-aware masking). A hidden patch is
not dropped: the word [MASK] stands in its place, as it does in texts.

Letters: B batch, P patches, M hidden patches or masked tokens, X values in a patch, H height, W width, D width.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.config import Config, MlimConfig
from eve_vl.data.masking import AwareMasks, BatchByMask, MaskedImages
from eve_vl.model.backbone import Encoded
from eve_vl.model.conv_decoder import ConvDecoder
from eve_vl.model.embeddings import gather_patches, patchify
from eve_vl.model.encoder import Encoder, initialize
from eve_vl.model.packing import Tokens
from eve_vl.tasks.masked_signal import MaskedSignalTask, mean_count
from eve_vl.tasks.task import Routers, Sizes
from eve_vl.train.trainer import StepOutput


class Mlim(MaskedSignalTask[MlimConfig]):
    """MLIM's pre-training. `mim` is its loss RECON, `mim_weight` that one's weight."""

    section = MlimConfig
    dataset = AwareMasks

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        initialize(self, config.model)

    def build_decoder(self) -> ConvDecoder:
        """Return what paints images of states, untrained."""
        return ConvDecoder(self.config.model.embed_dim, self.config.input.patch_size)

    def before_step(self, micro_batches: list[BatchByMask]) -> list[Any]:
        """Tell each micro-batch how many masked tokens and patches to paint those of this step have on average."""
        parts = [part for batch in micro_batches for part in batch.parts]
        tokens = sum(len(part.places()) for part in parts)
        patches = sum(self.painted_positions(part).numel() for part in parts)
        counts_2 = torch.tensor([tokens, patches], dtype=torch.float32, device=next(self.parameters()).device)
        num_tokens, num_patches = mean_count(counts_2, len(micro_batches))
        counted = [dataclasses.replace(batch, num_tokens=num_tokens, num_patches=num_patches) for batch in micro_batches]
        return super().before_step(counted)

    def forward(self, batch: BatchByMask) -> StepOutput:
        """Return the weighted sum of both losses (weights: task.mlm_weight, task.mim_weight), each 0 where there is nothing for
        it. Rows of which as many patches are hidden go through the encoder together."""
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
        """Return the squared error of pixels in [0, 1], summed over colours, mean over the pixels of a patch, of the
        patches that count: float32 (B, M)."""
        index_BM = self.painted_positions(batch)
        error_BMX = gather_patches(self.painted(encoded).float(), index_BM) - gather_patches(self.patches(batch), index_BM)
        return 3 * (error_BMX / 2).square().mean(2)  # the house has pixels in [-1, 1]

    def painted_positions(self, batch: MaskedImages) -> Tensor:
        """Return the positions of the patches that the loss of rebuilding is of (task.recon_target), int64 (B, M)."""
        if self.settings.recon_target == "masked":
            return batch.hidden_BM
        return torch.cat([batch.keep_BK, batch.hidden_BM], dim=1)

    def painted(self, encoded: Encoded) -> Tensor:
        """Return whole images as patches (B, P, X), in [-1, 1]."""
        P = self.config.input.num_patches
        pixels_BCHW = self.pixel_decoder(encoded.x_BND[:, 1 : 1 + P])
        return patchify(pixels_BCHW, self.config.input.patch_size) * 2 - 1

    def predict_pixels(self, encoded: Encoded, batch: MaskedImages) -> Tensor:
        """Return the hidden patches (B, M, X) in [-1, 1]."""
        return gather_patches(self.painted(encoded), batch.hidden_BM)

    def embed_images(self, batch: MaskedImages) -> Tokens:
        """Embed images with the word [MASK] in the place of hidden patches, which keep their positions."""
        assert isinstance(self.encoder, Encoder)
        word_BMD = self.encoder.text.without_place(torch.full_like(batch.hidden_BM, self.sizes.mask_id))
        return self.encoder.image(batch.pixels(), instead=(batch.hidden_BM, word_BMD))

    def routers(self, batch: Any) -> Routers:
        """Return what the routers do where little of both is hidden."""
        return self.encode(batch, keep=True, mask=True).routers
