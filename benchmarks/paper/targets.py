"""Reproduce the paper's Table 3 as far as possible: targets of MIM.

    python benchmarks/paper/targets.py --jobs 2

EVE's masked image modelling (MIM) reconstructs pixels. Rows with a visual tokenizer are missing,
because this package has none. Compared are raw pixels, pixels normalised per patch (MAE §4; the
paper is silent) and no pixels, which are rows of the paper's Table 5. The paper's numbers: VQA v2
for questions, NLVR2 test-P for statements, R@1 on Flickr30K for captions. Uses EVE of 4 blocks of
width 192 with 4 experts in the last two, on scenes of 48 pixels in patches of 8, at equal pairs.
"""

from command import Part, Table, above_all, eve, main

ROWS = {
    "pixels": eve(),
    "pixels, normalised": eve("--task.normalize-targets"),
    "nothing (MLM)": eve("--task.mim-weight 0"),
}
TABLE = Table(
    name="targets",
    about=__doc__,
    jobs=("vqa", "nlvr2", "retrieval"),
    parts=(
        Part(
            name="Table 3",
            arms=ROWS,
            budgets={"pairs": (24_000,)},
            orderings=above_all("pixels", ["nothing (MLM)"], ("vqa_acc", "nlvr2_acc", "tr1")),
            paper={
                "pixels": {"nlvr2_acc": 80.1, "tr1": 93.9, "vqa_acc": 77.3},
                "nothing (MLM)": {"nlvr2_acc": 79.3, "tr1": 92.2, "vqa_acc": 77.0},
            },
        ),
    ),
)

if __name__ == "__main__":
    main(TABLE)
