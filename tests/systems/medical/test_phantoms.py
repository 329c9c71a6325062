"""Phantoms against independent readers of the drawing and of the report."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise, product
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from eve_vl.config import DataConfig
from eve_vl.config.generated_sources import generator_names
from eve_vl.data.opening import open_sources
from eve_vl.systems.medical.phantoms.film import SIGMA, draw, render
from eve_vl.systems.medical.phantoms.generator import PHANTOMS
from eve_vl.systems.medical.phantoms.questions import ANSWERS, CONTENT_TYPES, sample_question
from eve_vl.systems.medical.phantoms.reports import (
    COLUMNS,
    NAMES,
    NORMAL,
    PRESENT,
    name_of,
    sample_report,
)
from eve_vl.systems.medical.phantoms.rows import PhantomLabels, PhantomPairs, PhantomQuestions
from eve_vl.systems.medical.phantoms.sampling import (
    place_of,
    sample_patient,
    sample_phantom,
    with_findings,
)
from eve_vl.systems.medical.phantoms.world import (
    FINDINGS,
    GRADES,
    MAX_FINDINGS,
    SPLITS,
    ZONED,
    Finding,
    Phantom,
    variants,
)
from eve_vl.utils.errors import UserError
from helpers.slow_ranking import slow_hit

LEAST_PIXELS = 12  # that each finding changes, each by 3 sigma
GOLDEN_REPORT = (
    "pa view . there is band of collapse at the left base . no vascular congestion . possible "
    "small left pleural air . "
    "impression : band of collapse ."
)


def phantoms(split: str, count: int) -> list[Phantom]:
    return [sample_phantom(split, 0, index) for index in range(count)]


def with_only(phantom: Phantom, findings: list[Finding]) -> Phantom:
    """The same image with other findings, of the same devices."""
    patient = with_findings(Random(0), "train", phantom.patient, findings)
    same = {"devices": phantom.patient.devices, "tube_side": phantom.patient.tube_side}
    return replace(phantom, patient=replace(patient, **same))


# World


def test_phantoms_depend_only_on_split_seed_and_index():
    in_order = [sample_phantom("train", 3, i) for i in range(20)]
    backwards = [sample_phantom("train", 3, i) for i in reversed(range(20))]
    assert in_order == backwards[::-1]
    images = [
        render(sample_phantom(split, seed, i), 48).tobytes()
        for split in SPLITS
        for seed in (0, 1)
        for i in range(20)
    ]
    assert len(set(images)) == len(images)


def test_no_patient_is_in_two_splits_and_half_have_a_second_view():
    rows = {split: phantoms(split, 600) for split in SPLITS}
    numbers = {split: {row.patient.number for row in of_split} for split, of_split in rows.items()}
    questioned = {
        split: {sample_question(split, 0, index).phantom.patient.number for index in range(40)}
        for split in SPLITS
    }
    together = [*numbers.values(), *questioned.values()]
    assert len(set.union(*together)) == sum(map(len, together))
    for split, of_split in rows.items():
        assert len(numbers[split]) == 400
        assert [row.patient for row in of_split] == [
            sample_patient(split, 0, place_of(0, split, i)[0]) for i in range(600)
        ]
        by_patient = defaultdict(list)
        for row in of_split:
            by_patient[row.patient.number].append(row)
        assert Counter(map(len, by_patient.values())) == {1: 200, 2: 200}
        assert all(
            {view.view for view in views} == {"pa", "ap"}
            for views in by_patient.values()
            if len(views) == 2
        )


def test_golden_phantom_guards_against_another_python_drawing_other_data():
    """Whoever changes the world on purpose writes the new values here."""
    assert sample_report("val", sample_phantom("val", 0, 1)).text == GOLDEN_REPORT


def test_findings_come_evenly_and_none_hides_another():
    rows = phantoms("train", 3000)
    kinds = Counter(finding.kind for row in rows for finding in row.findings)
    assert all(
        0.85 / len(FINDINGS) < kinds[kind] / kinds.total() < 1.15 / len(FINDINGS)
        for kind in FINDINGS
    )
    sizes = Counter(len(row.findings) for row in rows)
    assert set(sizes) == set(range(MAX_FINDINGS + 1)) and min(sizes.values()) > 300
    for row in rows:
        cells = [cell for finding in row.findings for cell in finding.cells]
        assert len(cells) == len(set(cells))
        for finding in row.findings:
            low, high = GRADES[finding.kind][finding.grade] if finding.grade else (0, 1)
            assert low <= finding.amount <= high
    for grades in GRADES.values():
        assert all(below[1] < above[0] for below, above in pairwise(grades.values()))


@pytest.mark.parametrize("split", SPLITS)
def test_a_tube_goes_with_a_pneumothorax_except_in_test_shift(split):
    share = 0.2 if split == "test_shift" else 0.8
    asked = [sample_question(split, 0, index).phantom for index in range(1500)]
    for rows in (phantoms(split, 1500), asked):
        agreeing = [
            ("tube" in row.patient.devices) == (row.finding("pneumothorax") is not None)
            for row in rows
        ]
        assert np.mean(agreeing) == pytest.approx(share, abs=0.04)


# Images


@pytest.mark.parametrize("image_size", [64, 96])
def test_every_finding_can_be_seen(image_size):
    seen = Counter()
    for row in phantoms("train", 80):
        drawing = draw(row, image_size)
        for finding in row.findings:
            without = draw(
                with_only(row, [remaining for remaining in row.findings if remaining != finding]),
                image_size,
            )
            assert (np.abs(drawing - without) >= 3 * SIGMA).sum() >= LEAST_PIXELS, (
                row.findings,
                finding,
            )
            seen[finding.kind] += 1
    assert set(seen) == set(FINDINGS)


def test_an_oracle_reads_everything_from_the_drawing():
    """It knows who was taken and how, and looks for findings: whichever explains most of the
    drawing comes first."""
    for row in phantoms("val", 9):
        assert _found(draw(row, 64), row) == {
            (finding.kind, finding.variant) for finding in row.findings
        }


def test_noise_leaves_the_ceiling_at_one():
    """Whether a finding is there, told from pixels with noise by a threshold half way along the
    change that it makes."""
    right = []
    for row in phantoms("val", 60):
        for finding in row.findings:
            without = with_only(
                row, [remaining for remaining in row.findings if remaining != finding]
            )
            present = draw(row, 64)
            absent = draw(without, 64)
            change = present - absent
            for drawn, is_there in ((row, True), (without, False)):
                score = ((render(drawn, 64)[:, :, 0] - absent) * change).sum() / (change**2).sum()
                right.append((score > 0.5) == is_there)
    assert len(right) > 100 and np.mean(right) == 1


def test_the_heart_is_as_wide_as_the_number_behind_it_says():
    for row in phantoms("train", 6):
        patient = replace(row.patient, devices=frozenset())
        bare = replace(
            row, patient=patient, tilt=0.0, turn=0.0, gain=1.0, slope=(0.0, 0.0), has_marker=False
        )
        for large in (
            Finding("cardiomegaly", grade="marked", amount=0.64),
            Finding("cardiomegaly", grade="mild", amount=0.55),
        ):
            change = draw(with_only(bare, [large]), 128) - draw(with_only(bare, []), 128)
            columns = np.flatnonzero((change > 20).any(axis=0))
            assert (columns[-1] - columns[0]) / 128 == pytest.approx(
                large.amount * 2 * patient.half_width, abs=0.02
            )


def test_images_are_grey_and_never_mirrored():
    rows = PhantomPairs(split="val", num_rows=3)
    for index in range(3):
        image: Any = rows[index].image
        assert image.has_sides
        assert image.pixels.shape == (64, 64, 3) and image.pixels.dtype == np.uint8
        assert (image.pixels[:, :, :1] == image.pixels).all()
        noisy = image.pixels[:, :, 0].astype(float)
        drawn = draw(rows.phantom(index), 64)
        is_clipped = (drawn < 4 * SIGMA) | (drawn > 255 - 4 * SIGMA)
        assert (noisy - drawn)[~is_clipped].std() == pytest.approx(SIGMA, rel=0.1)
    with pytest.raises(UserError, match="image_size is 15, expected at least 16"):
        PhantomPairs(image_size=15)


def _found(drawing: np.ndarray, phantom: Phantom) -> set[tuple[str, tuple[str, str, str]]]:
    findings: list[Finding] = []

    def error_with(finding: Finding) -> float:
        return float(((drawing - draw(with_only(phantom, [*findings, finding]), 64)) ** 2).sum())

    error = float(((drawing - draw(with_only(phantom, []), 64)) ** 2).sum())
    while len(findings) < MAX_FINDINGS:
        taken = [cell for finding in findings for cell in finding.cells]
        free = [
            variant
            for kind in FINDINGS
            if kind not in {f.kind for f in findings}
            for variant in variants(kind)
        ]
        free = [variant for variant in free if variant.cells.isdisjoint(taken)]
        best = sorted(free, key=error_with)[:3]
        shifts = list(product((-0.013, 0.0, 0.013), repeat=2))
        moved = [
            variant._replace(shift=shift)
            for variant in best
            for shift in (shifts if variant.kind in ZONED else [(0.0, 0.0)])
        ]
        first = min(moved, key=error_with)
        if error - error_with(first) < LEAST_PIXELS * (3 * SIGMA) ** 2:
            break
        error = error_with(first)
        findings.append(first)
    return {(finding.kind, finding.variant) for finding in findings}


# Reports

KIND_OF = {name: kind for kind, names in NAMES.items() for name in names}
ALL_GRADES = [grade for grades in GRADES.values() for grade in grades]
PHRASE = re.compile(
    rf"(?:({'|'.join(ALL_GRADES)}) )?(?:(left|right) )?({'|'.join(KIND_OF)})"
    r"(?: in the (left|right) (upper|middle|lower) zone| at the (left|right) base)?"
)


def _claims(report: str) -> list[tuple[int, str, tuple[str, str, str], str]]:
    """State, kind, (side, zone, grade) and name of everything that a report mentions before its
    impression."""
    claims = []
    for sentence in report.partition("impression :")[0].split(" . "):
        state = 0 if sentence.startswith("no ") else 1 if sentence.startswith("there is ") else -1
        if state == -1 and not sentence.startswith("possible "):
            continue  # a remark on view or devices
        for grade, side, name, zone_side, zone, base_side in PHRASE.findall(sentence):
            claims.append(
                (state, KIND_OF[name], (side or zone_side or base_side, zone, grade), name)
            )
    return claims


def _is_true(report: str, phantom: Phantom) -> bool:
    for state, kind, variant, _ in _claims(report):
        finding = phantom.finding(kind)
        if state == 0 and finding is not None:
            return False
        if state == 1 and (finding is None or finding.variant != variant):
            return False
    return True


def _parts(kind: str, side: str, zone: str, grade: str) -> set[str]:
    """What a finding hides, or is hidden by."""
    if kind == "cardiomegaly":
        return {"heart"}
    if kind == "edema":
        return {"right middle", "left middle"}
    if kind == "pleural effusion":
        return {f"{side} {part}" for part in ("lower", "middle")[: 2 if grade == "large" else 1]}
    part = f"{side} {zone or ('upper' if kind == 'pneumothorax' else 'lower')}"
    return {part, "heart"} if part == "left lower" else {part}


def _is_possible(report: str) -> bool:
    parts = [_parts(kind, *variant) for state, kind, variant, _ in _claims(report) if state == 1]
    return len(parts) <= 3 and len(set().union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize("split", SPLITS)
def test_reports_are_true_and_distractors_are_not(split):
    rows = PhantomPairs(split=split)
    for index in range(300):
        phantom = rows.phantom(index)
        text = rows.report(index).text
        assert _is_true(text, phantom) and _is_possible(text)
        told = [claim for claim in _claims(text) if claim[0]]
        assert {kind for _, kind, *_ in told} >= {finding.kind for finding in phantom.findings}
        assert (text == NORMAL) or 2 <= text.count(" .") <= 5
        impression = text.partition("impression : ")[2].removesuffix(" .")
        assert text == NORMAL or impression == (
            " and ".join(claim[3] for claim in told if claim[0] == 1) or NORMAL
        )
        wrong = rows.distractors(index)
        assert len({*wrong, text}) == 4
        for distractor in wrong:
            assert not _is_true(distractor, phantom) and _is_possible(distractor)
            changed = [
                set(_claims(first)) - set(_claims(second))
                for first, second in ((text, distractor), (distractor, text))
            ]
            assert (
                len({claim[1] for claims in changed for claim in claims}) == 1
            )  # one finding is told differently
            names = {
                (name, variant) for state, _, variant, name in _claims(distractor) if state == 1
            }
            assert names <= {
                (name_of(variant, split), variant.variant)
                for kind in FINDINGS
                for variant in variants(kind)
            }


def test_words_do_not_tell_true_reports_from_distractors():
    """Neither length nor how usual a report is, of all or per word, by how often words and pairs of
    words are in others."""
    rows = PhantomPairs(split="test")
    words = Counter()
    pairs = Counter()
    for index in range(2000):
        told = ["", *PhantomPairs().report(index).text.split(), ""]
        words.update(told)
        pairs.update(pairwise(told))

    def by_word(text: str) -> list[float]:
        return [math.log((words[word] + 1) / words.total()) for word in text.split()]

    def by_pair(text: str) -> list[float]:
        told = ["", *text.split(), ""]
        return [
            math.log((pairs[pair] + 0.1) / (words[pair[0]] + 0.1 * len(words)))
            for pair in pairwise(told)
        ]

    rules = [len, lambda text: len(text.split())]
    rules += [
        lambda text, by=by, mean=mean: mean(by(text))
        for by in (by_word, by_pair)
        for mean in (math.fsum, fmean)
    ]
    groups = [[rows.report(index).text, *rows.distractors(index)] for index in range(600)]
    for rule, sign in product(rules, (1, -1)):
        hits = [
            slow_hit([round(sign * rule(text), 9) for text in group], [0], 1) for group in groups
        ]
        assert 0.12 < fmean(hits) < 0.31  # 0.25 by chance


def test_two_mentions_in_five_are_negations_and_one_report_in_ten_is_the_shortest():
    rows = PhantomPairs(split="train")
    texts = [rows.report(index).text for index in range(4000)]
    states = Counter(claim[0] for text in texts for claim in _claims(text))
    assert states[0] / states.total() == pytest.approx(0.4, abs=0.02)
    assert 0.05 < states[-1] / states.total() < 0.15
    assert texts.count(NORMAL) / len(texts) == pytest.approx(0.1, abs=0.015)


def test_labels_are_what_the_report_says():
    rows = PhantomPairs(split="train")
    column_of = {kind: column for column, kind in COLUMNS.items() if kind}
    for index in range(300):
        report = rows.report(index)
        labels = {
            column: state for column, state in report.labels.items() if column != "No Finding"
        }
        assert labels == {column_of[kind]: state for state, kind, *_ in _claims(report.text)}
        assert ("No Finding" in report.labels) == (not {1, -1} & set(labels.values()))
        assert set(report.labels) <= set(COLUMNS)


def test_names_beside_sides_zones_and_grades_are_new_in_test_novel():
    """But each name is known from training, and so is each side, zone and grade of the finding."""
    seen = {split: set() for split in ("train", "test_novel")}
    for split, pairs in seen.items():
        rows = PhantomPairs(split=split)
        for index in range(1500):
            pairs |= {
                (name, variant)
                for state, _, variant, name in _claims(rows.report(index).text)
                if state
            }
            question = sample_question(split, 0, index).question
            if split == "test_novel" or question.startswith("is there "):
                pairs |= {
                    (name, variant)
                    for _, _, variant, name in _claims(f"there is {question[9:]}")
                    if any(variant)
                }
    assert not seen["train"] & seen["test_novel"]
    assert (
        {name for name, _ in seen["train"]}
        == {name for name, _ in seen["test_novel"]}
        == set(KIND_OF)
    )
    assert {variant for _, variant in seen["train"]} == {
        variant for _, variant in seen["test_novel"]
    }


# Questions


def _answer(question: str, phantom: Phantom) -> str:
    """Answer by reading the question and looking at what is there."""

    def of(name: str) -> Finding | None:
        return phantom.finding(KIND_OF[name])

    def said(is_so: bool) -> str:
        return "yes" if is_so else "no"

    if question == "is the heart enlarged":
        return said(phantom.finding("cardiomegaly") is not None)
    if question == "is there a pacemaker":
        return said("pacemaker" in phantom.patient.devices)
    if question == "are there wires over the sternum":
        return said("wires" in phantom.patient.devices)
    if question == "which finding is there":
        assert len(phantom.findings) < 2
        return phantom.findings[0].kind if phantom.findings else "none"
    if question == "how many findings are there":
        return ("zero", "one", "two", "three")[len(phantom.findings)]
    if question == "which view is it":
        return phantom.view
    if match := re.fullmatch(r"is there no (.*)", question):
        return said(of(match[1]) is None)
    if match := re.fullmatch(r"is the (.*) on the (left|right)", question):
        return said((finding := of(match[1])) is not None and finding.side == match[2])
    if match := re.fullmatch(r"is the (.*) more than (\w+)", question):
        return said((finding := of(match[1])) is not None and finding.grade != match[2])
    if match := re.fullmatch(r"on which side is the (.*)", question):
        return finding.side if (finding := of(match[1])) else "none"
    if match := re.fullmatch(r"in which zone is the (.*)", question):
        return finding.zone if (finding := of(match[1])) else "none"
    if match := re.fullmatch(r"how severe is the (.*)", question):
        return finding.grade if (finding := of(match[1])) else "none"
    if match := re.fullmatch(r"what is in the (\w+) (\w+) zone", question):
        finding = [
            finding.kind
            for finding in phantom.findings
            if finding.kind in ZONED and (finding.side, finding.zone) == match.groups()
        ]
        return finding[0] if finding else "none"
    ((_, kind, variant, _),) = _claims(question.replace("is there", "there is"))
    finding = phantom.finding(kind)
    return said(finding is not None and variant in (("", "", ""), finding.variant))


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_true(split):
    for index in range(1200):
        example = sample_question(split, 0, index)
        assert example.answer == _answer(example.question, example.phantom), example
        assert example.answer in ANSWERS
        assert example.content_type in CONTENT_TYPES
        assert (example.answer in ("yes", "no")) == (example.answer_type == "CLOSED")


def test_rows_come_in_minimal_pairs():
    kinds = Counter()
    for index in range(0, 2000, 2):
        first, second = (sample_question("train", 0, row) for row in (index, index + 1))
        assert first.answer != second.answer
        assert first.phantom.patient.number == second.phantom.patient.number
        if first.phantom == second.phantom:
            kinds["words"] += 1
            words = [set(question.question.split()) for question in (first, second)]
            assert max(len(words[0] - words[1]), len(words[1] - words[0])) == 1
        else:
            kinds["images"] += 1
            assert first.question == second.question
            changed = {
                finding.kind for finding in {*first.phantom.findings} ^ {*second.phantom.findings}
            }
            assert len(changed) <= 2 if first.content_type == "finding" else len(changed) <= 1
    assert min(kinds.values()) > 100


def test_answers_are_even_for_every_wording():
    asked = [sample_question("train", 0, index) for index in range(12_000)]
    by_wording = defaultdict(Counter)
    for example in asked:
        by_wording[example.question][example.answer] += 1
    for question, answers in by_wording.items():
        if answers.total() > 100:
            expected = answers.total() / len(answers)
            spread = sum(
                (count - expected) ** 2 / expected for count in answers.values()
            )  # chi-square
            assert spread < 25, (question, answers)
        if len(answers) == 2 and question.startswith(("is the heart", "are there", "is there a ")):
            assert answers["yes"] == answers["no"]
    types = Counter(example.answer_type for example in asked)
    assert types["OPEN"] / types.total() == pytest.approx(0.5, abs=0.03)
    blind = sum(answers.most_common(1)[0][1] for answers in by_wording.values()) / len(asked)
    assert blind < 0.5


# Rows


def test_every_generator_that_a_name_may_mean_is_there():
    assert generator_names() == ["scenes", "phantoms"]


def test_every_kind_of_row_shows_the_same_phantom():
    for kind, rows in PHANTOMS.rows.items():
        (source,) = open_sources(["phantoms:test_shift"], DataConfig(), 64, kind)
        assert source == rows(split="test_shift") and len(source) == 1000
        assert kind == source[5].KIND
        assert source[5].where == "phantoms:test_shift[5]"
        with pytest.raises(IndexError):
            source[1000]
    pair, labelled = (PHANTOMS.rows[kind](split="val")[7] for kind in ("captions", "labels"))
    np.testing.assert_array_equal(pair.images[0].pixels, labelled.images[0].pixels)  # pyright: ignore
    assert pair.texts == labelled.texts == PHANTOMS.rows["texts"](split="val")[7].texts
    with pytest.raises(
        UserError, match="the generated phantoms hold no statements, but captions, questions"
    ):
        open_sources(["phantoms:val"], DataConfig(), 64, "statements")
    with pytest.raises(
        UserError, match="split is 'tset', expected one of train, val, test, test_shift, test_novel"
    ):
        PhantomPairs(split="tset")


def test_rows_have_labels_types_and_the_list_of_answers():
    labels = PhantomLabels(split="val")
    questions = PhantomQuestions(split="val")
    for index in range(30):
        kinds = tuple(finding.kind for finding in labels.phantom(index).findings)
        assert labels[index].labels == (kinds or (NORMAL,))
        row = questions[index]
        assert (row.question_id, row.answer_type, len(row.answers)) == (index, row.answer_type, 1)
        assert row.content_type in CONTENT_TYPES
    assert (
        sample_report("val", sample_phantom("val", 0, 0)).labels.get("No Finding", PRESENT)
        == PRESENT
    )


# Commands


def test_the_command_line_trains_on_phantoms_and_checks_them(eve, no_report):
    sources = (
        "--data.train",
        "phantoms:train",
        "--data.val",
        "phantoms:val",
        "--data.val-samples",
        8,
        "--train.steps",
        2,
    )
    done = eve("pretrain", "tiny", *sources, "--out", "run")
    assert done.returncode == 0, done.stderr
    done = eve(
        "finetune", "demo_vqa", "--init", "run", *sources, "--train.batch-size", 4, "--out", "vqa"
    )
    assert done.returncode == 0, done.stderr
    done = eve("pretrain", "tiny", "--data.train", "scenes", "--data.val", "phantoms:val")
    assert done.returncode == 2
    assert "val is phantoms:val, but train has no phantoms: give --data.val PATH" in done.stderr
