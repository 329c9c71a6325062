"""Running sums of an evaluation, by row.

Batch size, order and number of processes change no metric. Rows are the groups of the intervals:
masked tokens of one row are not independent.

Letters: B batch, R rows, M masked patches or masked tokens, X values, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.metrics import intervals


@dataclass
class BatchSums:
    """Sum and count of a metric for each row of a batch."""

    names: Sequence[str]
    """Of the rows."""
    sum_count_B2: np.ndarray
    """float64."""


@dataclass
class BatchTargets:
    """The masked tokens of a batch."""

    names: Sequence[str]
    """Of the rows."""
    row_M: Tensor
    """int64: the row of each token."""
    target_M: Tensor
    """int64: its id."""


class Sums:
    """Sums and counts per row, by metric."""

    def __init__(self) -> None:
        self.rows: dict[str, list[BatchSums]] = {}
        """By metric, in the order of the batches."""
        self.targets: list[BatchTargets] = []

    def add_tokens(
        self, name: str, logits_MV: Tensor, targets_M: Tensor, row_M: Tensor, where: Sequence[str]
    ) -> None:
        """Add right first guesses and, with `mlm_acc`, the cross-entropy.

        row_M: row of each token.
        """
        self.add(name, where, row_M, logits_MV.argmax(-1) == targets_M)
        if name == "mlm_acc":
            self.targets.append(BatchTargets(where, row_M.cpu(), targets_M.cpu()))
            loss_M = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
            self.add("mlm_loss", where, row_M, loss_M)

    def add_pixels(
        self, name: str, predicted_BMX: Tensor, target_BMX: Tensor, where: Sequence[str]
    ) -> None:
        """Add the squared error of each row over its patches."""
        error_BMX = (predicted_BMX.double() - target_BMX.double()).square()
        row_BM = torch.arange(len(where))[:, None].expand(error_BMX.shape[:2])
        self.add(name, where, row_BM.flatten(), error_BMX.mean(2).flatten())

    def add(self, name: str, where: Sequence[str], row_X: Tensor, value_X: Tensor) -> None:
        """Add values of a batch. row_X: row of each value."""
        rows = row_X.cpu().numpy()
        sum_B = np.bincount(rows, value_X.double().cpu().numpy(), len(where))
        count_B = np.bincount(rows, np.ones(len(rows)), len(where))
        batch = BatchSums(where, np.stack([sum_B, count_B], 1))
        self.rows.setdefault(name, []).append(batch)

    @classmethod
    def whole(cls, parts: Iterable["Sums"]) -> "Sums":
        """Return the sums of all processes, and those of guessing the most frequent token."""
        whole = cls()
        for part in parts:
            whole.targets += part.targets
            for name, batches in part.rows.items():
                whole.rows.setdefault(name, []).extend(batches)
        if whole.targets:
            all_targets = torch.cat([batch.target_M for batch in whole.targets])
            most_frequent = all_targets.bincount().argmax()
            for batch in whole.targets:
                is_right_M = batch.target_M == most_frequent
                whole.add("mlm_acc_unigram", batch.names, batch.row_M, is_right_M)
        return whole

    def by_row(self, name: str) -> dict[str, np.ndarray]:
        """Return sum and count of each row with values, sorted by name.

        Empty for an unknown metric.
        """
        totals: dict[str, np.ndarray] = {}
        for batch in self.rows.get(name, ()):
            for row, sum_count_2 in zip(batch.names, batch.sum_count_B2, strict=True):
                if sum_count_2[1]:
                    totals[row] = totals.get(row, 0) + sum_count_2
        return dict(sorted(totals.items()))

    def result(self) -> dict[str, float]:
        """Return the metrics.

        mlm_acc, mlm_acc_wrong_image: share of masked tokens guessed right, with the right image
        and, for pairs, with another. mlm_acc_unigram: the same for the most frequent of these
        tokens. mlm_loss: cross-entropy in nats. mim_mse, mim_mse_wrong_caption: mean squared error
        of masked patches, with the right and with another caption. mim_mse_mean_baseline,
        mim_mse_image_mean: the same for the mean of each patch's visible adjacent ones, and of all
        visible patches. Errors are in the space of the model's targets: pixels in [-1, 1], or
        normalised per patch. There the two guesses are the patch's own mean, because nearly flat
        patches would blow up the error of any other colour.
        """
        totals_of_metric = {}
        for name in self.rows:
            totals = self.by_row(name)
            if totals:
                totals_of_metric[name] = totals

        numbers: dict[str, float] = {}
        for name, totals in totals_of_metric.items():
            sum_R, count_R = np.array([*totals.values()]).T
            groups = [intervals.group_of(row) for row in totals]
            number = intervals.ratio(sum_R, count_R, groups)
            for baseline, baseline_totals in totals_of_metric.items():
                is_of_same_rows = baseline_totals.keys() == totals.keys()
                if baseline.startswith(f"{name}_") and is_of_same_rows:
                    baseline_sum_R = np.array([total[0] for total in baseline_totals.values()])
                    gain_R = (sum_R - baseline_sum_R) / count_R.sum()
                    number = intervals.with_difference(number, baseline, gain_R, groups)
            numbers[name] = number
        return numbers
