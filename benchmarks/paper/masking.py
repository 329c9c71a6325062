"""Reproduce the paper's Figure 4: mask ratios of image and text.

    python benchmarks/paper/masking.py --jobs 2

Uses EVE of 4 blocks of width 192 with 4 experts in the last two, on scenes of 48 pixels in 36
patches, at equal pairs; the paper has EVE-Base with 196 patches. One ratio varies while the other
keeps the paper's best: 75 % of the patches, 50 % of the tokens. The paper plots its numbers without
printing them; ours are accuracies of questions about scenes.
"""

from command import Part, Table, above_all, eve, main

QUESTIONS = ("vqa_acc",)
IMAGE = {
    ratio: "EVE" if ratio == 0.75 else f"image {100 * ratio:.0f} %"
    for ratio in (0.25, 0.5, 0.75, 0.9)
}
TEXT = {
    ratio: "EVE" if ratio == 0.5 else f"text {100 * ratio:.0f} %" for ratio in (0.15, 0.3, 0.5, 0.7)
}


def part(modality: str, rows: dict[float, str]) -> Part:
    """Return the figure of one modality."""
    flags = {
        name: f"--task.{modality}-mask-ratio {ratio:g}" * (name != "EVE")
        for ratio, name in rows.items()
    }
    return Part(
        name=f"Figure 4, {modality}",
        arms={name: eve(each) for name, each in flags.items()},
        budgets={"pairs": (24_000,)},
        orderings=above_all("EVE", list(flags), QUESTIONS),
        axis="mask ratio",
        places={name: (modality, ratio) for ratio, name in rows.items()},
    )


TABLE = Table(
    name="masking", about=__doc__, jobs=("vqa",), parts=(part("image", IMAGE), part("text", TEXT))
)

if __name__ == "__main__":
    main(TABLE)
