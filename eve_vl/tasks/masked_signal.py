"""Pre-training by masked signal modelling: rebuild hidden pixels or hidden tokens from what is left and the other modality.

With task.itc_weight and task.itm_weight it is one of EVE's rivals instead (paper Tables 1 and 6).
Source: the paper's "Pre-training Task"; masking ratios from its Fig. 4, the joint-masking ablation from its Table 5.

Letters: B batch, P patches, K kept patches, M hidden patches or masked tokens, T text tokens, N all tokens, D width,
X values in a patch.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.config import Config, MaskedSignalConfig
from eve_vl.data.batch import PairBatch
from eve_vl.data.dataset import MaskedPairs
from eve_vl.metrics import masked_signal as metrics
from eve_vl.model.embed import Tokens, pair, patchify, put, take
from eve_vl.model.encoder import Encoded, Encoder, initialize
from eve_vl.model.heads import TokenHead
from eve_vl.model.moe import RouterStats
from eve_vl.model.pixel_decoder import PixelDecoder
from eve_vl.tasks.contrast import Contrast
from eve_vl.tasks.routing import routing_terms
from eve_vl.train.distributed import sum_over_processes, world_size
from eve_vl.train.trainer import StepOutput


class MaskedSignal(nn.Module):
    """The task: encoder, token head and pixel decoder, with the losses that join them."""

    dataset = MaskedPairs
    main_metric = None  # nothing is chosen by a number: the last step counts

    def __init__(self, config: Config, *, vocab_size: int, mask_id: int):
        super().__init__()
        assert isinstance(config.task, MaskedSignalConfig)
        self.config, self.settings = config, config.task
        self.mask_id = mask_id
        self.encoder = Encoder(config.model, vocab_size)
        if self.settings.mlm_weight:
            self.token_head = TokenHead(config.model.embed_dim, vocab_size)
        if self.settings.mim_weight:
            self.pixel_decoder = PixelDecoder(config.model, self.settings)
        if self.settings.itc_weight:
            self.contrast = Contrast(
                config.model.embed_dim, self.settings.projection_dim, with_match=self.settings.itm_weight > 0
            )
        initialize(self, config.model)

    def forward(self, batch: PairBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.…_weight, model.balance_weight)."""
        task = self.settings
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=batch.ids_BT.device)
        patches_BPX = patchify(batch.pixels(), self.config.input.patch_size)
        routers: list[list[RouterStats]] = []
        joint = self.encode(patches_BPX, batch, keep=True, mask=True) if task.joint_masking else None
        if task.mim_weight:
            encoded = joint or self.encode(patches_BPX, batch, keep=True)
            routers.append(encoded.router)
            target_BMX = take(self.targets(patches_BPX), batch.hidden_BM)
            terms["mim"] = objectives.masked_pixels(self.predict_pixels(encoded, batch), target_BMX)
            loss = loss + task.mim_weight * terms["mim"]
        if task.mlm_weight:
            encoded = joint or self.encode(patches_BPX, batch, mask=True)
            if joint is None:
                routers.append(encoded.router)
            logits_MV = self.predict_tokens(encoded, batch)
            targets_M = batch.ids_BT[batch.is_masked_BT]
            # processes hold different numbers of masked tokens: divide by their mean, so that averaged gradients are exact
            num_targets = sum_over_processes(batch.is_masked_BT.sum().float()).clamp(min=1) / world_size()
            terms["mlm"] = objectives.masked_tokens(logits_MV, targets_M, num_targets)
            terms["mlm_acc"] = (logits_MV.argmax(-1) == targets_M).sum() / num_targets
            loss = loss + task.mlm_weight * terms["mlm"]
        if task.itc_weight:
            text = self.encoder.text(batch.ids_BT, batch.is_padding_BT)
            image = self.encoder.image(patches_BPX)
            new_terms, new_routers = self.contrast(self.encoder, image, text, batch.picture_B)
            terms |= new_terms
            routers += new_routers
            loss = loss + task.itc_weight * terms["itc"]
            if task.itm_weight:
                loss = loss + task.itm_weight * terms["itm"]
        terms |= routing_terms(routers)
        if "balance" in terms:
            loss = loss + self.config.model.balance_weight * terms["balance"]
        return StepOutput(loss=loss, terms=terms)

    def encode(self, patches_BPX: Tensor, batch: PairBatch, *, keep: bool = False, mask: bool = False) -> Encoded:
        """Encode the pair with only the kept patches (`keep`) and/or with masked tokens replaced by [MASK] (`mask`)."""
        image = self.encoder.image(patches_BPX, batch.keep_BK if keep else None)
        ids_BT = batch.ids_BT.masked_fill(batch.is_masked_BT, self.mask_id) if mask else batch.ids_BT
        text = self.encoder.text(ids_BT, batch.is_padding_BT)
        return self.encoder.encode(pair(image, text))

    def predict_pixels(self, encoded: Encoded, batch: PairBatch) -> Tensor:
        """Return the hidden patches (B, M, X) in the space of the targets."""
        num_image = 1 + batch.keep_BK.shape[1]
        is_padding_BN = nn.functional.pad(batch.is_padding_BT, (num_image, 0), value=False)
        tokens = Tokens(x_BND=encoded.x_BND, num_image=num_image, is_padding_BN=is_padding_BN)
        return self.pixel_decoder(tokens, batch.keep_BK, batch.hidden_BM)

    def predict_tokens(self, encoded: Encoded, batch: PairBatch) -> Tensor:
        """Return logits (M, V) of the masked tokens alone, in the order of batch.is_masked_BT."""
        text_BTD = encoded.x_BND[:, -batch.ids_BT.shape[1] :]
        return self.token_head(text_BTD[batch.is_masked_BT])

    def rebuild(self, patches_BPX: Tensor, batch: PairBatch) -> Tensor:
        """Return the patches with the hidden ones predicted, the others as they were.

        Where targets are normalised per patch, predictions are scaled back with the hidden patches' true mean and standard
        deviation, as in the pictures of MAE.
        """
        encoded = self.encode(patches_BPX, batch, keep=True, mask=self.settings.joint_masking)
        predicted_BMX = self.predict_pixels(encoded, batch)
        if self.settings.normalize_targets:
            mean, std = objectives.patch_statistics(take(patches_BPX, batch.hidden_BM))
            predicted_BMX = predicted_BMX * std + mean
        return put(patches_BPX, batch.hidden_BM, predicted_BMX)

    def targets(self, patches_BPX: Tensor) -> Tensor:
        """Return what is to be predicted for each patch: its pixels, raw or normalised per patch."""
        if not self.settings.normalize_targets:
            return patches_BPX
        mean, std = objectives.patch_statistics(patches_BPX)
        return (patches_BPX - mean) / std

    @torch.no_grad()
    def evaluate(self, loader: Iterable[PairBatch]) -> dict[str, float]:
        """Return the numbers of `metrics.masked_signal` over all processes; deterministic."""
        task = self.settings
        vocab_size = self.encoder.text.words.num_embeddings
        sums = metrics.Sums(vocab_size=vocab_size, with_tokens=task.mlm_weight > 0, with_pixels=task.mim_weight > 0)
        for batch in loader:
            self._evaluate_batch(batch, sums)
        return sums.result(sum_over_processes)

    def _evaluate_batch(self, batch: PairBatch, sums: metrics.Sums) -> None:
        assert batch.wrong is not None
        task, patch_size = self.settings, self.config.input.patch_size
        patches_BPX = patchify(batch.pixels(), patch_size)
        if task.mlm_weight:
            targets_M = batch.ids_BT[batch.is_masked_BT]
            wrong_patches_BPX = patchify(batch.wrong.pixels(), patch_size)
            for name, patches in (("mlm", patches_BPX), ("mlm_wrong_image", wrong_patches_BPX)):
                encoded = self.encode(patches, batch, keep=task.joint_masking, mask=True)
                sums.add_tokens(name, self.predict_tokens(encoded, batch), targets_M)
        if task.mim_weight:
            target_BPX = self.targets(patches_BPX)
            hidden_BMX = take(target_BPX, batch.hidden_BM)
            for name, text in (("mim", batch), ("mim_wrong_caption", batch.with_text_of(batch.wrong))):
                encoded = self.encode(patches_BPX, text, keep=True, mask=task.joint_masking)
                sums.add_pixels(name, self.predict_pixels(encoded, text), hidden_BMX)
            neighbours_BMX, image_BMX = metrics.visible_means(patches_BPX, batch.keep_BK, batch.hidden_BM)
            for name, guess_BMX in (("mim_mean_baseline", neighbours_BMX), ("mim_image_mean", image_BMX)):
                # of targets normalised per patch, a patch's own mean is 0: the best that any single colour could do
                guess_BMX = torch.zeros_like(guess_BMX) if task.normalize_targets else guess_BMX
                sums.add_pixels(name, guess_BMX, hidden_BMX)
