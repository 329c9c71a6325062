"""Compare EVE, related systems and baselines at equal core-seconds or pairs.

    python benchmarks/paper/systems.py --jobs 2                                       # built-in scenes
    python benchmarks/paper/systems.py --jobs 2 --tasks phantoms
    python benchmarks/paper/systems.py --jobs 2 --tasks icons --icons FOLDER          # built by examples/icons/build.py
    python benchmarks/paper/systems.py --jobs 2 --arms EVE VLMo nothing --core-seconds 40 160   # some rows, larger budgets

Each system has its small form and its own encoder. EVE has 4 blocks of width 192, linear patches of
8 pixels and 4 experts in the last two blocks. `words` is this package's: two blocks, convolutional
stem, MLM only. VLMo has three stages; MLIM, M3AE and MedFLIP follow their recipes. The baselines
use EVE's encoder with ITC + ITM + MLM, with ITC only, and without pre-training. All systems are
fine-tuned by the same recipes: questions, statements (scenes) and contrastive search. On icons,
which only have search, the ITC arm has no pre-training. The paper's numbers are the main results of
EVE-Base and VLMo-Base (VQA v2 test-dev, NLVR2 test-P, R@1 on Flickr30K); VLMo's first stage there
is a BEiT fine-tuned with labels, ours is not. The ordering of EVE above no pre-training is our
question, not the paper's.
"""

from collections.abc import Mapping

from command import Ordering, Part, Table, main
from equal_compute.arms import (
    ARMS,
    ENCODER,
    FINE_TUNING,
    GENERATED,
    ONLY_MASK_TOKENS,
    PHANTOMS,
    SHARES,
    Arm,
    Stage,
    pretrained,
    untrained,
)

from eve_vl.tasks.contrast_match.config import ContrastMatchConfig

TASKS = (*GENERATED, "icons")
SIZES = {
    "scenes": "--input.image-size 48 --input.text-length 32",
    "phantoms": PHANTOMS,
    "icons": (
        "--input.image-size 64 --input.text-length 16 --tokenizer.vocab-size 4000 --data.augment "
        "random_ink"
    ),
}
"""Flags that give all systems the same inputs."""


def in_stages(*stages: tuple[str, float], only: str = "") -> Mapping[str, Arm]:
    """Return a system with staged pre-training.

    Shares divide the budget of pre-training. only: its only job, if restricted.
    """
    return {
        family: Arm(
            tuple(Stage(recipe, share * SHARES[family], flags) for recipe, share in stages),
            {job: stage for job, stage in FINE_TUNING[family].items() if only in ("", job)},
        )
        for family, flags in SIZES.items()
    }


SYSTEMS = {
    # image-only data cannot train a tokenizer; the first stage (share 0) only makes it
    "VLMo": in_stages(
        ("vlmo_tiny", 0), ("vlmo_tiny_images", 0.25), ("vlmo_tiny_texts", 0.25), ("vlmo_tiny", 0.5)
    ),
    "MLIM": in_stages(("mlim_tiny", 1)),
    "M3AE": in_stages(("m3ae_tiny", 1)),
    "MedFLIP": in_stages(
        ("medflip_tiny", 1), only="retrieval"
    ),  # two towers without fusion: no state of a pair
}
ALONE = f"{ENCODER} --task.mim-weight 0 --task.mlm-weight 0 --task.itm-weight 0"
ROWS = {
    "EVE": ARMS["EVE"],
    "words": ARMS["words"],
    **SYSTEMS,
    "ITC+ITM+MLM": pretrained(
        f"{ENCODER} {ONLY_MASK_TOKENS} --task.mim-weight 0", ContrastMatchConfig, *TASKS
    ),
    "contrast": pretrained(ALONE, ContrastMatchConfig, *GENERATED)
    | untrained("icons", flags=ENCODER),
    "nothing": untrained(*GENERATED, flags=ENCODER),  # on icons it would equal contrast
}
NUMBERS = ("vqa_acc", "nlvr2_acc", "tr1", "ir1")
TABLE = Table(
    name="systems",
    about=__doc__,
    jobs=("vqa", "nlvr2", "retrieval"),
    tasks=TASKS,
    parts=(
        Part(
            name="Systems",
            arms=ROWS,
            budgets={"core-seconds": (40,), "pairs": (12_000,)},
            orderings=tuple(
                Ordering("EVE", other, NUMBERS) for other in ("VLMo", "ITC+ITM+MLM", "nothing")
            ),
            paper={
                "EVE": {"vqa_acc": 78.0, "nlvr2_acc": 83.93, "tr1": 95.6, "ir1": 84.1},
                "VLMo": {"vqa_acc": 76.64, "nlvr2_acc": 83.34, "tr1": 92.3, "ir1": 79.3},
            },
        ),
    ),
)

if __name__ == "__main__":
    main(TABLE)
