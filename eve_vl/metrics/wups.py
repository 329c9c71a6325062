"""WUPS: a score of answers that name things, with credit for similar things.

See Malinowski and Fritz 2014, "A Multi-World Approach to Question Answering about Real-World Scenes
based on Uncertain Input", section 4. Checked against its authors' calculate_wups.py.
"""

import math
from collections.abc import Callable, Sequence

Similarity = Callable[[str, str], float]
"""The similarity of two words, in [0, 1]."""

THRESHOLDS = (0.9, 0.0)
WEIGHT_BELOW = 0.1
"""The weight of similarities below the threshold."""


def wups(
    predicted: Sequence[str], true: Sequence[str], similarity: Similarity, threshold: float
) -> float:
    """Return the WUPS of one question, in [0, 1].

    predicted, true: the things that the two answers name, at least one each. Each thing earns its
    similarity to the most similar thing of the other answer. The credits of an answer are
    multiplied, and the smaller of the two products counts: things too many cost as much as things
    that are missing.
    """

    def credit(thing: str, candidate: str) -> float:
        if thing == candidate:
            return 1.0
        value = similarity(thing, candidate)
        return value if value >= threshold else WEIGHT_BELOW * value

    product_of_predicted = math.prod(max(credit(p, t) for t in true) for p in predicted)
    product_of_true = math.prod(max(credit(t, p) for p in predicted) for t in true)
    return min(product_of_predicted, product_of_true)
