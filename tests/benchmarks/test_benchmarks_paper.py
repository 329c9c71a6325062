"""benchmarks/paper: rows equal the paper's tables; findings on orderings follow from the seeds."""

import importlib
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from eve_vl.metrics.intervals import MeasuredValue

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "paper")]  # scripts import each other by name
paper = importlib.import_module("command")
arms = importlib.import_module("equal_compute.arms")
data = importlib.import_module("equal_compute.data")
runs = importlib.import_module("equal_compute.cells")
tables = importlib.import_module("equal_compute.tables")
TABLES = {
    name: importlib.import_module(name).TABLE
    for name in ("tasks", "ffn", "masking", "targets", "systems")
}
SCENES = data.scenes(Path(), Path())

# differences from EVE in task and model, by hand
ROWS = {
    "tasks": {
        "MIM": {"mlm_weight": 0},
        "MLM": {"mim_weight": 0},
        "both masked at once": {"joint_masking": True},
        "MIM+MLM": {},
        "EVE+ITC": {"name": "contrast_match", "itc_weight": 1, "itm_weight": 0},
        "EVE+ITM": {
            "name": "contrast_match",
            "itc_weight": 0,
            "itm_weight": 1,
            "itm_negatives": "random_half",
        },
        "EVE+ITC+ITM": {"name": "contrast_match", "itc_weight": 1, "itm_weight": 1},
        "EVE": {},
    },
    "ffn": {
        "shared": {"deep_ffn": "shared"},
        "shared + 1 block": {"deep_ffn": "shared", "depth": 5, "num_deep_blocks": 3},
        "hard": {"deep_ffn": "modality"},
        "soft": {},
        "soft without balance loss": {"balance_weight": 0},
        "soft without modality routing": {"modality_routing": False},
        **{
            f"{number} experts, top {top}": {"num_experts": number, "top_k": top}
            for number in (8, 16, 32)
            for top in (1, 2)
        },
        "4 experts, top 1": {"top_k": 1},
    },
    "masking": {
        "EVE": {},
        **{f"image {ratio} %": {"image_mask_ratio": ratio / 100} for ratio in (25, 50, 90)},
        **{f"text {ratio} %": {"text_mask_ratio": ratio / 100} for ratio in (15, 30, 70)},
    },
    "targets": {
        "pixels": {},
        "pixels, normalised": {"normalize_targets": True},
        "nothing (MLM)": {"mim_weight": 0},
    },
    "systems": {
        "EVE": {},
        "words": {
            "mim_weight": 0,
            "mask_replace_prob": 0.5,
            "deep_ffn": "modality",
            "stem": "conv",
            "depth": 2,
            "num_deep_blocks": 1,
        },
        "ITC+ITM+MLM": {
            "name": "contrast_match",
            "mim_weight": 0,
            "itc_weight": 1,
            "itm_weight": 1,
        },
        "contrast": {
            "name": "contrast_match",
            "itc_weight": 1,
            "itm_weight": 0,
            **dict.fromkeys(("mim_weight", "mlm_weight"), 0),
            "mask_replace_prob": 0.5,  # no effect
        },
    },
}


def settings(arm):
    """Return the task and model settings of pre-training on scenes."""
    config = runs.stage_config(arm["scenes"].before[0], None, SCENES)
    return {
        **vars(config.model),
        "name": config.task.name,
        **vars(config.task),
    }


@pytest.mark.parametrize("table", TABLES)
def test_rows_differ_from_eve_as_in_the_paper(table):
    arm_of_row = {}
    for part in TABLES[table].parts:
        arm_of_row |= part.arms
    eve = settings(arms.ARMS["EVE"])
    for name, expected in ROWS[table].items():
        row = settings(arm_of_row[name])
        differences = {field: row[field] for field in expected}
        for field, value in row.items():
            if value != eve.get(field, value):
                differences[field] = value
        assert differences == expected, name


@pytest.mark.parametrize("table", TABLES)
def test_orderings_and_numbers_name_existing_rows(table):
    for part in TABLES[table].parts:
        assert part.paper.keys() | part.places.keys() <= part.arms.keys()
        for ordering in part.orderings:
            assert {ordering.above, ordering.below} <= part.arms.keys()
            assert set(ordering.numbers) <= paper.SAYS.keys()


def test_a_staged_system_divides_the_share_of_pretraining():
    stages = (
        arms.Stage("scenes"),
        arms.Stage("scenes", 0.125),
        arms.Stage("scenes", 0.375),
    )
    plan = runs.planned("scenes", arms.Arm(stages), ("vqa",), SCENES)
    shares = {stage.name: stage.share for stage in plan}
    assert shares == {
        "0_scenes": 0,
        "1_scenes": 0.125,
        "2_scenes": 0.375,
        "vqa": 0.5,
    }
    for name, by_family in importlib.import_module("systems").SYSTEMS.items():
        for family, arm in by_family.items():
            total = sum(stage.share for stage in arm.before)
            assert total == pytest.approx(arms.SHARES[family]), name


# Orderings


def outcomes(*accuracies):
    results = []
    for seed, value in enumerate(accuracies):
        accuracy = MeasuredValue(
            value,
            n=10,
            low=0,
            high=1,
            method="wilson",
        )
        results.append(
            tables.Outcome(
                seed=seed,
                numbers={"vqa_acc": accuracy},
                core_seconds={"vqa": [10.0, 10.0]},
                pairs={"vqa": [640, 320]},
                rows={"vqa_acc": {}},
            )
        )
    return results


@pytest.mark.parametrize(
    ("above", "below", "is_gain", "expected"),
    [
        ((0.5, 0.6), (0.3, 0.4), True, "holds"),
        ((0.3, 0.4), (0.5, 0.6), True, "does not hold"),
        ((0.3, 0.6), (0.4, 0.5), True, "within the spread of the seeds"),
        ((0.5,), (0.4,), True, "cannot be told from one seed"),
        ((0.5, 0.6), (0.3, 0.4), False, "does not hold"),
        ((0.3, 0.4), (0.5, 0.6), False, "holds"),
        ((0.3, 0.6), (0.4, 0.5), False, "within the spread of the seeds"),
    ],
)
def test_an_ordering_holds_if_it_holds_on_every_seed(above, below, is_gain, expected):
    comparison = tables.versus(
        {
            "a": outcomes(*above),
            "b": outcomes(*below),
        },
        "a",
        "b",
        "vqa_acc",
    )
    assert paper.verdict(comparison, is_gain) == expected


PART = paper.Part(
    name="Table 0",
    arms={
        "a": {},
        "b": {},
        "c": {},
    },
    budgets={"pairs": (100,)},
    orderings=(
        *paper.above_all("a", ["a", "b", "c"], ("vqa_acc", "tr1")),
        paper.Ordering("c", "b", ("vqa_acc",), is_gain=False),
    ),
    paper={"a": {"vqa_acc": 77.3}, "b": {"vqa_acc": 77.0}},
    axis="experts",
    places={
        "a": ("top 2", 4),
        "b": ("top 2", 8),
    },
)
BUDGETS = {
    400.0: {
        "a": outcomes(0.5, 0.6),
        "b": outcomes(0.3, 0.4),
        "c": outcomes(0.7, 0.8),
    },
    100.0: {"a": outcomes(0.3, 0.4), "b": outcomes(0.35, 0.35)},
}


def test_findings_describe_all_budgets():
    findings = paper.findings(PART, "pairs", BUDGETS)
    assert [str(finding) for finding in findings] == [
        "Holds: a above b in questions (paper: +0.3 points). 100 pairs: +0.000 over 2 seeds, "
        "within the spread of the seeds. "
        "400 pairs: +0.200 ! over 2 seeds, holds.",
        "Does not hold: a above c in questions. 400 pairs: -0.200 ! over 2 seeds.",
        "Does not hold: c not above b in questions. 400 pairs: +0.400 ! over 2 seeds.",
    ]
    assert paper.how_many(findings) == "3 orderings: 1 × holds, 2 × does not hold."


def page_of(part, budgets, findings):
    section = paper.section(part, "scenes", "pairs", budgets, findings)
    return tables.page([section], "Title", "A note")


def test_a_page_has_the_papers_numbers_and_a_line_over_its_axis():
    page = page_of(PART, BUDGETS, paper.findings(PART, "pairs", BUDGETS))
    assert "Table 0 · scenes · equal pairs" in page
    assert "<td>0.550 (0.500–0.600)</td><td>77.3 %</td>" in page
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    labels = [ET.fromstring(chart).get("aria-label") for chart in charts]
    assert labels.count("vqa_acc") == 2  # over experts, and over pairs
    assert "top 2, 400 pairs" in page
