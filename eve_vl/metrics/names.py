"""Names of numbers in a few words, for `eve evaluate`."""

import re

BASES = {
    "r_mean": "mean of the six recalls",
    "rsum": "sum of the six recalls, in per cent",
    "vqa_acc": "questions answered right",
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
    "_merged": "equal captions as one",
    "_hard": "among false captions that differ in one place",
    "_1k": "mean of five folds",
}
WAYS = {"tr": "find the caption", "ir": "find the image"}


def meaning(name: str) -> str:
    """Return a metric in words, such as `find the caption, R@1`; else nothing."""
    stem, _, part = name.partition("/")
    if found := next((ending for ending in ENDINGS if stem.endswith(ending)), None):
        base = meaning(stem.removesuffix(found))
        return f"{base}, {ENDINGS[found]}" if base else ""
    if ranked := re.fullmatch(r"(precision_)?(tr|ir)(\d*)", stem):
        first = f"first {ranked[3]} of the right class" if ranked[1] else f"R@{ranked[3]}"
        return f"{WAYS[ranked[2]]}, {first if ranked[3] else 'right class'}"
    base = BASES.get(stem, "")
    return f"{base}, {part}" if base and part else base
