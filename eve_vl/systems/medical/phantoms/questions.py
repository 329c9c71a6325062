"""Questions about phantoms, in minimal pairs with different answers.

A pair is one question about two images that differ in one finding, or two questions about one image that differ in one
word. So half of the closed questions of every wording have the answer yes. Answers of open questions, "none" among them,
are equally likely for every wording. Questions for a side, zone or grade use either name of the finding. Questions that
name them, as in `test_novel`, use the name that belongs to them (see `reports`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

from eve_vl.synthetic.random_choices import pick, pick_distinct
from eve_vl.systems.medical.phantoms import world
from eve_vl.systems.medical.phantoms.reports import NAMES, describe, name_of
from eve_vl.systems.medical.phantoms.world import (
    FINDINGS,
    GRADES,
    MAX_FINDINGS,
    SIDED,
    SIDES,
    VIEWS,
    ZONED,
    ZONES,
    Finding,
    Phantom,
)

CLOSED, OPEN = "CLOSED", "OPEN"
YES_NO = ("yes", "no")
NONE = "none"
NUMBERS = ("zero", "one", "two", "three")
_GRADES = tuple(dict.fromkeys(grade for grades in GRADES.values() for grade in grades))
ANSWERS = (*YES_NO, *SIDES, *ZONES, *_GRADES, *NUMBERS, *VIEWS, *FINDINGS, NONE)
CONTENT_TYPES = ("presence", "side", "zone", "severity", "finding", "count", "view", "device")

_FIRST_PATIENT = 10**9  # patients of questions have no reports
_MAX_OTHERS = 2

T = TypeVar("T")
Pair = tuple[str, Sequence[str], Sequence[str], Sequence[Phantom]]
"""A content type; questions, answers and phantoms of two examples."""


class Question(NamedTuple):
    """A phantom, a question and the answer (one of ANSWERS).

    content_type is one of CONTENT_TYPES.
    """

    phantom: Phantom
    question: str
    answer: str
    answer_type: str
    content_type: str


class _Draw:
    """The random choices of one pair."""

    def __init__(self, split: str, seed: int, number: int):
        self.rng = world.stream("question", split, seed, number)
        self.split, self.number = split, _FIRST_PATIENT + number

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return pick(self.rng, options)

    def name(self, kind: str) -> str:
        """Return either name of a finding."""
        return self.pick(NAMES[kind])

    def phantoms(
        self, first: Sequence[Finding], second: Sequence[Finding]
    ) -> tuple[Phantom, Phantom]:
        """Sample a patient in either view with the first and the second findings."""
        patient = world.sample_anatomy(self.rng, self.split, first, self.number)
        phantom = world.take_view(self.rng, patient, self.pick(VIEWS))
        changed = world.with_findings(self.rng, self.split, phantom.patient, second)
        return phantom, replace(phantom, patient=changed, seed=self.seed())

    def seed(self) -> int:
        """Sample the seed of a film's noise and words."""
        return int(self.rng.random() * 2**32)

    def two(
        self, one: Finding | None, other: Finding | None, num_others: int | None = None
    ) -> tuple[Phantom, Phantom]:
        """Return two phantoms of one patient that differ in one finding.

        One of them may lack it.

        Both also have up to two findings of other kinds.
        """
        asked = [finding for finding in (one, other) if finding is not None]
        kinds = [kind for kind in FINDINGS if kind not in {finding.kind for finding in asked}]
        count = int(self.rng.random() * (_MAX_OTHERS + 1)) if num_others is None else num_others
        while True:  # others may hide the finding in question, or be hidden
            others = [Finding(kind) for kind in pick_distinct(self.rng, kinds, count)]
            found = world.try_findings(self.rng, [*others, *asked[:1]])
            if found is None:
                continue
            rest, first = found[:count], found[-1] if asked else Finding("")
            second = first
            if len(asked) == 2 and one != other:
                (second,) = world.sample_findings(self.rng, [_filled(asked[1], first)])
            if second == first or all(each.cells.isdisjoint(second.cells) for each in rest):
                break
        return self.phantoms([*rest, first] if one else rest, [*rest, second] if other else rest)


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments.

    Rows 2k and 2k + 1 are a minimal pair.
    """
    draw = _Draw(split, seed, index // 2)
    is_closed = split == "test_novel" or draw.rng.random() < 0.5
    template = _detail if split == "test_novel" else draw.pick(_CLOSED if is_closed else _OPEN)
    content_type, questions, answers, phantoms = template(draw)
    side = (index + (draw.rng.random() < 0.5)) % 2
    return Question(
        phantoms[side], questions[side], answers[side], CLOSED if is_closed else OPEN, content_type
    )


def _filled(wanted: Finding, first: Finding) -> Finding:
    """Return a wanted finding with its open attributes taken from `first`.

    Both are of the same kind.
    """
    return wanted._replace(
        side=wanted.side or first.side,
        zone=wanted.zone or first.zone,
        grade=wanted.grade or first.grade,
    )


# Closed


def _presence(draw: _Draw) -> Pair:
    kind = draw.pick(FINDINGS)
    return "presence", [f"is there {draw.name(kind)}"] * 2, YES_NO, draw.two(Finding(kind), None)


def _heart(draw: _Draw) -> Pair:
    return (
        "presence",
        ["is the heart enlarged"] * 2,
        YES_NO,
        draw.two(Finding(world.CARDIOMEGALY), None),
    )


def _negation(draw: _Draw) -> Pair:
    kind = draw.pick(FINDINGS)
    phantom, name = draw.pick(draw.two(Finding(kind), None)), draw.name(kind)
    answers = YES_NO if phantom.finding(kind) else YES_NO[::-1]
    return "presence", [f"is there {name}", f"is there no {name}"], answers, [phantom] * 2


def _side(draw: _Draw) -> Pair:
    kind = draw.pick(SIDED)
    phantom, _ = draw.two(Finding(kind, side=draw.pick(SIDES)), None)
    found, name = phantom.finding(kind), draw.name(kind)
    answers = [YES_NO[found is None or found.side != side] for side in SIDES]
    return "side", [f"is the {name} on the {side}" for side in SIDES], answers, [phantom] * 2


def _severity(draw: _Draw) -> Pair:
    kind = draw.pick(tuple(GRADES))
    least, *more = GRADES[kind]
    questions = [f"is the {draw.name(kind)} more than {least}"] * 2
    return (
        "severity",
        questions,
        YES_NO,
        draw.two(Finding(kind, grade=draw.pick(more)), Finding(kind, grade=least)),
    )


def _detail(draw: _Draw) -> Pair:
    """Ask about all attributes of a finding.

    The other image has another side, zone or grade.
    """
    kind = draw.pick(FINDINGS)
    asked = draw.pick(world.variants(kind))
    question = f"is there {describe(asked, name_of(asked, draw.split))}"
    others = [other for other in world.variants(kind) if asked.num_changes(other) == 1]
    content_type = "side" if kind in SIDED else "severity"
    return content_type, [question] * 2, YES_NO, draw.two(asked, draw.pick(others))


def _device(draw: _Draw) -> Pair:
    device = draw.pick(
        ("pacemaker", "wires")
    )  # not the tube, which is correlated with pneumothorax
    phantom, _ = draw.two(None, None)
    devices = phantom.patient.devices
    with_it, without = (
        replace(phantom.patient, devices=each) for each in (devices | {device}, devices - {device})
    )
    phantoms = (
        replace(phantom, patient=with_it),
        replace(phantom, patient=without, seed=draw.seed()),
    )
    question = (
        "is there a pacemaker" if device == "pacemaker" else "are there wires over the sternum"
    )
    return "device", [question] * 2, YES_NO, phantoms


# Open


def _attribute(draw: _Draw, name: str, content_type: str, words: str) -> Pair:
    """Ask for the side, zone or grade of a finding, which one image may lack."""
    kind = draw.pick({"side": SIDED, "zone": ZONED, "grade": tuple(GRADES)}[name])
    values = {"side": SIDES, "zone": ZONES, "grade": tuple(GRADES.get(kind, ()))}[name]
    question = f"{words} the {draw.name(kind)}"
    answers = pick_distinct(draw.rng, (*values, NONE), 2)
    one, other = (
        None if answer == NONE else Finding(kind)._replace(**{name: answer}) for answer in answers
    )
    return content_type, [question] * 2, answers, draw.two(one, other)


def _what_in_zone(draw: _Draw) -> Pair:
    """Ask for the finding in a zone, in images without other findings."""
    side, zone = draw.pick(SIDES), draw.pick(ZONES)
    return _only(
        draw,
        f"what is in the {side} {zone} zone",
        [Finding(kind, side=side, zone=zone) for kind in ZONED],
    )


def _which_finding(draw: _Draw) -> Pair:
    return _only(draw, "which finding is there", [Finding(kind) for kind in FINDINGS])


def _only(draw: _Draw, question: str, options: Sequence[Finding]) -> Pair:
    asked = pick_distinct(draw.rng, [[finding] for finding in options] + [[]], 2)
    answers = [findings[0].kind if findings else NONE for findings in asked]
    first, second = (world.sample_findings(draw.rng, findings) for findings in asked)
    return "finding", [question] * 2, answers, draw.phantoms(first, second)


def _how_many(draw: _Draw) -> Pair:
    fewer = draw.pick(range(0, MAX_FINDINGS, 2))
    phantoms = draw.two(None, Finding(draw.pick(FINDINGS)), num_others=fewer)
    return "count", ["how many findings are there"] * 2, NUMBERS[fewer : fewer + 2], phantoms


def _which_view(draw: _Draw) -> Pair:
    phantom, _ = draw.two(None, None)
    other = world.take_view(draw.rng, phantom.patient, VIEWS[1 - VIEWS.index(phantom.view)])
    return "view", ["which view is it"] * 2, [phantom.view, other.view], [phantom, other]


_CLOSED: tuple[Callable[[_Draw], Pair], ...] = (
    _presence,
    _presence,
    _heart,
    _negation,
    _side,
    _severity,
    _detail,
    _device,
)
_OPEN: tuple[Callable[[_Draw], Pair], ...] = (
    partial(_attribute, name="side", content_type="side", words="on which side is"),
    partial(_attribute, name="zone", content_type="zone", words="in which zone is"),
    partial(_attribute, name="grade", content_type="severity", words="how severe is"),
    *(_what_in_zone, _which_finding, _how_many, _which_view),
)
