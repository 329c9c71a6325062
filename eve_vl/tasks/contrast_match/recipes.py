"""Recipes of the baselines of [paper] Table 1: pre-training by contrast, matching and masked
tokens."""

from dataclasses import replace
from typing import Any

from eve_vl.config import Config
from eve_vl.recipes.settings import changed
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.recipes import base, demo_words, scenes_words


def demo_mlm_itc_itm() -> Config:
    """The pairs and steps of `demo_words` with the baseline MLM + ITC + ITM.

    It takes 3.7 times the arithmetic of `demo_words`.

    eve pretrain demo_mlm_itc_itm
    """
    return _baseline(demo_words(), "demo_mlm_itc_itm", mim_weight=0.0)


def scenes_mlm_itc_itm() -> Config:
    """The pairs and steps of `scenes_words` with the baseline MLM + ITC + ITM.

    eve pretrain scenes_mlm_itc_itm
    """
    return _baseline(scenes_words(), "scenes_mlm_itc_itm", mim_weight=0.0)


def scenes_all_losses() -> Config:
    """The pairs and steps of `scenes_words` with all four losses.

    They are MLM, ITC, ITM and MIM.

    eve pretrain scenes_all_losses
    """
    return _baseline(scenes_words(), "scenes_all_losses", mim_weight=1.0)


def base_mlm_itc_itm() -> Config:
    """EVE-Base's encoder with the baseline MLM + ITC + ITM.

    It takes 3.2 times the time ([paper] Table 1).

    Contrast sees all 2,048 pairs of a step. Hard negatives of matching come from the micro-batch of
    a process.

    torchrun --nproc-per-node 8 -m eve_vl pretrain base_mlm_itc_itm \\
        --data.train 'pairs-{0000..0999}.tar' --data.val val.jsonl
    """
    baseline = _baseline(base(), "base_mlm_itc_itm", mim_weight=0.0)
    return changed(
        baseline, "base_mlm_itc_itm", train={"accumulation": 16}
    )  # four passes hold four times the activations


def _baseline(config: Config, name: str, *, mim_weight: float) -> Config:
    """Return a run with contrast and matching next to masked tokens."""
    values: dict[str, Any] = vars(config.task) | {"mim_weight": mim_weight}
    return changed(replace(config, task=ContrastMatchConfig(**values)), name)
