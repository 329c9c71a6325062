"""Questions about phantoms, in minimal pairs with different answers.

A pair is one question about two images that differ in one finding, or two questions about one image
that differ in one word. So half of the closed questions of every wording have the answer yes.
Answers of open questions, "none" among them, are equally likely for every wording. Questions for a
side, zone or grade use either name of the finding. Questions that name them, as in `test_novel`,
use the name that belongs to them (see `reports`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

from eve_vl.synthetic.random_choices import pick, pick_distinct
from eve_vl.systems.medical.phantoms import sampling, world
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

CLOSED = "CLOSED"
OPEN = "OPEN"
YES_NO = ("yes", "no")
NO_YES = ("no", "yes")
NONE = "none"
NUMBERS = ("zero", "one", "two", "three")
_GRADES = tuple(dict.fromkeys(grade for grades in GRADES.values() for grade in grades))
ANSWERS = (*YES_NO, *SIDES, *ZONES, *_GRADES, *NUMBERS, *VIEWS, *FINDINGS, NONE)
CONTENT_TYPES = ("presence", "side", "zone", "severity", "finding", "count", "view", "device")

_FIRST_PATIENT = 10**9  # patients of questions have no reports
_MAX_ADDITIONAL = 2

T = TypeVar("T")


class Question(NamedTuple):
    """A phantom, a question and the answer (one of ANSWERS).

    content_type is one of CONTENT_TYPES.
    """

    phantom: Phantom
    question: str
    answer: str
    answer_type: str
    content_type: str


@dataclass(frozen=True)
class MinimalPair:
    """Questions, answers and phantoms of two examples."""

    content_type: str
    questions: tuple[str, str]
    answers: Sequence[str]
    phantoms: Sequence[Phantom]


def _same_question(
    content_type: str, question: str, answers: Sequence[str], phantoms: Sequence[Phantom]
) -> MinimalPair:
    """Return a pair that asks one question about two phantoms."""
    return MinimalPair(content_type, (question, question), answers, phantoms)


class _PairSampler:
    """The random choices of one pair."""

    def __init__(self, split: str, seed: int, number: int):
        self.rng = sampling.stream("question", split, seed, number)
        self.split = split
        self.number = _FIRST_PATIENT + number

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return pick(self.rng, options)

    def name(self, kind: str) -> str:
        """Return either name of a finding."""
        return self.pick(NAMES[kind])

    def seed(self) -> int:
        """Sample the seed of a film's noise and words."""
        return int(self.rng.random() * 2**32)

    def phantom(self) -> Phantom:
        """Sample a phantom with any findings."""
        return self.phantoms_with(None, None)[0]

    def phantoms(
        self, first: Sequence[Finding], second: Sequence[Finding]
    ) -> tuple[Phantom, Phantom]:
        """Sample a patient in either view with the first and the second findings."""
        patient = sampling.sample_anatomy(self.rng, self.split, first, self.number)
        phantom = sampling.take_view(self.rng, patient, self.pick(VIEWS))
        changed = sampling.with_findings(self.rng, self.split, phantom.patient, second)
        return phantom, replace(phantom, patient=changed, seed=self.seed())

    def phantoms_with(
        self, first: Finding | None, second: Finding | None, num_additional: int | None = None
    ) -> tuple[Phantom, Phantom]:
        """Return two phantoms of one patient, with the first and with the second finding.

        None: without it. Both also have up to two findings of other kinds.
        """
        wanted = [finding for finding in (first, second) if finding is not None]
        kinds_asked = {finding.kind for finding in wanted}
        kinds = [kind for kind in FINDINGS if kind not in kinds_asked]
        if num_additional is None:
            num_additional = int(self.rng.random() * (_MAX_ADDITIONAL + 1))

        while True:  # additional findings may hide the finding in question, or be hidden
            additional_kinds = pick_distinct(self.rng, kinds, num_additional)
            additional = [Finding(kind) for kind in additional_kinds]
            findings = sampling.try_findings(self.rng, [*additional, *wanted[:1]])
            if findings is None:
                continue
            additional = findings[:num_additional]
            sampled = findings[-1] if wanted else Finding("")
            changed = sampled
            if len(wanted) == 2 and first != second:
                changed_draft = _filled(wanted[1], sampled)
                (changed,) = sampling.sample_findings(self.rng, [changed_draft])
            if changed == sampled or _is_visible_among(changed, additional):
                break

        with_first = [*additional, sampled] if first else additional
        with_second = [*additional, changed] if second else additional
        return self.phantoms(with_first, with_second)


def _is_visible_among(finding: Finding, findings: Sequence[Finding]) -> bool:
    """Return whether none of some findings lies where this one does."""
    return all(finding.cells.isdisjoint(hiding.cells) for hiding in findings)


def _filled(wanted: Finding, sampled: Finding) -> Finding:
    """Return a wanted finding with its open attributes taken from a sampled one of the same
    kind."""
    return wanted._replace(
        side=wanted.side or sampled.side,
        zone=wanted.zone or sampled.zone,
        grade=wanted.grade or sampled.grade,
    )


def sample_question(split: str, seed: int, index: int) -> Question:
    """Sample question `index` of a split, a pure function of the arguments.

    Rows 2k and 2k + 1 are a minimal pair.
    """
    sampler = _PairSampler(split, seed, index // 2)
    is_closed = split == "test_novel" or sampler.rng.random() < 0.5
    if split == "test_novel":
        pair = _detail(sampler)
    else:
        template = sampler.pick(_CLOSED if is_closed else _OPEN)
        pair = template(sampler)
    side = (index + (sampler.rng.random() < 0.5)) % 2
    return Question(
        phantom=pair.phantoms[side],
        question=pair.questions[side],
        answer=pair.answers[side],
        answer_type=CLOSED if is_closed else OPEN,
        content_type=pair.content_type,
    )


# Closed


def _presence(sampler: _PairSampler) -> MinimalPair:
    kind = sampler.pick(FINDINGS)
    question = f"is there {sampler.name(kind)}"
    phantoms = sampler.phantoms_with(Finding(kind), None)
    return _same_question("presence", question, YES_NO, phantoms)


def _heart(sampler: _PairSampler) -> MinimalPair:
    phantoms = sampler.phantoms_with(Finding(world.CARDIOMEGALY), None)
    return _same_question("presence", "is the heart enlarged", YES_NO, phantoms)


def _negation(sampler: _PairSampler) -> MinimalPair:
    """Ask whether one image has a finding, and whether it has none."""
    kind = sampler.pick(FINDINGS)
    phantom = sampler.pick(sampler.phantoms_with(Finding(kind), None))
    name = sampler.name(kind)
    questions = (f"is there {name}", f"is there no {name}")
    answers = YES_NO if phantom.finding(kind) else NO_YES
    return MinimalPair("presence", questions, answers, (phantom, phantom))


def _side(sampler: _PairSampler) -> MinimalPair:
    """Ask whether the finding of one image is on the right, and whether it is on the left."""
    kind = sampler.pick(SIDED)
    wanted = Finding(kind, side=sampler.pick(SIDES))
    phantom, _ = sampler.phantoms_with(wanted, None)
    name = sampler.name(kind)
    right, left = (f"is the {name} on the {side}" for side in SIDES)
    answers = YES_NO if wanted.side == "right" else NO_YES
    return MinimalPair("side", (right, left), answers, (phantom, phantom))


def _severity(sampler: _PairSampler) -> MinimalPair:
    kind = sampler.pick(tuple(GRADES))
    least, *worse = GRADES[kind]
    question = f"is the {sampler.name(kind)} more than {least}"
    severe = Finding(kind, grade=sampler.pick(worse))
    phantoms = sampler.phantoms_with(severe, Finding(kind, grade=least))
    return _same_question("severity", question, YES_NO, phantoms)


def _detail(sampler: _PairSampler) -> MinimalPair:
    """Ask about all attributes of a finding.

    The other image has another side, zone or grade.
    """
    kind = sampler.pick(FINDINGS)
    asked = sampler.pick(world.variants(kind))
    question = f"is there {describe(asked, name_of(asked, sampler.split))}"
    changed = [variant for variant in world.variants(kind) if asked.num_changes(variant) == 1]
    content_type = "side" if kind in SIDED else "severity"
    phantoms = sampler.phantoms_with(asked, sampler.pick(changed))
    return _same_question(content_type, question, YES_NO, phantoms)


def _device(sampler: _PairSampler) -> MinimalPair:
    """Ask for a device, but not for the tube, which is correlated with pneumothorax."""
    device = sampler.pick(("pacemaker", "wires"))
    phantom = sampler.phantom()
    patient = phantom.patient
    with_device = replace(patient, devices=patient.devices | {device})
    without_device = replace(patient, devices=patient.devices - {device})
    phantoms = (
        replace(phantom, patient=with_device),
        replace(phantom, patient=without_device, seed=sampler.seed()),
    )
    questions = {
        "pacemaker": "is there a pacemaker",
        "wires": "are there wires over the sternum",
    }
    return _same_question("device", questions[device], YES_NO, phantoms)


# Open


def _attribute(
    sampler: _PairSampler,
    *,
    name: str,
    content_type: str,
    words: str,
    values_of: Callable[[str], Sequence[str]],
    kinds: Sequence[str],
) -> MinimalPair:
    """Ask for the side, zone or grade of a finding, which one image may lack."""
    kind = sampler.pick(kinds)
    question = f"{words} the {sampler.name(kind)}"
    answers = pick_distinct(sampler.rng, (*values_of(kind), NONE), 2)
    wanted = []
    for answer in answers:
        wanted.append(None if answer == NONE else Finding(kind)._replace(**{name: answer}))
    return _same_question(content_type, question, answers, sampler.phantoms_with(*wanted))


_which_side = partial(
    _attribute,
    name="side",
    content_type="side",
    words="on which side is",
    values_of=lambda _: SIDES,
    kinds=SIDED,
)
_which_zone = partial(
    _attribute,
    name="zone",
    content_type="zone",
    words="in which zone is",
    values_of=lambda _: ZONES,
    kinds=ZONED,
)
_how_severe = partial(
    _attribute,
    name="grade",
    content_type="severity",
    words="how severe is",
    values_of=lambda kind: tuple(GRADES[kind]),
    kinds=tuple(GRADES),
)


def _what_in_zone(sampler: _PairSampler) -> MinimalPair:
    """Ask for the finding in a zone, in images without other findings."""
    side = sampler.pick(SIDES)
    zone = sampler.pick(ZONES)
    options = [Finding(kind, side=side, zone=zone) for kind in ZONED]
    return _only_finding(sampler, f"what is in the {side} {zone} zone", options)


def _which_finding(sampler: _PairSampler) -> MinimalPair:
    options = [Finding(kind) for kind in FINDINGS]
    return _only_finding(sampler, "which finding is there", options)


def _only_finding(sampler: _PairSampler, question: str, options: Sequence[Finding]) -> MinimalPair:
    """Ask for the only finding of an image, which may have none."""
    wanted_lists = pick_distinct(sampler.rng, [*([finding] for finding in options), []], 2)
    answers = [wanted[0].kind if wanted else NONE for wanted in wanted_lists]
    first, second = (sampling.sample_findings(sampler.rng, wanted) for wanted in wanted_lists)
    return _same_question("finding", question, answers, sampler.phantoms(first, second))


def _how_many(sampler: _PairSampler) -> MinimalPair:
    fewer = sampler.pick(range(0, MAX_FINDINGS, 2))
    additional = Finding(sampler.pick(FINDINGS))
    phantoms = sampler.phantoms_with(None, additional, num_additional=fewer)
    answers = NUMBERS[fewer : fewer + 2]
    return _same_question("count", "how many findings are there", answers, phantoms)


def _which_view(sampler: _PairSampler) -> MinimalPair:
    phantom = sampler.phantom()
    opposite_view = VIEWS[1 - VIEWS.index(phantom.view)]
    opposite = sampling.take_view(sampler.rng, phantom.patient, opposite_view)
    answers = (phantom.view, opposite_view)
    return _same_question("view", "which view is it", answers, (phantom, opposite))


_CLOSED = (_presence, _presence, _heart, _negation, _side, _severity, _detail, _device)
_OPEN = (
    _which_side,
    _which_zone,
    _how_severe,
    _what_in_zone,
    _which_finding,
    _how_many,
    _which_view,
)
