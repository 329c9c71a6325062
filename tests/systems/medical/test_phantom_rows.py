"""Rows of phantoms as a generated source."""

import numpy as np
import pytest

from eve_vl.config import DataConfig
from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.opening import open_sources
from eve_vl.systems.medical.phantoms.generator import PHANTOMS
from eve_vl.systems.medical.phantoms.reports import COLUMNS, NORMAL
from eve_vl.systems.medical.phantoms.rows import PhantomLabels, PhantomPairs, PhantomQuestions
from eve_vl.utils.errors import UserError


def test_every_kind_of_row_shows_the_same_phantom():
    for kind, rows in PHANTOMS.rows.items():
        (source,) = open_sources(["phantoms:test_shift"], DataConfig(), 64, kind)
        assert source == rows(split="test_shift")
        assert len(source) == 1000
        assert kind == source[5].KIND
        assert source[5].where == "phantoms:test_shift[5]"
        with pytest.raises(IndexError):
            source[1000]
    pair = PHANTOMS.rows["captions"](split="val")[7]
    labelled = PHANTOMS.rows["labels"](split="val")[7]
    text = PHANTOMS.rows["texts"](split="val")[7]
    assert isinstance(pair.images[0], ImageDrawing)
    assert isinstance(labelled.images[0], ImageDrawing)
    np.testing.assert_array_equal(pair.images[0].pixels, labelled.images[0].pixels)
    assert pair.texts == labelled.texts == text.texts


def test_unknown_kinds_and_splits_are_refused():
    message = "the generated phantoms hold no statements, but captions, questions"
    with pytest.raises(UserError, match=message):
        open_sources(["phantoms:val"], DataConfig(), 64, "statements")
    message = "split is 'tset', expected one of train, val, test, test_shift, test_novel"
    with pytest.raises(UserError, match=message):
        PhantomPairs(split="tset")


def test_rows_have_labels_and_answers():
    labels = PhantomLabels(split="val")
    questions = PhantomQuestions(split="val")
    for index in range(30):
        kinds = tuple(finding.kind for finding in labels.phantom(index).findings)
        assert labels[index].labels == (kinds or (NORMAL,))
        assert questions[index].question_id == index
        assert len(questions[index].answers) == 1


def test_absent_labels_are_those_that_the_report_denies():
    phantoms = PhantomPairs(split="train", image_size=16)
    for index in range(20):
        row = phantoms[index]
        states = phantoms.report(index).labels
        denied = {COLUMNS[column] for column, state in states.items() if state == 0}
        assert set(row.absent) == denied
        assert denied.isdisjoint(row.labels)


def test_validation_on_phantoms_needs_phantoms_in_training(eve):
    done = eve("pretrain", "tiny", "--data.train", "scenes", "--data.val", "phantoms:val")
    assert done.returncode == 2
    assert "val is phantoms:val, but train has no phantoms: give --data.val PATH" in done.stderr
