"""The world of phantoms: what a schematic radiograph shows.

Lengths are fractions of the canvas, y grows downwards. Sides are the patient's, who faces the
viewer: the patient's right is on the left of the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

from eve_vl.utils.frozen import Frozen

SPLITS = ("train", "val", "test", "test_shift", "test_novel")
SIDES = ("right", "left")
ZONES = ("upper", "middle", "lower")
VIEWS = ("pa", "ap")
DEVICES = ("pacemaker", "wires", "tube")
CARDIOMEGALY = "cardiomegaly"
EFFUSION = "pleural effusion"
PNEUMOTHORAX = "pneumothorax"
CONSOLIDATION = "consolidation"
NODULE = "nodule"
ATELECTASIS = "atelectasis"
EDEMA = "edema"
FINDINGS = (CARDIOMEGALY, EFFUSION, PNEUMOTHORAX, CONSOLIDATION, NODULE, ATELECTASIS, EDEMA)
MAX_FINDINGS = 3

SIDED = (EFFUSION, PNEUMOTHORAX, CONSOLIDATION, NODULE, ATELECTASIS)
"""Findings with a side."""
ZONED = (CONSOLIDATION, NODULE)
"""Findings with a zone."""
GRADES: dict[str, dict[str, tuple[float, float]]] = {
    # width of the heart over that of the chest; above 0.5
    CARDIOMEGALY: {"mild": (0.54, 0.57), "marked": (0.62, 0.65)},
    # height over that of the lung
    EFFUSION: {"small": (0.13, 0.17), "moderate": (0.27, 0.31), "large": (0.44, 0.49)},
    # width of the bare rim
    PNEUMOTHORAX: {"small": (0.05, 0.058), "large": (0.095, 0.11)},
    # radius
    NODULE: {"small": (0.036, 0.042), "large": (0.062, 0.07)},
    # levels of haze
    EDEMA: {"mild": (30, 35), "severe": (62, 70)},
}
"""Names of grades and the range of the number behind each; gaps between ranges make the truth
exact."""
AMOUNTS = {CONSOLIDATION: (0.085, 0.1), ATELECTASIS: (0.085, 0.1)}
"""Radius, or half of the length, of findings without a grade."""
HEART = (0.4, 0.46)
"""Width of a normal heart over that of the chest."""

Cell = tuple[str, str]
"""A side and a zone of the lungs."""
_BEHIND_HEART: Cell = ("left", "heart")
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
        """Side, zone and grade, which reports may name next to the kind."""
        return self.side, self.zone, self.grade

    def num_changes(self, finding: "Finding") -> int:
        """Return how many of side, zone and grade differ from those of another finding."""
        pairs = zip(self.variant, finding.variant, strict=True)
        return sum(value != changed for value, changed in pairs)

    @property
    def cells(self) -> frozenset[Cell]:
        """Parts of the lungs that it occupies.

        No other finding may lie there, since one would hide the other.
        """
        match self.kind:
            case "cardiomegaly":
                return frozenset([_BEHIND_HEART])
            case "edema":
                return frozenset((side, "middle") for side in SIDES)
            case "pleural effusion":
                zones = ("middle", "lower") if self.grade == "large" else ("lower",)
                return frozenset((self.side, zone) for zone in zones)
            case "pneumothorax":
                return frozenset([(self.side, "upper")])
        cell = (self.side, self.zone or "lower")
        if cell == ("left", "lower"):
            return frozenset([cell, _BEHIND_HEART])
        return frozenset([cell])


class Patient(Frozen):
    """A patient."""

    number: int
    """Unique over all splits."""
    age: int
    sex: str
    half_width: float
    """Of the chest."""
    apex: float
    base: float
    heart: float
    """Width of the heart over that of the chest."""
    rib_phase: float
    tube_side: str
    """Side of a tube, if there is one."""
    findings: tuple[Finding, ...]
    """In the order of FINDINGS."""
    devices: frozenset[str]


class Phantom(Frozen):
    """One image of a patient before rendering."""

    patient: Patient
    view: str
    tilt: float
    """Of the body, in radians."""
    turn: float
    """Offset of the midline from the middle."""
    breath: float
    """How much lower the diaphragm is."""
    gain: float
    """Contrast of the film."""
    slope: tuple[float, float]
    """Levels from the middle to the edge (down, right)."""
    has_marker: bool
    seed: int
    """Of noise and words."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The patient's findings."""
        return self.patient.findings

    def finding(self, kind: str) -> Finding | None:
        """Return its finding of a kind, or None."""
        for finding in self.findings:
            if finding.kind == kind:
                return finding
        return None


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
    amounts = GRADES.get(kind, {"": AMOUNTS.get(kind, (0, 0))})
    sides = SIDES if kind in SIDED else ("",)
    zones = ZONES if kind in ZONED else ("",)
    findings = []
    for side in sides:
        for zone in zones:
            for grade, (low, high) in amounts.items():
                findings.append(Finding(kind, side, zone, grade, (low + high) / 2))
    return findings
