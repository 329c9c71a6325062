"""Sampling of patients and of their images.

A patient is sampled first: anatomy, findings and devices; then one or two views. Everything is a
pure function of (split, seed, number), and no two splits share the number of a patient.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from eve_vl.synthetic import random_choices
from eve_vl.synthetic.random_choices import pick, pick_distinct, pick_weighted
from eve_vl.systems.medical.phantoms.world import (
    AMOUNTS,
    FINDINGS,
    GRADES,
    HEART,
    PNEUMOTHORAX,
    SIDED,
    SIDES,
    SPLITS,
    VIEWS,
    ZONED,
    ZONES,
    Finding,
    Patient,
    Phantom,
    is_possible,
)

NUM_FINDINGS_WEIGHTS = (0.25, 0.35, 0.25, 0.15)
"""Shares of patients with no finding, with one, two and three."""
TUBE_WITH_PNEUMOTHORAX = dict.fromkeys(SPLITS, 0.8) | {"test_shift": 0.2}
"""Share of images with a tube among those with a pneumothorax, and of images without one among the
others."""
PATIENTS_PER_BLOCK = 2
VIEWS_PER_BLOCK = 3  # one of two patients has a second view


def stream(purpose: str, split: str, seed: int, index: int) -> Random:
    """Return the random stream of one row."""
    return random_choices.stream("phantom", purpose, split, seed, index)


def place_of(seed: int, split: str, index: int) -> tuple[int, int]:
    """Return patient and view (0 or 1) of row `index`.

    One of every two patients has a second view.
    """
    block, row = divmod(index, VIEWS_PER_BLOCK)
    has_first_two_views = stream("block", split, seed, block).random() < 0.5
    num_views_of_first = 2 if has_first_two_views else 1
    first_patient = PATIENTS_PER_BLOCK * block
    if row < num_views_of_first:
        return first_patient, row
    return first_patient + 1, row - num_views_of_first


def sample_phantom(split: str, seed: int, index: int) -> Phantom:
    """Sample row `index` of a split, a pure function of the arguments."""
    number, view = place_of(seed, split, index)
    patient = sample_patient(split, seed, number)
    first = pick(stream("view", split, seed, number), VIEWS)
    second = VIEWS[1 - VIEWS.index(first)]
    rng = stream("picture", split, seed, index)
    return take_view(rng, patient, second if view else first)


def sample_patient(split: str, seed: int, number: int) -> Patient:
    """Sample a patient with findings; at least one in `test_novel`."""
    rng = stream("patient", split, seed, number)
    count = pick_weighted(rng, NUM_FINDINGS_WEIGHTS)
    if count == 0 and split == "test_novel":
        count = 1
    kinds = pick_distinct(rng, FINDINGS, count)
    findings = sample_findings(rng, [Finding(kind) for kind in kinds])
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
    in_order = tuple(sorted(findings, key=lambda finding: FINDINGS.index(finding.kind)))
    pneumothorax = next((finding for finding in in_order if finding.kind == PNEUMOTHORAX), None)
    follows_rule = rng.random() < TUBE_WITH_PNEUMOTHORAX[split]
    has_tube = follows_rule == (pneumothorax is not None)
    devices = patient.devices - {"tube"}
    if has_tube:
        devices |= {"tube"}
    tube_side = pneumothorax.side if pneumothorax else patient.tube_side
    return replace(patient, findings=in_order, devices=devices, tube_side=tube_side)


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
    while True:
        findings = try_findings(rng, wanted)
        if findings is not None:
            return findings


def try_findings(rng: Random, wanted: Sequence[Finding]) -> list[Finding] | None:
    """Sample the open attributes of the wanted findings once.

    None if one finding would hide another.
    """
    findings = [_sample_finding(rng, finding) for finding in wanted]
    return findings if is_possible(findings) else None


def _sample_finding(rng: Random, wanted: Finding) -> Finding:
    """Sample the open attributes of one finding."""
    kind, side, zone, grade, *_ = wanted
    if not grade and kind in GRADES:
        grade = pick(rng, tuple(GRADES[kind]))
    if not side and kind in SIDED:
        side = pick(rng, SIDES)
    if not zone and kind in ZONED:
        zone = pick(rng, ZONES)
    low, high = GRADES[kind][grade] if grade else AMOUNTS[kind]
    amount = _between(rng, low, high)
    shift = (_between(rng, -0.02, 0.02), _between(rng, -0.02, 0.02))
    return Finding(kind, side, zone, grade, amount, shift)


def _between(rng: Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
