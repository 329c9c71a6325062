"""Reports of phantoms and their labels.

A report mentions findings as present, as absent (40 % of all mentions) or as possible; what it does
not mention has no label. Each finding has two names. Training always uses the same one next to a
side, zone and grade, `test_novel` the other one: all words are known there, their combinations are
not.
"""

from random import Random
from typing import NamedTuple

from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted
from eve_vl.systems.medical.phantoms import world
from eve_vl.systems.medical.phantoms.sampling import sample_findings
from eve_vl.systems.medical.phantoms.world import (
    DEVICES,
    FINDINGS,
    GRADES,
    SIDES,
    ZONES,
    Finding,
    Phantom,
)
from eve_vl.systems.medical.readers.chexpert import CHEXPERT_LABELS

PRESENT = 1
ABSENT = 0
UNCERTAIN = -1
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
COLUMNS = {name: name.lower() if name.lower() in FINDINGS else "" for name in CHEXPERT_LABELS}
"""Columns of CheXpert's tables, in their order, and our findings; "": none."""
COLUMNS["Lung Lesion"] = world.NODULE

_REMARKS = {
    "pacemaker": "pacemaker in place",
    "wires": "wires over the sternum",
    "tube": "tube in place",
}
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
        if self.state == ABSENT:
            return self.name
        return describe(self.finding, self.name)


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
        sentences = self._sentences()
        present = [mention.name for mention in self.mentions if mention.state == PRESENT]
        sentences.append(f"impression : {' and '.join(present) or NORMAL}")
        return " ".join(f"{sentence} ." for sentence in sentences)

    @property
    def state_of(self) -> dict[str, int]:
        """States by kind of finding, in the order of the mentions."""
        return {mention.finding.kind: mention.state for mention in self.mentions}

    @property
    def labels(self) -> dict[str, int]:
        """CheXpert's labels by column, as its labeller would read them.

        Findings that are not mentioned are left out.
        """
        state_of = self.state_of
        labels = {column: state_of[kind] for column, kind in COLUMNS.items() if kind in state_of}
        if PRESENT in labels.values() or UNCERTAIN in labels.values():
            return labels
        return {"No Finding": PRESENT, **labels}

    def _sentences(self) -> list[str]:
        """Return the opening and a sentence for each state, in the order of the mentions."""
        sentences = [self.opening] if self.opening else []
        for state in dict.fromkeys(self.state_of.values()):
            words = [mention.words for mention in self.mentions if mention.state == state]
            if state == PRESENT:
                sentences.append(f"there is {' and '.join(words)}")
            elif state == ABSENT:
                sentences.append(f"no {' or '.join(words)}")
            else:
                sentences.append(f"possible {' and '.join(words)}")
        return sentences


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
    parity = int(split == "test_novel")
    if finding.side:
        parity += SIDES.index(finding.side)
    if finding.zone:
        parity += ZONES.index(finding.zone)
    if finding.grade:
        parity += tuple(GRADES[finding.kind]).index(finding.grade)
    return NAMES[finding.kind][parity % 2]


def class_prompts() -> dict[str, tuple[str, ...]]:
    """Return prompts for each finding and for NORMAL.

    They combine words as no training report does.
    """
    prompts: dict[str, tuple[str, ...]] = {NORMAL: (f"there is {NORMAL}", "there is nothing acute")}
    for kind in FINDINGS:
        texts = []
        for finding in world.variants(kind):
            words = describe(finding, name_of(finding, "test_novel"))
            texts.append(f"there is {words}")
        prompts[kind] = tuple(texts)
    return prompts


def sample_report(split: str, phantom: Phantom) -> Report:
    """Sample a report of a phantom."""
    rng = Random(f"report/{phantom.seed}")
    if not phantom.findings and rng.random() < _SHORT:
        return Report("", ())

    mentions = []
    for finding in phantom.findings:
        state = UNCERTAIN if rng.random() < _POSSIBLE else PRESENT
        mentions.append(Mention(finding, state, name_of(finding, split)))

    absent_kinds = [kind for kind in FINDINGS if phantom.finding(kind) is None]
    absent_kinds = pick_distinct(rng, absent_kinds, len(absent_kinds))
    if rng.random() < _POSSIBLE_BUT_ABSENT:
        (finding,) = sample_findings(rng, [Finding(absent_kinds.pop())])
        mentions.append(Mention(finding, UNCERTAIN, name_of(finding, split)))

    num_absent = pick_weighted(rng, _NUM_ABSENT_WEIGHTS)
    if num_absent == 0 and not mentions:
        num_absent = 1
    for kind in absent_kinds[:num_absent]:
        mentions.append(Mention(Finding(kind), ABSENT, pick(rng, NAMES[kind])))

    opening = _sample_opening(rng, phantom)
    return Report(opening, tuple(pick_distinct(rng, mentions, len(mentions))))


def _sample_opening(rng: Random, phantom: Phantom) -> str:
    """Sample a remark on the view or on a device, or ""."""
    devices = [device for device in DEVICES if device in phantom.patient.devices]
    remarks = [f"{phantom.view} view", *(_REMARKS[device] for device in devices)]
    return pick(rng, remarks) if rng.random() < _OPENING else ""
