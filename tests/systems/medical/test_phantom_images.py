"""Images of phantoms against oracles that know how they were taken and look for findings."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest

from eve_vl.systems.medical.phantoms.film import SIGMA, draw, render
from eve_vl.systems.medical.phantoms.rows import PhantomPairs
from eve_vl.systems.medical.phantoms.sampling import sample_phantom, with_findings
from eve_vl.systems.medical.phantoms.world import (
    FINDINGS,
    MAX_FINDINGS,
    ZONED,
    Finding,
    Phantom,
    variants,
)
from eve_vl.utils.errors import UserError

LEAST_PIXELS = 12  # that each finding changes, each by 3 sigma
SHIFTS = tuple(product((-0.013, 0.0, 0.013), repeat=2))


def phantoms(split: str, count: int) -> list[Phantom]:
    return [sample_phantom(split, 0, index) for index in range(count)]


def with_only(phantom: Phantom, findings: Sequence[Finding]) -> Phantom:
    """The same image with other findings, of the same devices."""
    patient = with_findings(Random(0), "train", phantom.patient, list(findings))
    devices = phantom.patient.devices
    patient = replace(patient, devices=devices, tube_side=phantom.patient.tube_side)
    return replace(phantom, patient=patient)


def without(phantom: Phantom, finding: Finding) -> Phantom:
    remaining = [candidate for candidate in phantom.findings if candidate != finding]
    return with_only(phantom, remaining)


def test_every_finding_can_be_seen():
    kinds = set()
    for phantom in phantoms("train", 40):
        drawing = draw(phantom, 64)
        for finding in phantom.findings:
            change = np.abs(drawing - draw(without(phantom, finding), 64))
            assert (change >= 3 * SIGMA).sum() >= LEAST_PIXELS, finding
            kinds.add(finding.kind)
    assert kinds == set(FINDINGS)


def test_an_oracle_reads_everything_from_the_drawing():
    for phantom in phantoms("val", 3):
        findings = find_in_drawing(draw(phantom, 64), phantom)
        expected = {(finding.kind, finding.variant) for finding in phantom.findings}
        assert {(finding.kind, finding.variant) for finding in findings} == expected


def find_in_drawing(drawing: np.ndarray, phantom: Phantom) -> list[Finding]:
    """Find the finding that explains most of the drawing, then the next, until none explains
    enough."""
    findings: list[Finding] = []

    def error_with(*new_findings: Finding) -> float:
        explained = draw(with_only(phantom, [*findings, *new_findings]), 64)
        return float(((drawing - explained) ** 2).sum())

    while len(findings) < MAX_FINDINGS:
        closest = sorted(fitting_variants(findings), key=error_with)[:3]
        candidates = []
        for variant in closest:
            candidates.append(variant)
            if variant.kind in ZONED:
                candidates += [variant._replace(shift=shift) for shift in SHIFTS]
        best = min(candidates, key=error_with)
        if error_with() - error_with(best) < LEAST_PIXELS * (3 * SIGMA) ** 2:
            break
        findings.append(best)
    return findings


def fitting_variants(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings of new kinds that lie where no finding lies yet."""
    kinds = [finding.kind for finding in findings]
    occupied = frozenset().union(*(finding.cells for finding in findings))
    fitting = []
    for kind in FINDINGS:
        if kind not in kinds:
            fitting += [variant for variant in variants(kind) if not variant.cells & occupied]
    return fitting


def test_noise_leaves_the_ceiling_at_one():
    """A threshold half way along the change that a finding makes tells whether it is there."""
    num_findings = 0
    for phantom in phantoms("val", 25):
        for finding in phantom.findings:
            absent = without(phantom, finding)
            drawn_absent = draw(absent, 64)
            change = draw(phantom, 64) - drawn_absent

            def score(image: Phantom, start=drawn_absent, change=change) -> float:
                return ((render(image, 64)[:, :, 0] - start) * change).sum() / (change**2).sum()

            assert score(phantom) > 0.5
            assert score(absent) < 0.5
            num_findings += 1
    assert num_findings > 20


@pytest.mark.parametrize(
    ("grade", "width"),
    [
        ("marked", 0.64),
        ("mild", 0.55),
    ],
)
def test_the_heart_is_as_wide_as_the_number_behind_it_says(grade, width):
    large_heart = Finding("cardiomegaly", grade=grade, amount=width)
    for phantom in phantoms("train", 4):
        patient = replace(phantom.patient, devices=frozenset())
        upright = replace(
            phantom,
            patient=patient,
            tilt=0.0,
            turn=0.0,
            gain=1.0,
            slope=(0.0, 0.0),
        )
        change = draw(with_only(upright, [large_heart]), 128) - draw(with_only(upright, []), 128)
        columns = np.flatnonzero((change > 20).any(axis=0))
        drawn_width = (columns[-1] - columns[0]) / 128
        assert drawn_width == pytest.approx(width * 2 * patient.half_width, abs=0.02)


def test_images_are_grey_noisy_and_never_mirrored():
    rows = PhantomPairs(split="val", num_rows=3)
    for index in range(3):
        image: Any = rows[index].image
        assert image.has_sides
        assert image.pixels.shape == (64, 64, 3)
        assert image.pixels.dtype == np.uint8
        assert (image.pixels[:, :, :1] == image.pixels).all()
        drawing = draw(rows.phantom(index), 64)
        is_clipped = (drawing < 4 * SIGMA) | (drawing > 255 - 4 * SIGMA)
        noise = image.pixels[:, :, 0] - drawing
        assert noise[~is_clipped].std() == pytest.approx(SIGMA, rel=0.1)
    with pytest.raises(UserError, match="image_size is 15, expected at least 16"):
        PhantomPairs(image_size=15)
