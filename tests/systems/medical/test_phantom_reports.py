"""Reports about phantoms against an independent reader, and against guesses without the image."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean

import pytest

from eve_vl.systems.medical.phantoms.questions import sample_question
from eve_vl.systems.medical.phantoms.reports import (
    ABSENT,
    COLUMNS,
    NORMAL,
    PRESENT,
    UNCERTAIN,
    class_prompts,
    name_of,
    sample_report,
)
from eve_vl.systems.medical.phantoms.rows import PhantomPairs
from eve_vl.systems.medical.phantoms.sampling import sample_phantom
from eve_vl.systems.medical.phantoms.world import FINDINGS, SPLITS, variants
from helpers.phantom_reader import KIND_OF_NAME, is_possible, is_true, read_claims, read_phrases
from helpers.slow_ranking import slow_hit

GOLDEN_REPORT = (
    "pa view . there is band of collapse at the left base . no vascular congestion . possible "
    "small left pleural air . "
    "impression : band of collapse ."
)


def test_golden_report_guards_against_another_python_sampling_other_data():
    """Whoever changes the world on purpose writes the new values here."""
    assert sample_report("val", sample_phantom("val", 0, 1)).text == GOLDEN_REPORT


@pytest.mark.parametrize("split", SPLITS)
def test_reports_are_true_and_name_every_finding(split):
    rows = PhantomPairs(split=split)
    for index in range(300):
        phantom = rows.phantom(index)
        report = rows.report(index).text
        assert is_true(report, phantom)
        assert is_possible(report)
        claims = read_claims(report)
        mentioned = {claim.kind for claim in claims if claim.state != ABSENT}
        assert mentioned >= {finding.kind for finding in phantom.findings}
        if report == NORMAL:
            continue
        assert 2 <= report.count(" .") <= 5
        impression = report.partition("impression : ")[2].removesuffix(" .")
        names = [claim.name for claim in claims if claim.state == PRESENT]
        assert impression == (" and ".join(names) or NORMAL)


@pytest.mark.parametrize("split", SPLITS)
def test_distractors_tell_one_finding_wrongly(split):
    rows = PhantomPairs(split=split)
    names = set()
    for kind in FINDINGS:
        names |= {(name_of(variant, split), variant.variant) for variant in variants(kind)}
    for index in range(200):
        phantom = rows.phantom(index)
        report = rows.report(index).text
        distractors = rows.distractors(index)
        assert len({report, *distractors}) == 4
        for distractor in distractors:
            assert not is_true(distractor, phantom)
            assert is_possible(distractor)
            claims = read_claims(distractor)
            changed = set(read_claims(report)) ^ set(claims)
            assert len({claim.kind for claim in changed}) == 1
            assert {(c.name, c.variant) for c in claims if c.state == PRESENT} <= names


class UsualWords:
    """How usual the words and pairs of words of a text are among training reports."""

    def __init__(self, num_reports: int = 1000):
        self.words = Counter()
        self.pairs = Counter()
        rows = PhantomPairs()
        for index in range(num_reports):
            words = ["", *rows.report(index).text.split(), ""]
            self.words.update(words)
            self.pairs.update(pairwise(words))

    def of_words(self, text: str) -> list[float]:
        total = self.words.total()
        return [math.log((self.words[word] + 1) / total) for word in text.split()]

    def of_pairs(self, text: str) -> list[float]:
        logs = []
        for first, second in pairwise(["", *text.split(), ""]):
            total = self.words[first] + 0.1 * len(self.words)
            logs.append(math.log((self.pairs[first, second] + 0.1) / total))
        return logs


def test_words_do_not_tell_true_reports_from_distractors():
    """Neither length nor how usual a report is tells it, as a whole or per word."""
    usual = UsualWords()
    rules: dict[str, Callable[[str], float]] = {
        "characters": len,
        "words": lambda text: len(text.split()),
        "usual words": lambda text: math.fsum(usual.of_words(text)),
        "usual words on average": lambda text: fmean(usual.of_words(text)),
        "usual pairs": lambda text: math.fsum(usual.of_pairs(text)),
        "usual pairs on average": lambda text: fmean(usual.of_pairs(text)),
    }
    rows = PhantomPairs(split="test")
    groups = [[rows.report(index).text, *rows.distractors(index)] for index in range(400)]
    for name, rule in rules.items():
        scores = [[round(rule(text), 9) for text in group] for group in groups]
        highest = fmean(slow_hit(group, [0], 1) for group in scores)
        lowest = fmean(slow_hit([-score for score in group], [0], 1) for group in scores)
        assert 0.12 < highest < 0.31, name  # 0.25 by chance
        assert 0.12 < lowest < 0.31, name


def test_two_mentions_in_five_are_negations_and_one_report_in_ten_is_the_shortest():
    rows = PhantomPairs(split="train")
    texts = [rows.report(index).text for index in range(2000)]
    states = Counter()
    for text in texts:
        states.update(claim.state for claim in read_claims(text))
    assert states[ABSENT] / states.total() == pytest.approx(0.4, abs=0.03)
    assert states[UNCERTAIN] / states.total() == pytest.approx(0.1, abs=0.05)
    assert texts.count(NORMAL) / len(texts) == pytest.approx(0.1, abs=0.02)


def test_labels_are_what_the_report_says():
    rows = PhantomPairs(split="train")
    column_of = {kind: column for column, kind in COLUMNS.items() if kind}
    for index in range(300):
        report = rows.report(index)
        expected = {column_of[claim.kind]: claim.state for claim in read_claims(report.text)}
        if not {PRESENT, UNCERTAIN} & set(expected.values()):
            expected["No Finding"] = PRESENT
        assert report.labels == expected
        assert set(expected) <= set(COLUMNS)


def named_variants(split: str) -> set[tuple[str, tuple[str, str, str]]]:
    """Return names with the side, zone and grade next to them in reports and questions."""
    rows = PhantomPairs(split=split)
    claims = []
    for index in range(1200):
        claims += [c for c in read_claims(rows.report(index).text) if c.state != ABSENT]
        question = sample_question(split, 0, index).question
        if split == "test_novel" or question.startswith("is there "):
            claims += [claim for claim in read_phrases(question) if any(claim.variant)]
    return {(claim.name, claim.variant) for claim in claims}


def test_names_beside_sides_zones_and_grades_are_new_in_test_novel():
    """But training has each name, and each side, zone and grade of the finding."""
    train = named_variants("train")
    novel = named_variants("test_novel")
    assert not train & novel
    for pairs in (train, novel):
        assert {name for name, _ in pairs} == set(KIND_OF_NAME)
    assert {variant for _, variant in train} == {variant for _, variant in novel}


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_prompts_occur_in_no_report(split):
    rows = PhantomPairs(split=split)
    sentences = set()
    for index in range(300):
        sentences.update(rows.report(index).text.removesuffix(" .").split(" . "))
    assert len(sentences) > 300
    for prompts in class_prompts().values():
        assert sentences.isdisjoint(prompts)
