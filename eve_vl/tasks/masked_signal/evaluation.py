"""Accuracy of masked tokens and error of masked patches, with their baselines.

Letters: B batch, P patches, K kept patches, M hidden patches or masked tokens, T text tokens, X
values in a patch, C colours.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.data.masked_batches import MaskedImages, MaskedTexts, PairBatch
from eve_vl.data.row_hashes import hash_of
from eve_vl.metrics import intervals
from eve_vl.model.patches import gather_patches
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.evaluator import Evaluated, Evaluator
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.sums import Sums
from eve_vl.tasks.masked_signal.task import MaskedBatch, MaskedSignalTask
from eve_vl.train.processes import gather_objects

TOKENS = "masked token"
PATCHES = "masked patch"
AnyMasked = TypeVar("AnyMasked", bound=MaskedSignalTask[Any])


class MaskedSignalEvaluator(Evaluator[AnyMasked]):
    """Sums over masked tokens and patches."""

    section = MaskedSignalConfig
    score_name = "mlm_acc"
    baselines = (
        Baseline("mlm_acc", TOKENS, "mlm_acc_unigram", "always guessing the most frequent word"),
        Baseline("mlm_acc", TOKENS, "mlm_acc_wrong_image", "with a wrong image", "uses the image"),
        Baseline(
            "mim_mse",
            PATCHES,
            "mim_mse_mean_baseline",
            "painting the mean of the neighbours",
            lower=True,
        ),
        Baseline(
            "mim_mse",
            PATCHES,
            "mim_mse_wrong_caption",
            "with a wrong caption",
            "uses the caption",
            lower=True,
        ),
    )

    def __init__(self, task: AnyMasked):
        super().__init__(task)
        if task.settings.mlm_weight:
            self.main_loss = "mlm_loss"
        elif task.settings.mim_weight:
            self.main_loss = "mim_mse"

    @torch.no_grad()
    def evaluate_with_rows(self, loader: Iterable[MaskedBatch]) -> Evaluated:
        """Return the metrics of `Sums` over all processes; deterministic."""
        sums = Sums()
        for batch in loader:
            self.add_batch(sums, batch, names_of(batch))
        sums = Sums.whole(gather_objects(sums))
        row_scores = {}
        for row, (num_right, count) in sums.by_row("mlm_acc").items():
            row_scores[row] = float(num_right / count)
        return Evaluated(numbers=sums.result(), row_scores=row_scores)

    def add_batch(self, sums: Sums, batch: MaskedBatch, names: Sequence[str]) -> None:
        """Add a batch, pairs also with a wrong partner. names: of its rows."""
        if self.task.settings.mlm_weight and isinstance(batch, MaskedTexts):
            self._add_tokens(sums, batch, names)
        if self.task.settings.mim_weight and isinstance(batch, MaskedImages):
            self._add_pixels(sums, batch, names)

    def _add_tokens(self, sums: Sums, batch: MaskedTexts, names: Sequence[str]) -> None:
        """Add the guesses of masked tokens, of pairs also those with a wrong image."""
        batches = {"mlm_acc": batch}
        if isinstance(batch, PairBatch) and batch.wrong is not None:
            wrong_images = batch.wrong.images_BCHW
            batches["mlm_acc_wrong_image"] = dataclasses.replace(batch, images_BCHW=wrong_images)
        targets_M = batch.targets()
        row_M = batch.places() // batch.ids_BT.shape[1]
        for name, shown_batch in batches.items():
            keeps_part = self.task.settings.joint_masking
            encoded = self.task.encode(shown_batch, keep=keeps_part, mask=True)
            logits_MV = self.task.predict_tokens(encoded, batch)
            sums.add_tokens(name, logits_MV, targets_M, row_M, names)

    def _add_pixels(self, sums: Sums, batch: MaskedImages, names: Sequence[str]) -> None:
        """Add the errors of masked patches, of pairs also those with a wrong caption."""
        batches = {"mim_mse": batch}
        if isinstance(batch, PairBatch) and batch.wrong is not None:
            batches["mim_mse_wrong_caption"] = batch.with_text_of(batch.wrong)
        patches_BPX = self.task.patches(batch)
        target_BMX = gather_patches(self.task.targets(patches_BPX), batch.hidden_BM)
        for name, shown_batch in batches.items():
            encoded = self.task.encode_for_pixels(shown_batch)
            predicted_BMX = self.task.predict_pixels(encoded, batch)
            sums.add_pixels(name, predicted_BMX, target_BMX, names)

        near_BMX, mean_BMX = visible_means(patches_BPX, batch.keep_BK, batch.hidden_BM)
        if self.task.settings.normalize_targets:
            # a patch's own mean is 0: the best that any single colour could do
            near_BMX = torch.zeros_like(near_BMX)
            mean_BMX = torch.zeros_like(mean_BMX)
        sums.add_pixels("mim_mse_mean_baseline", near_BMX, target_BMX, names)
        sums.add_pixels("mim_mse_image_mean", mean_BMX, target_BMX, names)


def names_of(batch: MaskedBatch) -> list[str]:
    """Return a name for each row that includes its masked tokens.

    Other masks ask another question. Pairs of one image belong together.
    """
    names = list(batch.names)
    if isinstance(batch, MaskedTexts):
        masked_BT = batch.ids_BT.masked_fill(~batch.is_masked_BT, -1).tolist()
        for row, masked_T in enumerate(masked_BT):
            tokens = [(place, token) for place, token in enumerate(masked_T) if token >= 0]
            names[row] = f"{names[row]} {hash_of(repr(tokens).encode()):x}"
    images = names
    if isinstance(batch, PairBatch):
        images = batch.image_id_B.tolist()
    return [f"{name}{intervals.GROUP}{image}" for name, image in zip(names, images, strict=True)]


def visible_means(patches_BPX: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Return two guesses of masked patches without a model, (B, M, X).

    The first gives each masked patch one RGB colour: the mean over the visible ones of the eight
    patches around it, or, without any, over all visible patches. The second is that mean over all
    visible patches.
    """
    B, P, X = patches_BPX.shape
    side = round(P**0.5)
    device = patches_BPX.device
    color_BPC = patches_BPX.unflatten(2, (3, X // 3)).mean(3)
    is_visible_BP1 = torch.zeros(B, P, 1, device=device).scatter_(1, keep_BK[:, :, None], 1.0)
    # four planes: the sums of three colours over visible patches, and their number
    planes_BP4 = torch.cat([color_BPC * is_visible_BP1, is_visible_BP1], dim=2)
    color_sum_B1C = planes_BP4[:, :, :3].sum(1, keepdim=True)
    image_B1C = color_sum_B1C / planes_BP4[:, :, 3:].sum(1, keepdim=True)

    window = torch.ones(4, 1, 3, 3, device=device)
    grid_B4HW = planes_BP4.transpose(1, 2).reshape(B, 4, side, side)
    near_BP4 = F.conv2d(grid_B4HW, window, padding=1, groups=4).flatten(2).transpose(1, 2)
    count_BP1 = near_BP4[:, :, 3:]
    near_BPC = near_BP4[:, :, :3] / count_BP1.clamp(min=1)
    near_BPC = torch.where(count_BP1 > 0.5, near_BPC, image_B1C)

    near_BMC = near_BPC.gather(1, hidden_BM[:, :, None].expand(-1, -1, 3))
    image_BMC = image_B1C.expand_as(near_BMC)
    return near_BMC.repeat_interleave(X // 3, 2), image_BMC.repeat_interleave(X // 3, 2)
