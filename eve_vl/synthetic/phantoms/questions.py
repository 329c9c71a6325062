"""Questions about phantoms, in minimal pairs with different answers.

A pair is one question about two images that differ in one finding, or two questions about one image that differ in one
word. So half of the closed questions of every wording have the answer yes. Answers of open questions, "none" among them,
are equally likely for every wording. Questions for a side, zone or grade use either name of the finding. Questions that
name them, as in `test_novel`, use the name that belongs to them (see `reports`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from eve_vl.synthetic import pick, pick_distinct
from eve_vl.synthetic.phantoms import world
from eve_vl.synthetic.phantoms.reports import NAMES, describe, name_of
from eve_vl.synthetic.phantoms.world import FINDINGS, GRADES, MAX_FINDINGS, SIDED, SIDES, VIEWS, ZONED, ZONES, Finding, Phantom

CLOSED, OPEN = "CLOSED", "OPEN"
YES_NO = ("yes", "no")
NONE = "none"
NUMBERS = ("zero", "one", "two", "three")
_GRADES = tuple(dict.fromkeys(grade for grades in GRADES.values() for grade in grades))
ANSWERS = (*YES_NO, *SIDES, *ZONES, *_GRADES, *NUMBERS, *VIEWS, *FINDINGS, NONE)
CONTENT_TYPES = ("presence", "side", "zone", "severity", "finding", "count", "view", "device")

_FIRST_PATIENT = 10**9  # patients of questions have no reports
_MAX_OTHERS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A phantom, a question about it and the answer (one of ANSWERS); content_type is one of CONTENT_TYPES."""

    phantom: Phantom
    question: str
    answer: str
    answer_type: str
    content_type: str


Pair = tuple[str, Sequence[tuple[str, str, Phantom]]]
"""A content type and two examples: question, answer and phantom."""


class _Draw:
    """The random choices of one pair."""

    def __init__(self, split: str, seed: int, number: int):
        self.rng = world.stream("question", split, seed, number)
        self.split, self.number = split, _FIRST_PATIENT + number

    def pick(self, options: Sequence[str]) -> str:
        """Return one of the options."""
        return pick(self.rng, options)

    def name(self, kind: str) -> str:
        """Return either name of a finding."""
        return self.pick(NAMES[kind])

    def phantom(self, findings: Sequence[Finding]) -> Phantom:
        """Sample a patient with these findings, in either view."""
        return world.take_view(self.rng, world.draw_patient(self.rng, self.split, findings, self.number), self.pick(VIEWS))

    def two(self, one: Finding | None, other: Finding | None, num_others: int | None = None) -> tuple[Phantom, Phantom]:
        """Return two phantoms of one patient that differ in one finding, which one of them may lack.

        Both also have up to two findings of other kinds.
        """
        asked = [finding for finding in (one, other) if finding is not None]
        kinds = [kind for kind in FINDINGS if kind not in {finding.kind for finding in asked}]
        count = int(self.rng.random() * (_MAX_OTHERS + 1)) if num_others is None else num_others
        while True:  # others may hide the finding in question, or be hidden
            others = [Finding(kind) for kind in pick_distinct(self.rng, kinds, count)]
            drawn = world.try_findings(self.rng, [*others, *asked[:1]])
            if drawn is None:
                continue
            rest, first = drawn[:count], drawn[-1] if asked else Finding("")
            second = first
            if len(asked) == 2 and one != other:
                (second,) = world.draw_findings(self.rng, [_filled(asked[1], first)])
            if second == first or all(each.cells.isdisjoint(second.cells) for each in rest):
                break
        sets = [rest if finding is None else [*rest, found] for finding, found in ((one, first), (other, second))]
        phantom = self.phantom(sets[0])
        changed = world.with_findings(self.rng, self.split, phantom.patient, sets[1])
        return phantom, replace(phantom, patient=changed, seed=int(self.rng.random() * 2**32))


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments; rows 2k and 2k + 1 are a minimal pair.

    Raises UserError for an unknown split.
    """
    draw = _Draw(split, seed, index // 2)
    is_closed = split == "test_novel" or draw.rng.random() < 0.5
    template = _detail if split == "test_novel" else pick(draw.rng, _CLOSED if is_closed else _OPEN)
    content_type, pair = template(draw)
    question, answer, phantom = pair[(index + (draw.rng.random() < 0.5)) % 2]
    answer_type = CLOSED if is_closed else OPEN
    return Question(phantom=phantom, question=question, answer=answer, answer_type=answer_type, content_type=content_type)


def _filled(wanted: Finding, first: Finding) -> Finding:
    """Return a wanted finding of the same kind, with its open attributes taken from `first`."""
    return wanted._replace(side=wanted.side or first.side, zone=wanted.zone or first.zone, grade=wanted.grade or first.grade)


def _yes_no(draw: _Draw, content_type: str, question: str, yes: Finding, no: Finding | None) -> Pair:
    return content_type, [(question, answer, each) for answer, each in zip(YES_NO, draw.two(yes, no), strict=True)]


# Closed


def _presence(draw: _Draw) -> Pair:
    kind = draw.pick(FINDINGS)
    return _yes_no(draw, "presence", f"is there {draw.name(kind)}", Finding(kind), None)


def _heart(draw: _Draw) -> Pair:
    return _yes_no(draw, "presence", "is the heart enlarged", Finding(world.CARDIOMEGALY), None)


def _negation(draw: _Draw) -> Pair:
    kind = draw.pick(FINDINGS)
    phantom, name = pick(draw.rng, draw.two(Finding(kind), None)), draw.name(kind)
    answers = YES_NO if phantom.finding(kind) else YES_NO[::-1]
    return "presence", [(f"is there {no}{name}", answer, phantom) for no, answer in zip(("", "no "), answers, strict=True)]


def _side(draw: _Draw) -> Pair:
    kind = draw.pick(SIDED)
    phantom, _ = draw.two(Finding(kind, side=draw.pick(SIDES)), None)
    found, name = phantom.finding(kind), draw.name(kind)
    answers = [YES_NO[found is None or found.side != side] for side in SIDES]
    return "side", [(f"is the {name} on the {side}", answer, phantom) for side, answer in zip(SIDES, answers, strict=True)]


def _severity(draw: _Draw) -> Pair:
    kind = draw.pick(tuple(GRADES))
    least, *more = GRADES[kind]
    question = f"is the {draw.name(kind)} more than {least}"
    return _yes_no(draw, "severity", question, Finding(kind, grade=draw.pick(more)), Finding(kind, grade=least))


def _detail(draw: _Draw) -> Pair:
    """Ask about all attributes of a finding; the other image has another side, zone or grade."""
    kind = draw.pick(FINDINGS)
    asked = pick(draw.rng, world.variants(kind))
    question = f"is there {describe(asked, name_of(asked, draw.split))}"
    others = [
        other
        for other in world.variants(kind)
        if sum(one != two for one, two in zip(asked.variant, other.variant, strict=True)) == 1
    ]
    content_type = "severity" if kind in (world.CARDIOMEGALY, world.EDEMA) else "side"
    return _yes_no(draw, content_type, question, asked, pick(draw.rng, others))


def _device(draw: _Draw) -> Pair:
    device = draw.pick(("pacemaker", "wires"))  # not the tube, which is correlated with pneumothorax
    phantom, _ = draw.two(None, None)
    devices = phantom.patient.devices
    patients = [replace(phantom.patient, devices=each) for each in (devices | {device}, devices - {device})]
    seeds = (phantom.seed, int(draw.rng.random() * 2**32))
    phantoms = [replace(phantom, patient=patient, seed=seed) for patient, seed in zip(patients, seeds, strict=True)]
    question = "is there a pacemaker" if device == "pacemaker" else "are there wires over the sternum"
    return "device", [(question, answer, each) for answer, each in zip(YES_NO, phantoms, strict=True)]


# Open


def _open(draw: _Draw, content_type: str, question: str, options: dict[str, Finding | None]) -> Pair:
    """Return two equally likely answers, each with a phantom that has its finding."""
    answers = pick_distinct(draw.rng, tuple(options), 2)
    phantoms = draw.two(options[answers[0]], options[answers[1]])
    return content_type, [(question, answer, each) for answer, each in zip(answers, phantoms, strict=True)]


def _which_side(draw: _Draw) -> Pair:
    kind = draw.pick(SIDED)
    options = {side: Finding(kind, side=side) for side in SIDES}
    return _open(draw, "side", f"on which side is the {draw.name(kind)}", {**options, NONE: None})


def _which_zone(draw: _Draw) -> Pair:
    kind = draw.pick(ZONED)
    options = {zone: Finding(kind, zone=zone) for zone in ZONES}
    return _open(draw, "zone", f"in which zone is the {draw.name(kind)}", {**options, NONE: None})


def _how_severe(draw: _Draw) -> Pair:
    kind = draw.pick(tuple(GRADES))
    options = {grade: Finding(kind, grade=grade) for grade in GRADES[kind]}
    return _open(draw, "severity", f"how severe is the {draw.name(kind)}", {**options, NONE: None})


def _what_in_zone(draw: _Draw) -> Pair:
    """Ask for the finding in a zone, in images without other findings."""
    side, zone = draw.pick(SIDES), draw.pick(ZONES)
    options = {kind: Finding(kind, side=side, zone=zone) for kind in ZONED} | {NONE: None}
    return _only(draw, f"what is in the {side} {zone} zone", options)


def _which_finding(draw: _Draw) -> Pair:
    return _only(draw, "which finding is there", {**{kind: Finding(kind) for kind in FINDINGS}, NONE: None})


def _only(draw: _Draw, question: str, options: dict[str, Finding | None]) -> Pair:
    answers = pick_distinct(draw.rng, tuple(options), 2)
    findings = [options[answer] for answer in answers]
    drawn = [world.draw_findings(draw.rng, [finding] if finding else []) for finding in findings]
    phantom = draw.phantom(drawn[0])
    changed = world.with_findings(draw.rng, draw.split, phantom.patient, drawn[1])
    other = replace(phantom, patient=changed, seed=int(draw.rng.random() * 2**32))
    return "finding", [(question, answer, each) for answer, each in zip(answers, (phantom, other), strict=True)]


def _how_many(draw: _Draw) -> Pair:
    fewer = pick(draw.rng, range(0, MAX_FINDINGS, 2))
    phantoms = draw.two(None, Finding(draw.pick(FINDINGS)), num_others=fewer)
    numbers = NUMBERS[fewer : fewer + 2]
    return "count", [("how many findings are there", answer, each) for answer, each in zip(numbers, phantoms, strict=True)]


def _which_view(draw: _Draw) -> Pair:
    phantom, _ = draw.two(None, None)
    other = world.take_view(draw.rng, phantom.patient, VIEWS[1 - VIEWS.index(phantom.view)])
    return "view", [("which view is it", each.view, each) for each in (phantom, other)]


_CLOSED: tuple[Callable[[_Draw], Pair], ...] = (_presence, _presence, _heart, _negation, _side, _severity, _detail, _device)
_OPEN: tuple[Callable[[_Draw], Pair], ...] = (
    *(_which_side, _which_zone, _how_severe, _what_in_zone, _which_finding, _how_many, _which_view),
)
