"""EVE, its neighbours and its rivals, fine-tuned alike: at equal core-seconds, and at equal pairs.

    python benchmarks/paper/systems.py --jobs 2                                       # built-in scenes
    python benchmarks/paper/systems.py --jobs 2 --tasks phantoms
    python benchmarks/paper/systems.py --jobs 2 --tasks icons --icons FOLDER          # as examples/icons/build.py builds it
    python benchmarks/paper/systems.py --jobs 2 --arms EVE VLMo nothing --core-seconds 40 160   # some rows, for longer

Systems in their small forms, each with its own encoder: EVE of 4 blocks of width 192 with linear patches of 8 pixels and 4
experts in the last two; `best`, the same idea as this package has it, with convolutions and words alone; VLMo in three stages,
MLIM, M3AE and MedFLIP as in their recipes; on EVE's encoder contrast, matching and words (ITC+ITM+MLM), contrast alone and no
pre-training. All are fine-tuned by the same recipes: for questions, for statements (scenes) and for search by contrast. On
icons, where search is all there is, contrast alone has no pre-training. Beside ours: the paper's main results of EVE-Base and
of VLMo-Base (VQA v2 test-dev, NLVR2 test-P, R@1 on Flickr30K), whose first stage is a BEiT that was fine-tuned with labels,
which ours is not. Whether EVE is above no pre-training at all is asked by us, not by the paper.
"""

from collections.abc import Mapping

from command import Ordering, Part, Table, main
from hour_arms import ARMS, ENCODER, FINE_TUNING, GENERATED, PHANTOMS, RIVAL, SHARES, Arm, Stage, pretrained, untrained

from eve_vl.config import ContrastMatchConfig

TASKS = (*GENERATED, "icons")
SIZES = {
    "scenes": "--input.image-size 48 --input.text-length 32",
    "phantoms": PHANTOMS,
    "icons": "--input.image-size 64 --input.text-length 16 --tokenizer.vocab-size 4000 --data.augment random_ink",
}
"""Flags of a neighbour's recipe, so that it sees what the others see."""


def in_stages(*stages: tuple[str, float], only: str = "") -> Mapping[str, Arm]:
    """Return a system that goes through recipes, each with its share of what pre-training has. only: what alone it can be
    fine-tuned for."""
    return {
        family: Arm(
            tuple(Stage(recipe, share * SHARES[family], flags) for recipe, share in stages),
            {job: stage for job, stage in FINE_TUNING[family].items() if only in ("", job)},
        )
        for family, flags in SIZES.items()
    }


NEIGHBOURS = {
    # images alone have no words to make a tokenizer of: the first stage only makes that
    "VLMo": in_stages(("vlmo_tiny", 0), ("vlmo_tiny_images", 0.25), ("vlmo_tiny_texts", 0.25), ("vlmo_tiny", 0.5)),
    "MLIM": in_stages(("mlim_tiny", 1)),
    "M3AE": in_stages(("m3ae_tiny", 1)),
    "MedFLIP": in_stages(("medflip_tiny", 1), only="retrieval"),  # nothing joins its towers to a state of a pair
}
ALONE = f"{ENCODER} --task.mim-weight 0 --task.mlm-weight 0 --task.itm-weight 0"
ROWS = {
    "EVE": ARMS["EVE"],
    "best": ARMS["best"],
    **NEIGHBOURS,
    "ITC+ITM+MLM": pretrained(f"{ENCODER} {RIVAL} --task.mim-weight 0", ContrastMatchConfig, *TASKS),
    "contrast": pretrained(ALONE, ContrastMatchConfig, *GENERATED) | untrained("icons", flags=ENCODER),
    "nothing": untrained(*GENERATED, flags=ENCODER),  # on icons it would be the same as contrast
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
            orderings=tuple(Ordering("EVE", other, NUMBERS) for other in ("VLMo", "ITC+ITM+MLM", "nothing")),
            paper={
                "EVE": {"vqa_acc": 78.0, "nlvr2_acc": 83.93, "tr1": 95.6, "ir1": 84.1},
                "VLMo": {"vqa_acc": 76.64, "nlvr2_acc": 83.34, "tr1": 92.3, "ir1": 79.3},
            },
        ),
    ),
)

if __name__ == "__main__":
    main(TABLE)
