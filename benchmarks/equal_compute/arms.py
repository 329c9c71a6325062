"""Arms of run.py; edit the table ARMS to compare others."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from eve_vl.config import TaskConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig


@dataclass(frozen=True)
class Stage:
    """One training run of an arm."""

    recipe: str
    share: float = 0.0
    """Share of the budget. With 0, a stage before fine-tuning only provides shapes and tokenizer,
    and weights stay random. The last stage (fine-tuning) gets the remaining share."""
    flags: str = ""
    """Command line flags."""
    task: type[TaskConfig] | None = None
    """Task that replaces the recipe's own; fields that both have keep their values."""


@dataclass(frozen=True)
class Arm:
    """Training stages for one family of tasks."""

    before: tuple[Stage, ...]
    after: Mapping[str, Stage] = field(default_factory=dict)
    """Fine-tuning stage by job. If empty, FINE_TUNING has them."""
    is_open_clip: bool = False
    """True if open_clip trains it; the stages then only give image size and crop."""


# All arms share the short recipes' encoder and contrastive fine-tuning for search; scenes use the
# long recipes' learning rates.
# Phantoms use the recipes of scenes, with larger images (findings stay visible) and longer texts (a
# report fits).
PHANTOMS = "--input.image-size 64 --input.text-length 64"
WORDS = "--task.mim-weight 0 --task.mim-share 1 --model.deep-ffn modality --model.expert-ratio 0"
SHALLOW = "--model.depth 1 --input.patch-size 32"
"""As in the recipe `icons`; chosen for emoji by validation (LOG.md)."""
STARTS = {
    "scenes": ("scenes_words", ""),
    "phantoms": ("scenes_words", PHANTOMS),
    "emoji": ("emoji", f"{WORDS} {SHALLOW}"),
    "icons": ("icons", ""),
    "photos": ("photos", ""),
}
"""Pre-training recipe and flags by family, without pixels and experts; `photos` has both."""
MADE_UP = ("scenes", "phantoms", "emoji", "icons")
"""Families without photographs."""
PIXELS, EXPERTS = (
    "--task.mim-weight 1 --task.mim-share 0.25",
    "--model.deep-ffn moe --model.expert-ratio 1",
)
"""The parts of EVE as in `demo`."""
SEARCH = Stage("demo_retrieval", flags="--train.lr 1e-3")
"""Fine-tuning for search, with half of the recipe's rate, which suits many steps (LOG.md,
2026-11-30)."""
FINE_TUNING = {
    "scenes": {"vqa": Stage("scenes_vqa"), "nlvr2": Stage("scenes_nlvr2"), "retrieval": SEARCH},
    "phantoms": {"vqa": Stage("scenes_vqa"), "retrieval": SEARCH},
    "emoji": {"retrieval": Stage("search_small", flags="--train.lr 1e-3")},
    "icons": {"retrieval": Stage("icons_search", flags="--train.lr-multipliers encoder.text.* 3")},
    "photos": {"retrieval": Stage("photos_search")},
}
SHARES = {
    "scenes": 0.5,
    "phantoms": 0.5,
    "emoji": 0.4,
    "icons": 0.1,
    "photos": 0.4,
}  # share of the budget for pre-training
# EVE as in the paper: linear patches, experts, MIM next to MLM, [MASK] for every masked token.
ENCODER = (
    "--input.patch-size 8 --model.stem linear --model.depth 4 --model.num-deep-blocks 2 "
    "--model.deep-ffn moe "
    "--train.batch-size 32 --train.lr 1.2e-3"
)
PAPER = f"{ENCODER} --task.mim-weight 1 --task.mask-replace-prob 0"


def start(
    family: str,
    flags: str = "",
    task: type[TaskConfig] | None = None,
    share: float | None = None,
) -> Stage:
    """Return the pre-training stage of a family's shared encoder.

    share: of the budget; by default the family's usual share.
    """
    recipe, own = STARTS[family]
    return Stage(recipe, SHARES[family] if share is None else share, f"{own} {flags}".strip(), task)


def pretrained(
    flags: str = "",
    task: type[TaskConfig] | None = None,
    *families: str,
) -> dict[str, Arm]:
    """Return an arm that pre-trains the shared encoder."""
    return {family: Arm((start(family, flags, task),)) for family in families or MADE_UP}


def untrained(*families: str, flags: str = "", is_open_clip: bool = False) -> dict[str, Arm]:
    """Return an arm that fine-tunes the shared encoder from random weights."""
    return {
        family: Arm((start(family, flags, share=0.0),), is_open_clip=is_open_clip)
        for family in families
    }


def upcycled(*families: str, flags: str = "") -> dict[str, Arm]:
    """Return an arm whose experts start from networks of an earlier stage.

    Only the last 30 % of pre-training uses experts. flags: of both stages.
    """
    found = {}
    for family in families:
        recipe, own = STARTS[family]
        share = SHARES[family]
        last = Stage(recipe, 0.3 * share, f"{own} {flags} {EXPERTS}")
        found[family] = Arm((start(family, flags, share=0.7 * share), last))
    return found


ONLY_MASK_TOKENS = "--task.mask-replace-prob 0"
GENERATED = ("scenes", "phantoms")
ARMS: dict[str, dict[str, Arm]] = {
    "words": {
        **pretrained(),
        **pretrained("--task.mim-weight 0", None, "photos"),
    },
    "words+pixels": pretrained(PIXELS),
    "words+experts": pretrained(EXPERTS),
    "words+pixels+experts": pretrained(f"{PIXELS} {EXPERTS}"),
    "words, then experts": upcycled("scenes", "phantoms", "emoji"),
    "words+pixels, then experts": upcycled("scenes", "phantoms", "emoji", flags=PIXELS),
    "EVE": {**pretrained(PAPER), **pretrained("", None, "photos")},
    "EVE+ITC": pretrained(
        f"{ONLY_MASK_TOKENS} --task.mim-weight 1 --task.itm-weight 0", ContrastMatchConfig
    ),
    "MLM+ITC+ITM": pretrained(
        f"{ONLY_MASK_TOKENS} --task.mim-weight 0", ContrastMatchConfig, *MADE_UP, "photos"
    ),
    "contrast": {
        **pretrained(
            "--task.mim-weight 0 --task.mlm-weight 0 --task.itm-weight 0",
            ContrastMatchConfig,
            *GENERATED,
        ),
        **untrained("emoji", "icons", "photos"),
    },
    "nothing": untrained(*GENERATED),  # for the others it would equal contrast
    "open_clip": untrained(
        "scenes", "emoji", "icons", "photos", is_open_clip=True
    ),  # its context is too short for a phantom's report
}
"""Arms by name and family of tasks."""
REFERENCES = ("nothing", "open_clip")
"""Arms with dashed grey curves."""
