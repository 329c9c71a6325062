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


# What the arms share: the encoder of the short recipes, search by contrast alone, and of scenes the rates of the long recipes.
FINE_TUNING = {
    "scenes": {"vqa": Stage("scenes_vqa"), "nlvr2": Stage("scenes_nlvr2"), "retrieval": Stage("demo_retrieval")},
    "emoji": {"retrieval": Stage("emoji_retrieval")},
    "icons": {"retrieval": Stage("icons_search")},
}
SHARES = {"scenes": 0.5, "emoji": 0.4, "icons": 0.1}  # of the budget for pre-training
# EVE as in the paper: linear patches, experts, pixels beside words, no word that may be false.
PAPER = "--input.patch-size 8 --model.stem linear --model.deep-ffn moe --train.batch-size 32 --train.lr 1.2e-3"
PAPER += " --task.mim-weight 1 --task.text-shown-share 0"


def pretrained(flags: str = "", task: type[TaskConfig] | None = None, *families: str) -> dict[str, Arm]:
    """Return the arm that pre-trains the shared encoder."""
    chosen = families or FAMILIES
    return {family: Arm((Stage(family, SHARES[family], flags, task),)) for family in chosen}


def untrained(*families: str, is_peer: bool = False) -> dict[str, Arm]:
    """Return the arm that starts from random weights of the shared encoder."""
    return {family: Arm((Stage(family),), is_peer=is_peer) for family in families}


RIVAL = "--task.text-shown-share 0"
ARMS: dict[str, dict[str, Arm]] = {
    "best": pretrained(),
    "EVE": {family: Arm((Stage(family, SHARES[family], PAPER),)) for family in FAMILIES},
    "EVE+ITC": pretrained(f"{RIVAL} --task.mim-weight 1 --task.itm-weight 0", ContrastMatchConfig),
    "MLM+ITC+ITM": pretrained(f"{RIVAL} --task.mim-weight 0", ContrastMatchConfig),
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
