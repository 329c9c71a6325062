"""Which phantoms are sampled: patients, views, findings, devices."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from eve_vl.systems.medical.phantoms.film import render
from eve_vl.systems.medical.phantoms.questions import sample_question
from eve_vl.systems.medical.phantoms.sampling import sample_phantom
from eve_vl.systems.medical.phantoms.world import FINDINGS, GRADES, MAX_FINDINGS, SPLITS


def test_phantoms_depend_only_on_split_seed_and_index():
    forwards = [sample_phantom("train", 3, index) for index in range(20)]
    backwards = [sample_phantom("train", 3, index) for index in reversed(range(20))]
    assert backwards[::-1] == forwards
    images = set()
    for split in SPLITS:
        for seed in (0, 1):
            images |= {render(sample_phantom(split, seed, i), 32).tobytes() for i in range(10)}
    assert len(images) == len(SPLITS) * 2 * 10


def test_no_patient_is_in_two_splits_and_half_have_a_second_view():
    patients = []
    for split in SPLITS:
        views = defaultdict(set)
        for index in range(600):
            phantom = sample_phantom(split, 0, index)
            assert phantom.view not in views[phantom.patient.number]
            views[phantom.patient.number].add(phantom.view)
        assert Counter(map(len, views.values())) == {1: 200, 2: 200}
        assert set.union(*views.values()) == {"pa", "ap"}
        patients += views
        asked = [sample_question(split, 0, index).phantom for index in range(40)]
        patients += {phantom.patient.number for phantom in asked}
    assert len(set(patients)) == len(patients)


def test_findings_come_evenly_and_none_hides_another():
    rows = [sample_phantom("train", 0, index) for index in range(3000)]
    kinds = Counter()
    for row in rows:
        kinds.update(finding.kind for finding in row.findings)
        cells = Counter()
        for finding in row.findings:
            cells.update(finding.cells)
            low, high = GRADES.get(finding.kind, {"": (0, 1)})[finding.grade]
            assert low <= finding.amount <= high
        assert max(cells.values(), default=1) == 1
    for kind in FINDINGS:
        assert kinds[kind] / kinds.total() * len(FINDINGS) == pytest.approx(1, abs=0.15)
    sizes = Counter(len(row.findings) for row in rows)
    assert sorted(sizes) == [*range(MAX_FINDINGS + 1)]
    assert min(sizes.values()) > 300


@pytest.mark.parametrize("split", SPLITS)
def test_a_tube_goes_with_a_pneumothorax_except_in_test_shift(split):
    share = 0.2 if split == "test_shift" else 0.8
    for sample in (sample_phantom, lambda *key: sample_question(*key).phantom):
        agreeing = []
        for index in range(1500):
            phantom = sample(split, 0, index)
            has_tube = "tube" in phantom.patient.devices
            agreeing.append(has_tube == (phantom.finding("pneumothorax") is not None))
        assert np.mean(agreeing) == pytest.approx(share, abs=0.04)
