"""The campaign of changed weights finds wrong features and what a refusal leaves behind."""

from pathlib import Path
from random import Random

import pytest
import torch

import mutated_weights
from eve_vl.utils.errors import UserError
from helpers.weight_families import WeightFamily, families
from helpers.weight_mutations import mutate, read_weights

FEATURES = {"image": torch.ones(2, 3)}
HALVES = {"image": torch.full((2, 3), 0.5)}


def refuse(_: Path) -> dict[str, torch.Tensor]:
    raise UserError("refused")


@pytest.mark.parametrize(
    ("expected", "unchanged", "outcome"),
    [
        (lambda _: FEATURES, None, "equal"),
        (lambda _: HALVES, None, "OTHER"),
        (lambda _: {"image": torch.ones(2, 4)}, None, "OTHER"),
        (lambda _: {"image": FEATURES["image"] * float("nan")}, None, "OTHER"),
        (refuse, FEATURES, "harmless"),
        (refuse, HALVES, "ALONE"),
    ],
)
def test_features_count_by_the_referee(tmp_path, monkeypatch, expected, unchanged, outcome):
    monkeypatch.setattr(mutated_weights, "eve_command", lambda _: None)
    family = WeightFamily(lambda _: None, expected, ours=lambda _: FEATURES)
    assert mutated_weights.compare(family, tmp_path, tmp_path, unchanged)[0] == outcome


def test_a_refusal_that_leaves_a_folder_is_a_fault(tmp_path, monkeypatch):
    def leave_folder(_: list[str]) -> None:
        (tmp_path / "results" / ".run.tmp").mkdir(parents=True)
        raise UserError("refused")

    run = tmp_path / "results" / "run"
    family = WeightFamily(lambda _: None, refuse)
    monkeypatch.setattr(mutated_weights, "eve_command", lambda _: refuse(run))
    assert mutated_weights.outcome_of(family, tmp_path, run, None, 60) == ("refused", "refused")
    monkeypatch.setattr(mutated_weights, "eve_command", leave_folder)
    assert mutated_weights.outcome_of(family, tmp_path, run, None, 60) == ("left-over", "refused")


def test_a_mutation_changes_the_files(tmp_path):
    family = families()["vlmo"]
    family.make(tmp_path / "vlmo")
    before = read_weights(tmp_path / "vlmo")
    assert mutate(Random(3), tmp_path / "vlmo")
    after = read_weights(tmp_path / "vlmo")
    names = before.keys() & after.keys()
    is_same = all(torch.equal(before[name], after[name]) for name in names)
    assert not is_same or before.keys() != after.keys()
    assert family.reference(tmp_path / "vlmo").keys() == {"image", "text"}
