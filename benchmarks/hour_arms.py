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
    """Whether open_clip learns it; stages then only say how large images are and how they are cropped."""


# What the arms share: the encoder of the short recipes, search by contrast alone, and of scenes the rates of the long recipes.
# Phantoms have those of scenes, at a size that shows their findings and with room for a report.
PHANTOMS = "--input.image-size 64 --input.text-length 64"
STARTS = {"scenes": ("scenes", ""), "phantoms": ("scenes", PHANTOMS), "emoji": ("emoji", ""), "icons": ("icons", "")}
"""Recipe and flags of pre-training, by family."""
FINE_TUNING = {
    "scenes": {"vqa": Stage("scenes_vqa"), "nlvr2": Stage("scenes_nlvr2"), "retrieval": Stage("demo_retrieval")},
    "phantoms": {"vqa": Stage("scenes_vqa"), "retrieval": Stage("demo_retrieval")},
    "emoji": {"retrieval": Stage("emoji_retrieval")},
    "icons": {"retrieval": Stage("icons_search")},
}
SHARES = {"scenes": 0.5, "phantoms": 0.5, "emoji": 0.4, "icons": 0.1}  # of the budget for pre-training
# EVE as in the paper: linear patches, experts, pixels beside words, no word that may be false.
ENCODER = "--input.patch-size 8 --model.stem linear --model.deep-ffn moe --train.batch-size 32 --train.lr 1.2e-3"
PAPER = f"{ENCODER} --task.mim-weight 1 --task.mask-replace-prob 0"


def start(family: str, flags: str = "", task: type[TaskConfig] | None = None, share: float | None = None) -> Stage:
    """Return the pre-training of a family's shared encoder, with its usual share of the budget."""
    recipe, own = STARTS[family]
    return Stage(recipe, SHARES[family] if share is None else share, f"{own} {flags}".strip(), task)


def pretrained(flags: str = "", task: type[TaskConfig] | None = None, *families: str) -> dict[str, Arm]:
    """Return the arm that pre-trains the shared encoder."""
    return {family: Arm((start(family, flags, task),)) for family in families or FAMILIES}


def untrained(*families: str, flags: str = "", is_peer: bool = False) -> dict[str, Arm]:
    """Return the arm that starts from random weights of the shared encoder."""
    return {family: Arm((start(family, flags, share=0.0),), is_peer=is_peer) for family in families}


RIVAL = "--task.mask-replace-prob 0"
GENERATED = ("scenes", "phantoms")
ARMS: dict[str, dict[str, Arm]] = {
    "best": pretrained(),
    "EVE": pretrained(PAPER),
    "EVE+ITC": pretrained(f"{RIVAL} --task.mim-weight 1 --task.itm-weight 0", ContrastMatchConfig),
    "MLM+ITC+ITM": pretrained(f"{RIVAL} --task.mim-weight 0", ContrastMatchConfig),
    "contrast": {
        **pretrained("--task.mim-weight 0 --task.mlm-weight 0 --task.itm-weight 0", ContrastMatchConfig, *GENERATED),
        **untrained("emoji", "icons"),
    },
    "nothing": untrained(*GENERATED),  # elsewhere it would be the same as contrast
    "open_clip": untrained("scenes", "emoji", "icons", is_peer=True),  # it would cut a phantom's report
}
"""By name, what each family of tasks is learnt by; in print the first one is compared with the others."""
REFERENCES = ("nothing", "open_clip")
"""Arms whose curves are drawn dashed and grey."""
