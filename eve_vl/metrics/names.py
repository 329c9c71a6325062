"""Names of numbers in a few words, for `eve evaluate`."""

import re

BASES = {
    "r_mean": "mean of the six recalls",
    "rsum": "sum of the six recalls, in per cent",
    "vqa_acc": "questions answered right",
    "wups_0.9": "WUPS of answers at 0.9",
    "wups_0.0": "WUPS of answers at 0.0",
    "num_answer_sets": "questions whose answer may name several things",
    "nlvr2_acc": "pairs judged right",
    "nlvr2_consistency": "statements with all pairs judged right",
    "acc": "rows with the right label",
    "balanced_acc": "right labels, mean over the labels",
    "mean_ap": "average precision, mean over the labels",
    "mlm_acc": "masked tokens guessed right",
    "mlm_loss": "cross-entropy of masked tokens, in nats",
    "mim_mse": "squared error of masked pixels",
    "tag_p5": "first 5 hits that have the tag searched for",
    "itc_acc": "own partner more similar than a wrong one",
    "itm_acc": "pairs recognised as right or wrong",
    "num_queries_without_match": "images and captions left out",
    "rerank_k": "candidates re-ranked",
}
ENDINGS = {  # others say what they are
    "_itc_only": "by contrast only",
    "_wrong_image": "with the image of another row",
    "_wrong_caption": "with the caption of another row",
    "_noise": "with noise instead of the image",
    "_blind": "by the most frequent answer to the same question",
    "_majority": "by the most frequent answer of all",
    "_image_only": "without the question",
    "_words": "by a guess from the words of the question",
    "_unigram": "by the most frequent token",
    "_mean_baseline": "by the mean of the visible patches around",
    "_image_mean": "by the mean of the image",
    "_merged": "equal captions as one",
    "_hard": "among false captions that differ in one place",
    "_1k": "mean of five folds",
}
DIRECTIONS = {"tr": "find the caption", "ir": "find the image"}
RANKED = re.compile(r"(?P<precision>precision_)?(?P<direction>tr|ir)(?P<k>\d*)")


def meaning(name: str) -> str:
    """Return a metric in words, such as `find the caption, R@1`; else nothing."""
    stem, _, part = name.partition("/")
    for ending, words in ENDINGS.items():
        if stem.endswith(ending):
            base = meaning(stem.removesuffix(ending))
            return f"{base}, {words}" if base else ""

    ranked = RANKED.fullmatch(stem)
    if ranked:
        direction = DIRECTIONS[ranked["direction"]]
        k = ranked["k"]
        if not k:
            return f"{direction}, right class"
        if ranked["precision"]:
            return f"{direction}, first {k} of the right class"
        return f"{direction}, R@{k}"

    base = BASES.get(stem, "")
    return f"{base}, {part}" if base and part else base
