"""Reproduce the paper's Tables 7 and 8 and Figure 5: feed-forward networks.

    python benchmarks/paper/ffn.py --jobs 2

They vary the deep blocks, the modality routing and the number of experts. Uses EVE of 4 blocks of
width 192, the last two of them deep, on scenes of 48 pixels in patches of 8, at equal pairs; the
paper has EVE-Base of 12 blocks and 32 experts. `soft` has 4 experts, two per token. The paper's
numbers are for VQA v2, ours for questions about scenes.
"""

from collections.abc import Mapping

from command import Ordering, Part, Table, above_all, eve, main
from equal_compute.cells import Unit

BUDGETS: Mapping[Unit, tuple[float, ...]] = {"pairs": (16_000,)}
QUESTIONS = ("vqa_acc",)
DEEP = {
    "shared": eve("--model.deep-ffn shared"),
    "shared + 1 block": eve("--model.deep-ffn shared --model.depth 5 --model.num-deep-blocks 3"),
    "hard": eve("--model.deep-ffn modality"),
    "soft": eve(),
    "soft without balance loss": eve("--model.balance-weight 0"),
}
ROUTING = {"soft": eve(), "soft without modality routing": eve("--model.no-modality-routing")}


def experts(number: int, top: int) -> str:
    """Return the row name of a number of experts."""
    return "soft" if (number, top) == (4, 2) else f"{number} experts, top {top}"


GRID = [(number, top) for top in (1, 2) for number in (4, 8, 16, 32)]
TABLE = Table(
    name="ffn",
    about=__doc__,
    jobs=("vqa",),
    parts=(
        Part(
            name="Table 7",
            arms=DEEP,
            budgets=BUDGETS,
            orderings=above_all("soft", list(DEEP), QUESTIONS),
            paper={
                "shared": {"vqa_acc": 77.0},
                "shared + 1 block": {"vqa_acc": 77.1},
                "hard": {"vqa_acc": 77.0},
                "soft": {"vqa_acc": 77.4},
                "soft without balance loss": {"vqa_acc": 77.1},
            },
        ),
        Part(
            name="Table 8",
            arms=ROUTING,
            budgets=BUDGETS,
            orderings=above_all("soft", list(ROUTING), QUESTIONS),
            paper={"soft": {"vqa_acc": 77.4}, "soft without modality routing": {"vqa_acc": 77.3}},
        ),
        Part(
            name="Figure 5",
            arms={
                experts(number, top): eve(
                    f"--model.num-experts {number} --model.top-k {top}" * ((number, top) != (4, 2))
                )
                for number, top in GRID
            },
            budgets=BUDGETS,
            orderings=(
                Ordering(experts(32, 2), experts(4, 2), QUESTIONS),
                Ordering(experts(32, 1), experts(4, 1), QUESTIONS, is_gain=False),
            ),
            axis="experts",
            places={experts(number, top): (f"top {top}", number) for number, top in GRID},
        ),
    ),
)

if __name__ == "__main__":
    main(TABLE)
