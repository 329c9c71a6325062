"""Names of metrics in words."""

import pytest

from eve_vl.metrics.names import meaning


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tr1", "find the caption, R@1"),
        ("ir10_merged", "find the image, R@10, equal captions as one"),
        ("tr1_hard", "find the caption, R@1, among false captions that differ in one place"),
        ("tr1_chance", ""),
        ("precision_ir5", "find the image, first 5 of the right class"),
        ("precision_tr", "find the caption, right class"),
        ("vqa_acc/yes", "questions answered right, yes"),
        ("of_my_own", ""),
    ],
)
def test_metrics_are_explained_in_words(name: str, words: str):
    assert meaning(name) == words
