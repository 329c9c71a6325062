"""The world of phantoms: what a schematic radiograph shows.

This file also samples it.

A patient is sampled first: anatomy, findings and devices; then one or two views. Everything is a pure function of (split,
seed, number), and no two splits share the number of a patient. Lengths are fractions of the canvas, y grows downwards;
sides are the patient's, who faces the viewer: the patient's right is on the left of the image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

from eve_vl.synthetic import random_choices
from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted
from eve_vl.utils.frozen import Frozen

SPLITS = ("train", "val", "test", "test_shift", "test_novel")
SIDES = ("right", "left")
ZONES = ("upper", "middle", "lower")
VIEWS = ("pa", "ap")
CARDIOMEGALY, EFFUSION, PNEUMOTHORAX = "cardiomegaly", "pleural effusion", "pneumothorax"
CONSOLIDATION, NODULE, ATELECTASIS, EDEMA = "consolidation", "nodule", "atelectasis", "edema"
FINDINGS = (CARDIOMEGALY, EFFUSION, PNEUMOTHORAX, CONSOLIDATION, NODULE, ATELECTASIS, EDEMA)
MAX_FINDINGS = 3

SIDED = (EFFUSION, PNEUMOTHORAX, CONSOLIDATION, NODULE, ATELECTASIS)
ZONED = (CONSOLIDATION, NODULE)
GRADES: dict[str, dict[str, tuple[float, float]]] = {
    CARDIOMEGALY: {
        "mild": (0.54, 0.57),
        "marked": (0.62, 0.65),
    },  # width of the heart over that of the chest; above 0.5
    EFFUSION: {
        "small": (0.13, 0.17),
        "moderate": (0.27, 0.31),
        "large": (0.44, 0.49),
    },  # height over that of the lung
    PNEUMOTHORAX: {"small": (0.05, 0.058), "large": (0.095, 0.11)},  # width of the bare rim
    NODULE: {"small": (0.036, 0.042), "large": (0.062, 0.07)},  # radius
    EDEMA: {"mild": (30, 35), "severe": (62, 70)},  # levels of haze
}
"""Names of grades and the range of the number behind each; gaps between ranges make the truth exact."""
AMOUNTS = {CONSOLIDATION: (0.085, 0.1), ATELECTASIS: (0.085, 0.1)}  # radius, half of the length
HEART = (0.4, 0.46)  # width of a normal heart over that of the chest

NUM_FINDINGS_WEIGHTS = (0.25, 0.35, 0.25, 0.15)
TUBE_WITH_PNEUMOTHORAX = {split: 0.2 if split == "test_shift" else 0.8 for split in SPLITS}
"""Share of images with a tube among those with a pneumothorax, and of images without one among the others."""
PATIENTS_PER_BLOCK, VIEWS_PER_BLOCK = 2, 3  # one of two patients has a second view

Cell = tuple[str, str]
_BEHIND_HEART: frozenset[Cell] = frozenset({("left", "heart")})
"""A large heart hides small findings at the patient's left base, but no fluid."""


class Finding(NamedTuple):
    """One finding; side, zone and grade are "" if it has none.

    amount: the number behind the grade. shift: its offset from the middle of its cell (y, x).
    """

    kind: str
    side: str = ""
    zone: str = ""
    grade: str = ""
    amount: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def variant(self) -> tuple[str, str, str]:
        """Side, zone and grade, which captions may name besides the kind."""
        return self.side, self.zone, self.grade

    def num_changes(self, other: "Finding") -> int:
        """Return how many of side, zone and grade differ."""
        return sum(one != two for one, two in zip(self.variant, other.variant, strict=True))

    @property
    def cells(self) -> frozenset[Cell]:
        """Parts of the lungs that it occupies.

        No other finding may lie there, since one would hide the other.
        """
        if self.kind == CARDIOMEGALY:
            return _BEHIND_HEART
        if self.kind == EDEMA:
            return frozenset((side, "middle") for side in SIDES)
        if self.kind == EFFUSION:
            return frozenset(
                (self.side, zone)
                for zone in (("middle", "lower") if self.grade == "large" else ("lower",))
            )
        zone = "upper" if self.kind == PNEUMOTHORAX else self.zone or "lower"
        return frozenset({(self.side, zone)}) | (
            _BEHIND_HEART if (self.side, zone) == ("left", "lower") else set()
        )


class Patient(Frozen):
    """A patient.

    number: unique over all splits. half_width: of the chest. heart: its width over the chest's.

    tube_side: the side of a tube, if there is one. findings: in the order of FINDINGS.
    """

    number: int
    age: int
    sex: str
    half_width: float
    apex: float
    base: float
    heart: float
    rib_phase: float
    tube_side: str
    findings: tuple[Finding, ...]
    devices: frozenset[str]


class Phantom(Frozen):
    """One image of a patient before rendering.

    tilt: of the body, in radians. turn: offset of the midline from the middle. breath: how much lower the diaphragm is.
    gain: contrast of the film. slope: levels from the middle to the edge (down, right). seed: of noise and words.
    """

    patient: Patient
    view: str
    tilt: float
    turn: float
    breath: float
    gain: float
    slope: tuple[float, float]
    has_marker: bool
    seed: int

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The patient's findings."""
        return self.patient.findings

    def finding(self, kind: str) -> Finding | None:
        """Return its finding of a kind, or None."""
        return next((each for each in self.findings if each.kind == kind), None)


def stream(purpose: str, split: str, seed: int, index: int) -> Random:
    """Return the random stream of one row."""
    return random_choices.stream("phantom", purpose, split, seed, index)


def place_of(seed: int, split: str, index: int) -> tuple[int, int]:
    """Return patient and view (0 or 1) of row `index`.

    One of every two patients has a second view.
    """
    block, row = divmod(index, VIEWS_PER_BLOCK)
    first = (
        2 if stream("block", split, seed, block).random() < 0.5 else 1
    )  # views of the first of the two patients
    return PATIENTS_PER_BLOCK * block + (row >= first), row - first * (row >= first)


def sample_phantom(split: str, seed: int, index: int) -> Phantom:
    """Sample row `index` of a split, a pure function of the arguments."""
    number, view = place_of(seed, split, index)
    patient = sample_patient(split, seed, number)
    first = pick(stream("view", split, seed, number), VIEWS)
    other = VIEWS[1 - VIEWS.index(first)]
    return take_view(stream("picture", split, seed, index), patient, other if view else first)


def sample_patient(split: str, seed: int, number: int) -> Patient:
    """Sample a patient with findings; at least one in `test_novel`."""
    rng = stream("patient", split, seed, number)
    count = pick_weighted(rng, NUM_FINDINGS_WEIGHTS) or int(split == "test_novel")
    findings = sample_findings(rng, [Finding(kind) for kind in pick_distinct(rng, FINDINGS, count)])
    return sample_anatomy(rng, split, findings, number)


def sample_anatomy(rng: Random, split: str, findings: Iterable[Finding], number: int) -> Patient:
    """Sample a patient with these findings."""
    devices = {device for device in ("pacemaker", "wires") if rng.random() < 0.2}
    patient = Patient(
        number=number * len(SPLITS) + SPLITS.index(split),
        age=25 + int(rng.random() * 65),
        sex=pick(rng, ("Female", "Male")),
        half_width=_between(rng, 0.37, 0.4),
        apex=_between(rng, 0.11, 0.14),
        base=_between(rng, 0.7, 0.74),
        heart=_between(rng, *HEART),
        rib_phase=rng.random(),
        tube_side=pick(rng, SIDES),
        findings=(),
        devices=frozenset(devices),
    )
    return with_findings(rng, split, patient, findings)


def with_findings(
    rng: Random, split: str, patient: Patient, findings: Iterable[Finding]
) -> Patient:
    """Return the same patient with other findings.

    A tube is as frequent as in the split's images with these findings.
    """
    findings = tuple(sorted(findings, key=lambda each: FINDINGS.index(each.kind)))
    air = next((each for each in findings if each.kind == PNEUMOTHORAX), None)
    has_tube = (rng.random() < TUBE_WITH_PNEUMOTHORAX[split]) == (air is not None)
    devices = patient.devices - {"tube"} | ({"tube"} if has_tube else set())
    side = air.side if air else patient.tube_side
    return replace(patient, findings=findings, devices=frozenset(devices), tube_side=side)


def take_view(rng: Random, patient: Patient, view: str) -> Phantom:
    """Sample a view of a patient."""
    return Phantom(
        patient=patient,
        view=view,
        tilt=_between(rng, -0.05, 0.05),
        turn=_between(rng, -0.012, 0.012),
        breath=_between(rng, -0.015, 0.015),
        gain=_between(rng, 0.94, 1.06),
        slope=(_between(rng, -8, 8), _between(rng, -8, 8)),
        has_marker=rng.random() < 0.5,
        seed=int(rng.random() * 2**32),
    )


def sample_findings(rng: Random, wanted: Sequence[Finding]) -> list[Finding]:
    """Sample the open attributes ("" and 0) of the wanted findings.

    None hides another. A solution must exist.
    """
    while (found := try_findings(rng, wanted)) is None:
        pass
    return found


def try_findings(rng: Random, wanted: Sequence[Finding]) -> list[Finding] | None:
    """Sample the open attributes of the wanted findings once.

    None if one finding would hide another.
    """
    found = [_sample_finding(rng, finding) for finding in wanted]
    return found if is_possible(found) else None


def is_possible(findings: Sequence[Finding]) -> bool:
    """Return whether an image can have these findings.

    They must not be too many, and none may hide another.
    """
    cells = [cell for finding in findings for cell in finding.cells]
    return len(findings) <= MAX_FINDINGS and len(cells) == len(set(cells))


def variants(kind: str) -> list[Finding]:
    """Return every finding of a kind that words can distinguish.

    The amount is the middle of its range.
    """
    grades = GRADES.get(kind, {"": AMOUNTS.get(kind, (0, 0))})
    return [
        Finding(kind, side, zone, grade, sum(grades[grade]) / 2)
        for side in (SIDES if kind in SIDED else ("",))
        for zone in (ZONES if kind in ZONED else ("",))
        for grade in grades
    ]


def _sample_finding(rng: Random, wanted: Finding) -> Finding:
    kind = wanted.kind
    grade = wanted.grade or (pick(rng, tuple(GRADES[kind])) if kind in GRADES else "")
    side = wanted.side or (pick(rng, SIDES) if kind in SIDED else "")
    zone = wanted.zone or (pick(rng, ZONES) if kind in ZONED else "")
    amount = _between(rng, *(GRADES[kind][grade] if grade else AMOUNTS[kind]))
    return Finding(
        kind,
        side,
        zone,
        grade,
        amount,
        shift=(_between(rng, -0.02, 0.02), _between(rng, -0.02, 0.02)),
    )


def _between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
