"""Accuracy of masked tokens and error of masked patches, with their baselines.

Letters: B batch, P patches, K kept patches, M hidden patches or masked tokens, T text tokens, X values in a patch, V
vocabulary.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
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
from eve_vl.tasks.masked_signal.task import MaskedBatch, MaskedSignalTask
from eve_vl.train.processes import gather_objects

TOKENS, PATCHES = "masked token", "masked patch"
AnyMasked = TypeVar("AnyMasked", bound=MaskedSignalTask[Any])


class Sums:
    """Running sums per row.

    Batch size, order and number of processes change no metric. Rows are the groups of the intervals: masked tokens of one row
    are not independent.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Sequence[str], np.ndarray]]] = {}
        """By metric, per batch: names of the rows, and sum and count of each, float64 (B, 2)."""
        self.targets: list[tuple[Sequence[str], Tensor, Tensor]] = []
        """Per batch: names of the rows, and row and id of each masked token, int64 (M,)."""

    def add_tokens(
        self, name: str, logits_MV: Tensor, targets_M: Tensor, row_M: Tensor, where: Sequence[str]
    ) -> None:
        """Add right first guesses and, with `mlm_acc`, the cross-entropy.

        row_M: row of each token.
        """
        self.add(name, where, row_M, logits_MV.argmax(-1) == targets_M)
        if name == "mlm_acc":
            self.targets.append((where, row_M.cpu(), targets_M.cpu()))
            self.add(
                "mlm_loss",
                where,
                row_M,
                F.cross_entropy(logits_MV.float(), targets_M, reduction="none"),
            )

    def add_pixels(
        self, name: str, predicted_BMX: Tensor, target_BMX: Tensor, where: Sequence[str]
    ) -> None:
        """Add the squared error of each row over its patches."""
        error_BMX = (predicted_BMX.double() - target_BMX.double()).square()
        row_BM = torch.arange(len(where))[:, None].expand(error_BMX.shape[:2])
        self.add(name, where, row_BM.flatten(), error_BMX.mean(2).flatten())

    def add(self, name: str, where: Sequence[str], row_X: Tensor, value_X: Tensor) -> None:
        """Add values of a batch. row_X: row of each value."""
        rows, values = row_X.cpu().numpy(), value_X.double().cpu().numpy()
        row_B2 = np.stack(
            [np.bincount(rows, each, len(where)) for each in (values, np.ones(len(rows)))], 1
        )
        self.rows.setdefault(name, []).append((where, row_B2))

    @classmethod
    def whole(cls, parts: Iterable["Sums"]) -> "Sums":
        """Return the sums of all processes, and those of guessing the most frequent token."""
        whole = cls()
        for part in parts:
            whole.targets += part.targets
            for name, rows in part.rows.items():
                whole.rows[name] = whole.rows.get(name, []) + rows
        if whole.targets:
            most_frequent = (
                torch.cat([targets_M for *_, targets_M in whole.targets]).bincount().argmax()
            )
            for where, row_M, targets_M in whole.targets:
                whole.add("mlm_acc_unigram", where, row_M, targets_M == most_frequent)
        return whole

    def by_row(self, name: str) -> dict[str, np.ndarray]:
        """Return sum and count of each row with values, sorted by name.

        Empty for an unknown metric.
        """
        found: dict[str, np.ndarray] = {}
        for where, row_B2 in self.rows.get(name, ()):
            for row, sum_and_count in zip(where, row_B2, strict=True):
                if sum_and_count[1]:
                    found[row] = found.get(row, 0) + sum_and_count
        return dict(sorted(found.items()))

    def result(self) -> dict[str, float]:
        """Return the metrics.

        mlm_acc, mlm_acc_wrong_image: share of masked tokens guessed right, with the right image and, for pairs, with another.
        mlm_acc_unigram: the same for the most frequent of these tokens. mlm_loss: cross-entropy in nats.
        mim_mse, mim_mse_wrong_caption: mean squared error of masked patches, with the right and with another caption.
        mim_mse_mean_baseline, mim_mse_image_mean: the same for the mean of each patch's visible adjacent ones, and of all
        visible patches. Errors are in the space of the model's targets: pixels in [-1, 1], or normalised per patch. There the
        two guesses are the patch's own mean, because nearly flat patches would blow up the error of any other colour.
        """
        numbers: dict[str, float] = {}
        by_row = {name: found for name in self.rows if (found := self.by_row(name))}
        for name, found in by_row.items():
            (sum_R, count_R), groups = (
                np.array([*found.values()]).T,
                [*map(intervals.group_of, found)],
            )
            numbers[name] = intervals.ratio(sum_R, count_R, groups)
            for other in by_row:
                if other.startswith(f"{name}_") and by_row[other].keys() == found.keys():
                    gain_R = sum_R - np.array([each[0] for each in by_row[other].values()])
                    numbers[name] = intervals.with_difference(
                        numbers[name], other, gain_R / count_R.sum(), groups
                    )
        return numbers


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
        self.main_loss = (
            "mlm_loss"
            if task.settings.mlm_weight
            else "mim_mse"
            if task.settings.mim_weight
            else None
        )

    @torch.no_grad()
    def evaluate_with_rows(self, loader: Iterable[MaskedBatch]) -> Evaluated:
        """Return the metrics of `Sums` over all processes; deterministic."""
        sums = Sums()
        for batch in loader:
            self.add_batch(sums, batch, names_of(batch))
        sums = Sums.whole(gather_objects(sums))
        row_scores = {
            row: float(right / count) for row, (right, count) in sums.by_row("mlm_acc").items()
        }
        return Evaluated(numbers=sums.result(), row_scores=row_scores)

    def add_batch(self, sums: Sums, batch: MaskedBatch, names: Sequence[str]) -> None:
        """Add a batch, pairs also with a wrong partner. names: of its rows."""
        task, settings, wrong = (
            self.task,
            self.task.settings,
            batch.wrong if isinstance(batch, PairBatch) else None,
        )
        if settings.mlm_weight and isinstance(batch, MaskedTexts):
            targets_M, row_M = batch.targets(), batch.places() // batch.ids_BT.shape[1]
            rows: dict[str, Any] = {"mlm_acc": batch}
            if wrong is not None:
                rows["mlm_acc_wrong_image"] = dataclasses.replace(
                    batch, images_BCHW=wrong.images_BCHW
                )
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
            visible_BMX, image_BMX = visible_means(patches_BPX, batch.keep_BK, batch.hidden_BM)
            for name, guess_BMX in (
                ("mim_mse_mean_baseline", visible_BMX),
                ("mim_mse_image_mean", image_BMX),
            ):
                # with targets normalised per patch, a patch's own mean is 0: the best that any single colour could do
                guess_BMX = torch.zeros_like(guess_BMX) if settings.normalize_targets else guess_BMX
                sums.add_pixels(name, guess_BMX, hidden_BMX, names)


def names_of(batch: MaskedBatch) -> list[str]:
    """Return a name for each row that includes its masked tokens.

    Other masks ask another question. Pairs of one image belong together.
    """
    names = batch.names
    if isinstance(batch, MaskedTexts):
        hidden_BT = batch.ids_BT.masked_fill(~batch.is_masked_BT, -1).tolist()
        hidden = [
            [(place, token) for place, token in enumerate(hidden_T) if token >= 0]
            for hidden_T in hidden_BT
        ]
        names = [
            f"{name} {hash_of(repr(each).encode()):x}"
            for name, each in zip(names, hidden, strict=True)
        ]
    images = batch.image_id_B.tolist() if isinstance(batch, PairBatch) else names
    return [f"{name}{intervals.GROUP}{image}" for name, image in zip(names, images, strict=True)]


def visible_means(patches_BPX: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Return two guesses of masked patches without a model, (B, M, X).

    The first gives each masked patch one RGB colour: the mean over the visible ones of the eight patches around it, or, without
    any, over all visible patches. The second is that mean over all visible patches.
    """
    B, P, X = patches_BPX.shape
    side = round(P**0.5)
    color_BPC = patches_BPX.unflatten(2, (3, X // 3)).mean(3)
    is_visible_BP1 = torch.zeros(B, P, 1, device=patches_BPX.device).scatter_(
        1, keep_BK[:, :, None], 1.0
    )
    planes = torch.cat([color_BPC * is_visible_BP1, is_visible_BP1], dim=2)
    image_B1C = planes[:, :, :3].sum(1, keepdim=True) / planes[:, :, 3:].sum(1, keepdim=True)
    window = torch.ones(4, 1, 3, 3, device=patches_BPX.device)
    grid = planes.transpose(1, 2).reshape(B, 4, side, side)
    near_BP4 = F.conv2d(grid, window, padding=1, groups=4).flatten(2).transpose(1, 2)
    near_BPC = torch.where(
        near_BP4[:, :, 3:] > 0.5, near_BP4[:, :, :3] / near_BP4[:, :, 3:].clamp(min=1), image_B1C
    )
    near_BMC = near_BPC.gather(1, hidden_BM[:, :, None].expand(-1, -1, 3))
    return near_BMC.repeat_interleave(X // 3, 2), image_B1C.expand_as(near_BMC).repeat_interleave(
        X // 3, 2
    )
