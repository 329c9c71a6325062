"""The arms that benchmarks/hour.py compares: change this table to compare others."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hour_data import FAMILIES

from eve_vl.config import ContrastMatchConfig, TaskConfig


@dataclass(frozen=True)
class Stage:
    """Something that an arm goes through."""

    recipe: str
    share: float = 0.0
    """Of the budget; 0 before others: the recipe gives only its shapes and its tokenizer, and weights stay random. The last
    stage, fine-tuning, has what the others leave."""
    flags: str = ""
    """As on the command line."""
    task: type[TaskConfig] | None = None
    """What to train in place of the recipe's own task, with the same values where both have them."""


@dataclass(frozen=True)
class Arm:
    """How a family of tasks is learnt."""

    before: tuple[Stage, ...]
    after: Mapping[str, Stage] = field(default_factory=dict)
    """Fine-tuning, by what for, where it is not that of FINE_TUNING."""
    is_peer: bool = False
    """Whether open_clip learns it; stages then only say how large pictures are and how they are cropped."""


# What the arms share. Search is learnt by contrast alone: in runs as short as these, matching makes it worse (LOG.md).
CONTRAST = "--task.itm-weight 0 --task.rerank 0 --task.no-standardize-match --train.batch-size 128 --train.lr 1e-3"
# What has been found since, on icons (LOG.md).
SHAPES = "--input.patch-size 16 --model.stem convolutions --model.deep-ffn modality"
DRAWINGS = "--data.augment recolor --data.crop-scale 1 1"
FOUND = {"retrieval": Stage("emoji_retrieval", flags=f"{CONTRAST} {DRAWINGS} --task.pooling mean")}
PRETRAINING = {"scenes": "scenes", "emoji": "emoji", "icons": "emoji"}
FINE_TUNING = {
    "scenes": {
        "vqa": Stage("scenes_vqa"),
        "nlvr2": Stage("scenes_nlvr2"),
        "retrieval": Stage("scenes_retrieval", flags=CONTRAST),
    },
    "emoji": {"retrieval": Stage("emoji_retrieval", flags=CONTRAST)},
    "icons": {"retrieval": Stage("emoji_retrieval", flags=CONTRAST)},
}


def pretrained(flags: str = "", task: type[TaskConfig] | None = None, *families: str, share: float = 0.5) -> dict[str, Arm]:
    """Return the arm that pre-trains for a share of the budget."""
    chosen = families or FAMILIES
    return {family: Arm((Stage(PRETRAINING[family], share, flags, task),)) for family in chosen}


def untrained(*families: str, is_peer: bool = False) -> dict[str, Arm]:
    """Return the arm that starts from random weights."""
    return {family: Arm((Stage(PRETRAINING[family]),), is_peer=is_peer) for family in families}


ARMS: dict[str, dict[str, Arm]] = {
    "best": {
        **pretrained(share=0.4),
        "icons": Arm((Stage("emoji", 0.4, f"{SHAPES} {DRAWINGS}"),), FOUND),
    },
    "best_untrained": {"icons": Arm((Stage("emoji", flags=SHAPES),), FOUND)},
    "EVE": pretrained(),
    "EVE+ITC": pretrained("--task.itm-weight 0", ContrastMatchConfig),
    "MLM+ITC+ITM": pretrained("--task.mim-weight 0", ContrastMatchConfig),
    "contrast": {
        **pretrained("--task.mim-weight 0 --task.mlm-weight 0 --task.itm-weight 0", ContrastMatchConfig, "scenes"),
        **untrained("emoji", "icons"),
    },
    "nothing": untrained("scenes"),  # elsewhere it would be the same as contrast
    "open_clip": untrained(*FAMILIES, is_peer=True),
}
"""By name, what each family of tasks is learnt by; in print the first one is compared with the others."""
REFERENCES = ("nothing", "open_clip")
"""Arms whose curves are drawn dashed and grey."""
