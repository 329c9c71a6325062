"""Rows of data with the outputs of a run, as report pages show them.

Letters: C classes, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from eve_vl.utils.frozen import Frozen


@dataclass(frozen=True)
class Choice:
    """One output that a model proposes: a token, an answer, a class."""

    text: str
    probability: float
    is_right: bool


class Example(Frozen):
    """A row with the run's output."""

    where: str
    images: Mapping[str, np.ndarray]
    """Name → uint8 (H, W, 3); may be empty."""
    text: str
    """Caption, question or statement; may be empty."""
    choices: Sequence[Choice] = ()
    """Proposed answers, best first; or the best guess for each masked token."""
    output_images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Images that the run generated or found."""
    truth: str = ""
    """Right answer; "" if unknown."""
    kind: str = ""
    """Group of the row; the page alternates between groups."""

    @property
    def is_right(self) -> bool | None:
        """Whether the first choice is right; None if unknown."""
        if not self.truth:
            return None
        return self.choices[0].is_right


def best_choices(
    probability_C: Tensor,
    num_choices: int,
    text: Callable[[int], str],
    is_right: Callable[[int], bool],
) -> list[Choice]:
    """Return the most probable classes, best first.

    text, is_right: functions of the class index.
    """
    values, classes = probability_C.topk(min(num_choices, len(probability_C)))
    choices = []
    for index, probability in zip(classes.tolist(), values.tolist(), strict=True):
        choices.append(Choice(text(index), probability, is_right(index)))
    return choices
