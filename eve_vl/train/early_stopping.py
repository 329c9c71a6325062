"""When validation has brought no improvement for too long: train.patience."""

import math


class EarlyStopping:
    """Scores of validations so far, and whether the last `patience` of them brought no
    improvement."""

    def __init__(self, patience: int, *, is_higher_better: bool):
        """patience: number of validations; 0 never stops."""
        self.patience = patience
        self.is_higher_better = is_higher_better
        self.scores: list[float] = []

    def has_stalled(self) -> bool:
        """Return whether training should stop."""
        if self.patience == 0 or not self.scores:
            return False
        values = [self._value(score) for score in self.scores]
        best_index = values.index(max(values))
        return len(values) - best_index > self.patience

    def _value(self, score: float) -> float:
        if math.isnan(score):
            return -math.inf
        return score if self.is_higher_better else -score
