"""Reproduce the paper's Tables 5 and 6: masked modalities, and added ITC and ITM.

    python benchmarks/paper/tasks.py --jobs 2

Uses EVE of 4 blocks of width 192 with 4 experts in the last two, on scenes of 48 pixels in patches
of 8, instead of EVE-Base on 4M images. Table 5 is at equal pairs; Table 6 is at equal core-seconds
of one thread, where the paper has equal GPU hours. The paper's numbers: VQA v2 for questions, NLVR2
test-P for statements, R@1 on Flickr30K for captions (TR) and images (IR).
"""

from command import Ordering, Part, Table, above_all, eve, main

from eve_vl.tasks.contrast_match.config import ContrastMatchConfig

BY_TASKS = {
    "MIM": eve("--task.mlm-weight 0"),
    "MLM": eve("--task.mim-weight 0"),
    "both masked at once": eve("--task.joint-masking"),
    "MIM+MLM": eve(),
}
# The paper does not say what matching without contrast draws its wrong pairs by; here half of the
# pairs get any other image.
BY_LOSSES = {
    "EVE+ITC": eve("--task.itm-weight 0", ContrastMatchConfig),
    "EVE+ITM": eve("--task.itc-weight 0 --task.itm-negatives random_half", ContrastMatchConfig),
    "EVE+ITC+ITM": eve("", ContrastMatchConfig),
    "EVE": eve(),
}
TABLE = Table(
    name="tasks",
    about=__doc__,
    jobs=("vqa", "nlvr2", "retrieval"),
    parts=(
        Part(
            name="Table 5",
            arms=BY_TASKS,
            budgets={"pairs": (24_000,)},
            orderings=(
                *above_all("MIM+MLM", list(BY_TASKS), ("vqa_acc", "nlvr2_acc", "tr1")),
                Ordering("MLM", "both masked at once", ("vqa_acc", "nlvr2_acc", "tr1")),
            ),
            paper={
                "MIM": {"nlvr2_acc": 57.4, "tr1": 30.4, "vqa_acc": 60.9},
                "MLM": {"nlvr2_acc": 79.3, "tr1": 92.2, "vqa_acc": 77.0},
                "both masked at once": {"nlvr2_acc": 75.7, "tr1": 88.6, "vqa_acc": 74.6},
                "MIM+MLM": {"nlvr2_acc": 80.1, "tr1": 93.9, "vqa_acc": 77.3},
            },
        ),
        Part(
            name="Table 6",
            arms=BY_LOSSES,
            budgets={"core-seconds": (90,)},
            orderings=above_all("EVE", list(BY_LOSSES), ("vqa_acc", "tr1", "ir1")),
            paper={
                "EVE+ITC": {"tr1": 94.0, "ir1": 80.0, "vqa_acc": 76.8},
                "EVE+ITM": {"tr1": 94.0, "ir1": 80.7, "vqa_acc": 77.0},
                "EVE+ITC+ITM": {"tr1": 94.2, "ir1": 80.8, "vqa_acc": 77.1},
                "EVE": {"tr1": 94.4, "ir1": 81.2, "vqa_acc": 77.4},
            },
        ),
    ),
)

if __name__ == "__main__":
    main(TABLE)
