"""Pre-training by masked signal modelling: rebuild hidden pixels or hidden tokens from what is left and the other modality.

Source: the paper's "Pre-training Task"; masking ratios from its Fig. 4, the joint-masking ablation from its Table 5.

Letters: B batch, P patches, K kept patches, M hidden patches or masked tokens, T text tokens, N all tokens, D width,
X values in a patch.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.config import Config
from eve_vl.data.batch import PairBatch
from eve_vl.metrics import masked_signal as metrics
from eve_vl.model.embed import Tokens, pair, patchify, take
from eve_vl.model.encoder import Encoded, Encoder, initialize
from eve_vl.model.heads import TokenHead
from eve_vl.model.moe import RouterStats
from eve_vl.model.pixel_decoder import PixelDecoder
from eve_vl.train.distributed import sum_over_processes, world_size
from eve_vl.train.trainer import StepOutput


class MaskedSignal(nn.Module):
    """The task: encoder, token head and pixel decoder, with the losses that join them."""

    def __init__(self, config: Config, *, vocab_size: int, mask_id: int):
        super().__init__()
        self.config = config
        self.mask_id = mask_id
        self.encoder = Encoder(config.model, vocab_size)
        if config.task.mlm_weight:
            self.token_head = TokenHead(config.model.embed_dim, vocab_size)
        if config.task.mim_weight:
            self.pixel_decoder = PixelDecoder(config.model, config.task)
        initialize(self, config.model)

    def forward(self, batch: PairBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.mim_weight, task.mlm_weight, model.balance_weight)."""
        task = self.config.task
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=batch.ids_BT.device)
        patches_BPX = patchify(batch.pixels(), self.config.model.patch_size)
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
        if routers[0]:
            terms |= self.routing_terms(routers)
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

    def targets(self, patches_BPX: Tensor) -> Tensor:
        """Return what is to be predicted for each patch: its pixels, raw or normalised per patch."""
        if not self.config.task.normalize_targets:
            return patches_BPX
        mean, std = objectives.patch_statistics(patches_BPX)
        return (patches_BPX - mean) / std

    def routing_terms(self, routers: list[list[RouterStats]]) -> dict[str, Tensor]:
        """Return the balance loss, mean over blocks and passes, and per block the load of the busiest expert and the
        entropy of the gate; all over the tokens of all processes."""
        terms: dict[str, Tensor] = {}
        losses = []
        for number, passes in enumerate(zip(*routers, strict=True)):
            first = [sum_over_processes(stats.first_E) for stats in passes]
            gate = [sum_over_processes(stats.gate_E) for stats in passes]
            tokens = [sum_over_processes(stats.num_tokens) for stats in passes]
            entropy = sum_over_processes(torch.stack([stats.entropy for stats in passes]).sum())
            losses += [objectives.balance(*sums) for sums in zip(first, gate, tokens, strict=True)]
            total = torch.stack(tokens).sum()
            terms[f"max_load/{number}"] = torch.stack(first).sum(0).max() / total
            terms[f"entropy/{number}"] = entropy / total
        return {"balance": torch.stack(losses).mean(), **terms}

    @torch.no_grad()
    def evaluate(self, loader: Iterable[PairBatch]) -> dict[str, float]:
        """Return the numbers of `metrics.masked_signal` over all processes; deterministic."""
        task = self.config.task
        vocab_size = self.encoder.text.words.num_embeddings
        sums = metrics.Sums(vocab_size=vocab_size, with_tokens=task.mlm_weight > 0, with_pixels=task.mim_weight > 0)
        for batch in loader:
            self._evaluate_batch(batch, sums)
        return sums.result(sum_over_processes)

    def _evaluate_batch(self, batch: PairBatch, sums: metrics.Sums) -> None:
        assert batch.wrong is not None
        task, patch_size = self.config.task, self.config.model.patch_size
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
