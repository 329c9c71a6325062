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
        (
            "mim_mse_wrong_caption",
            "squared error of masked pixels, with the caption of another row",
        ),
        ("mlm_acc_wrong_image", "masked tokens guessed right, with the image of another row"),
        ("mlm_acc_unigram", "masked tokens guessed right, by the most frequent token"),
        (
            "vqa_acc_blind",
            "questions answered right, by the most frequent answer to the same question",
        ),
        ("vqa_acc_words", "questions answered right, by a guess from the words of the question"),
        ("of_my_own", ""),
        ("of_my_own_wrong_image", ""),
    ],
)
def test_metrics_are_explained_in_words(name: str, words: str):
    assert meaning(name) == words
