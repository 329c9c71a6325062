"""Reports of phantoms, their labels, and false reports with one change.

A report mentions findings as present, as absent (40 % of all mentions) or as possible; what it does not mention has no label.
Each finding has two names. Training always uses the same one next to a side, zone and grade, `test_novel` the other one: all
words are known there, their combinations are not.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted
from eve_vl.systems.medical.phantoms import world
from eve_vl.systems.medical.phantoms.world import FINDINGS, GRADES, SIDES, ZONES, Finding, Phantom
from eve_vl.systems.medical.readers.tables import CHEXPERT_LABELS

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1
NORMAL = "no acute finding"
NAMES = {
    world.CARDIOMEGALY: ("cardiomegaly", "enlargement of the heart"),
    world.EFFUSION: ("pleural effusion", "pleural fluid"),
    world.PNEUMOTHORAX: ("pneumothorax", "pleural air"),
    world.CONSOLIDATION: ("consolidation", "airspace opacity"),
    world.NODULE: ("nodule", "round lesion"),
    world.ATELECTASIS: ("atelectasis", "band of collapse"),
    world.EDEMA: ("edema", "vascular congestion"),
}
COLUMNS = {name: name.lower() if name.lower() in FINDINGS else "" for name in CHEXPERT_LABELS} | {
    "Lung Lesion": world.NODULE
}
"""Columns of CheXpert's tables, in their order, and our findings; "": none."""
NUM_DISTRACTORS = 3

_SHORT = 0.4  # share of reports without findings (10 % of all) that are the shortest one
_POSSIBLE = 0.1  # share of present findings reported as possible
_POSSIBLE_BUT_ABSENT = 0.12  # share of reports that name an absent finding as possible
_NUM_ABSENT_WEIGHTS = (0.28, 0.45, 0.27)
_OPENING = 0.5


class Mention(NamedTuple):
    """One finding in a report.

    state is PRESENT, ABSENT or UNCERTAIN, name is one of NAMES.
    """

    finding: Finding
    state: int
    name: str

    @property
    def words(self) -> str:
        """Words such as "small left pleural effusion"; only the name if absent."""
        return describe(self.finding, self.name) if self.state != ABSENT else self.name


class Report(NamedTuple):
    """A report: an opening remark on view or devices, or "", and findings in order."""

    opening: str
    mentions: tuple[Mention, ...]

    @property
    def text(self) -> str:
        """Two to five sentences, ending with the impression.

        NORMAL if there is nothing to mention.
        """
        if not self.mentions:
            return NORMAL
        present = [mention.name for mention in self.mentions if mention.state == PRESENT]
        return " ".join(
            f"{one} ."
            for one in (*self._sentences(), f"impression : {' and '.join(present) or NORMAL}")
        )

    @property
    def labels(self) -> dict[str, int]:
        """CheXpert's labels by column, as its labeller would read them.

        Findings that are not mentioned are left out.
        """
        state_of = {mention.finding.kind: mention.state for mention in self.mentions}
        labels = {column: state_of[kind] for column, kind in COLUMNS.items() if kind in state_of}
        return (
            labels
            if {PRESENT, UNCERTAIN} & set(labels.values())
            else {"No Finding": PRESENT, **labels}
        )

    def _sentences(self) -> Iterator[str]:
        if self.opening:
            yield self.opening
        for state in dict.fromkeys(mention.state for mention in self.mentions):
            words = [mention.words for mention in self.mentions if mention.state == state]
            lead = {PRESENT: "there is", ABSENT: "no", UNCERTAIN: "possible"}[state]
            yield f"{lead} {(' or ' if state == ABSENT else ' and ').join(words)}"


def describe(finding: Finding, name: str) -> str:
    """Return a finding in words.

    Examples: "small left pleural effusion", "nodule in the right upper zone".
    """
    if finding.zone:
        name = f"{name} in the {finding.side} {finding.zone} zone"
    elif finding.kind == world.ATELECTASIS and finding.side:
        name = f"{name} at the {finding.side} base"
    elif finding.side:
        name = f"{finding.side} {name}"
    return f"{finding.grade} {name}".strip()


def name_of(finding: Finding, split: str) -> str:
    """Return the name that a split uses with the side, zone and grade of a finding."""
    grades = tuple(GRADES.get(finding.kind, ("",)))
    places = ((finding.side, SIDES), (finding.zone, ZONES), (finding.grade, grades))
    parity = sum(options.index(value) for value, options in places if value)
    return NAMES[finding.kind][(parity + (split == "test_novel")) % 2]


def class_prompts() -> dict[str, tuple[str, ...]]:
    """Return prompts for each finding and for NORMAL.

    They combine words as no training report does.
    """
    prompts: dict[str, tuple[str, ...]] = {NORMAL: (f"there is {NORMAL}", "there is nothing acute")}
    for kind in FINDINGS:
        unseen = [
            describe(finding, name_of(finding, "test_novel")) for finding in world.variants(kind)
        ]
        prompts[kind] = tuple(f"there is {words}" for words in unseen)
    return prompts


def sample_report(split: str, phantom: Phantom) -> Report:
    """Sample a report of a phantom."""
    rng = Random(f"report/{phantom.seed}")
    if not phantom.findings and rng.random() < _SHORT:
        return Report("", ())
    mentions = [
        Mention(
            finding, UNCERTAIN if rng.random() < _POSSIBLE else PRESENT, name_of(finding, split)
        )
        for finding in phantom.findings
    ]
    absent = [kind for kind in FINDINGS if phantom.finding(kind) is None]
    absent = pick_distinct(rng, absent, len(absent))
    if rng.random() < _POSSIBLE_BUT_ABSENT:
        (finding,) = world.sample_findings(rng, [Finding(absent.pop())])
        mentions.append(Mention(finding, UNCERTAIN, name_of(finding, split)))
    count = pick_weighted(rng, _NUM_ABSENT_WEIGHTS) or int(not mentions)
    mentions += [Mention(Finding(kind), ABSENT, pick(rng, NAMES[kind])) for kind in absent[:count]]
    remarks = {
        "pacemaker": "pacemaker in place",
        "wires": "wires over the sternum",
        "tube": "tube in place",
    }
    openings = [
        f"{phantom.view} view",
        *(words for device, words in remarks.items() if device in phantom.patient.devices),
    ]
    opening = pick(rng, openings) if rng.random() < _OPENING else ""
    return Report(opening, tuple(pick_distinct(rng, mentions, len(mentions))))


def distractors(split: str, phantom: Phantom) -> list[str]:
    """Return NUM_DISTRACTORS false but possible reports.

    Each has one finding changed.

    One denies a present finding; the others have a wrong side, zone or grade. If there are too few of these, they state
    a finding that the true report denies, then one that it does not mention.

    That balances words: a report without findings has longer distractors, every other one a shorter one and some of its length.
    """
    rng, report = Random(f"distractors/{phantom.seed}"), sample_report(split, phantom)
    state_of = {mention.finding.kind: mention.state for mention in report.mentions}
    there = [kind for kind, state in state_of.items() if state != ABSENT and phantom.finding(kind)]
    denied = [
        Mention(Finding(kind), ABSENT, pick(rng, NAMES[kind]))
        for kind in pick_distinct(rng, there, len(there))
    ]
    claimed = [
        Mention(finding, PRESENT, name_of(finding, split))
        for finding in _other_findings(rng, report)
    ]
    in_turn = [
        each
        for state in (PRESENT, ABSENT, None)
        for each in claimed
        if state_of.get(each.finding.kind) == state
    ]
    changes = [*denied[:1], *in_turn, *denied[1:]]
    return [_changed(rng, report, mention).text for mention in changes[:NUM_DISTRACTORS]]


def _other_findings(rng: Random, report: Report) -> list[Finding]:
    """Sample up to NUM_DISTRACTORS findings of each kind, in random order.

    They are compatible with the report's others.

    Of kinds in the report, they differ from it in one attribute.
    """
    present = {
        mention.finding.kind: mention.finding
        for mention in report.mentions
        if mention.state == PRESENT
    }
    sampled: list[Finding] = []
    for kind in FINDINGS:
        old, others = (
            present.get(kind),
            [finding for other, finding in present.items() if other != kind],
        )
        variants = [
            each for each in world.variants(kind) if old is None or old.num_changes(each) == 1
        ]
        fitting = [each for each in variants if world.is_possible([*others, each])]
        sampled += pick_distinct(rng, fitting, min(NUM_DISTRACTORS, len(fitting)))
    return pick_distinct(rng, sampled, len(sampled))


def _changed(rng: Random, report: Report, new: Mention) -> Report:
    """Return a report with one finding changed, or added at a random place."""
    mentions = [
        new if mention.finding.kind == new.finding.kind else mention for mention in report.mentions
    ]
    if new not in mentions:
        mentions.insert(pick(rng, range(len(mentions) + 1)), new)
    return report._replace(mentions=tuple(mentions))
