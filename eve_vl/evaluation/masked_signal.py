"""Accuracy of masked tokens and error of masked patches.

Both are also measured with a wrong partner.

Letters: B batch, P patches, M hidden patches or masked tokens, T text tokens, X values in a patch, d width of features.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch

from eve_vl.config import ContrastMatchConfig, MaskedSignalConfig
from eve_vl.data.masking import MaskedImages, MaskedTexts, PairBatch
from eve_vl.data.records import hash_of
from eve_vl.evaluation.evaluator import Baseline, Evaluated, Evaluator
from eve_vl.metrics import masked_signal as metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.model.embeddings import gather_patches
from eve_vl.tasks.masked_signal import MaskedBatch, MaskedSignalTask
from eve_vl.train.processes import gather_objects

TOKENS, PATCHES = "masked token", "masked patch"
AnyMasked = TypeVar("AnyMasked", bound=MaskedSignalTask[Any])


class MaskedSignalEvaluator(Evaluator[AnyMasked]):
    """Sums over masked tokens and patches."""

    section = MaskedSignalConfig
    score_name = "mlm_acc"
    baselines = (
        Baseline("mlm_acc", TOKENS, "mlm_acc_unigram", "always guessing the most frequent word"),
        Baseline("mlm_acc", TOKENS, "mlm_acc_wrong_image", "with a wrong image", "uses the image"),
        Baseline("mim_mse", PATCHES, "mim_mse_mean_baseline", "painting the mean of the neighbours", lower=True),
        Baseline("mim_mse", PATCHES, "mim_mse_wrong_caption", "with a wrong caption", "uses the caption", lower=True),
    )

    def __init__(self, task: AnyMasked):
        super().__init__(task)
        settings = task.settings
        self.main_loss = "mlm_loss" if settings.mlm_weight else "mim_mse" if settings.mim_weight else None

    @torch.no_grad()
    def evaluate_with_rows(self, loader: Iterable[MaskedBatch]) -> Evaluated:
        """Return the metrics of `metrics.masked_signal` over all processes; deterministic."""
        sums = metrics.Sums()
        for batch in loader:
            self.add_batch(sums, batch, names_of(batch))
        sums = metrics.Sums.whole(gather_objects(sums))
        row_scores = {row: float(right / count) for row, (right, count) in sums.by_row("mlm_acc").items()}
        return Evaluated(numbers=sums.result(), row_scores=row_scores)

    def add_batch(self, sums: metrics.Sums, batch: MaskedBatch, names: Sequence[str]) -> None:
        """Add a batch, pairs also with a wrong partner. names: of its rows."""
        task, settings, wrong = self.task, self.task.settings, batch.wrong if isinstance(batch, PairBatch) else None
        if settings.mlm_weight and isinstance(batch, MaskedTexts):
            targets_M, row_M = batch.targets(), batch.places() // batch.ids_BT.shape[1]
            rows: dict[str, Any] = {"mlm_acc": batch}
            if wrong is not None:
                rows["mlm_acc_wrong_image"] = dataclasses.replace(batch, images_BCHW=wrong.images_BCHW)
            for name, each in rows.items():
                encoded = task.encode(each, keep=settings.joint_masking, mask=True)
                sums.add_tokens(name, task.predict_tokens(encoded, batch), targets_M, row_M, names)
        if settings.mim_weight and isinstance(batch, MaskedImages):
            patches_BPX, rows = task.patches(batch), {"mim_mse": batch}
            hidden_BMX = gather_patches(task.targets(patches_BPX), batch.hidden_BM)
            if isinstance(batch, PairBatch) and wrong is not None:
                rows["mim_mse_wrong_caption"] = batch.with_text_of(wrong)
            for name, each in rows.items():
                encoded = task.encode_for_pixels(each)
                sums.add_pixels(name, task.predict_pixels(encoded, batch), hidden_BMX, names)
            visible_BMX, image_BMX = metrics.visible_means(patches_BPX, batch.keep_BK, batch.hidden_BM)
            for name, guess_BMX in (("mim_mse_mean_baseline", visible_BMX), ("mim_mse_image_mean", image_BMX)):
                # with targets normalised per patch, a patch's own mean is 0: the best that any single colour could do
                guess_BMX = torch.zeros_like(guess_BMX) if settings.normalize_targets else guess_BMX
                sums.add_pixels(name, guess_BMX, hidden_BMX, names)


class ContrastMatchEvaluator(MaskedSignalEvaluator[Any]):
    """Masked signals, and wrong pairs recognised by contrast and matching."""

    section = ContrastMatchConfig
    baselines = (
        *MaskedSignalEvaluator.baselines,
        Baseline("itc_acc", "comparison", 0.5, "chance"),
        Baseline("itm_acc", "pair", 0.5, "chance"),
    )

    def add_batch(self, sums: metrics.Sums, batch: MaskedBatch, names: Sequence[str]) -> None:
        """Add a batch: masked signals, `itc_acc` and `itm_acc`; chance is 0.5 for both.

        `itc_acc` is the share of images and texts that are more similar to their own partner than to a wrong one, `itm_acc` the
        share of true and of wrong pairs that the matching head recognises.
        """
        super().add_batch(sums, batch, names)
        task = self.task
        assert isinstance(batch, PairBatch) and batch.wrong is not None
        rows = torch.arange(len(batch.where))
        if task.is_comparable:
            image_Bd, text_Bd = task.image_features(batch.images_BCHW), task.text_features(batch.ids_BT, batch.is_padding_BT)
            wrong_image_Bd = task.image_features(batch.wrong.images_BCHW)
            wrong_text_Bd = task.text_features(batch.wrong.ids_BT, batch.wrong.is_padding_BT)
            own_B = (image_Bd * text_Bd).sum(1)
            for other_B in ((wrong_image_Bd * text_Bd).sum(1), (image_Bd * wrong_text_Bd).sum(1)):
                sums.add("itc_acc", names, rows, own_B > other_B)
        if task.contrast.match_head is not None:
            for pairs, is_match in ((batch, True), (batch.with_text_of(batch.wrong), False)):
                logits_B2, _ = task.match(pairs.images_BCHW, pairs.ids_BT, pairs.is_padding_BT)
                sums.add("itm_acc", names, rows, logits_B2.argmax(1) == int(is_match))


def names_of(batch: MaskedBatch) -> list[str]:
    """Return a name for each row that includes its masked tokens.

    Other masks ask another question. Pairs of one image belong together.
    """
    names = batch.names
    if isinstance(batch, MaskedTexts):
        hidden_BT = batch.ids_BT.masked_fill(~batch.is_masked_BT, -1).tolist()
        hidden = [[(place, token) for place, token in enumerate(hidden_T) if token >= 0] for hidden_T in hidden_BT]
        names = [f"{name} {hash_of(repr(each).encode()):x}" for name, each in zip(names, hidden, strict=True)]
    images = batch.image_id_B.tolist() if isinstance(batch, PairBatch) else names
    return [f"{name}{GROUP}{image}" for name, image in zip(names, images, strict=True)]
