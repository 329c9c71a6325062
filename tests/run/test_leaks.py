"""Evaluation rows that a run was trained on."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.run.leaks import leaks
from eve_vl.run.loading import LoadedRun, load_run
from helpers.color_rows import train_on_color_rows, write_color_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> LoadedRun:
    return load_run(train_on_color_rows(tmp_path_factory.mktemp("trained")))


def table_of(run: LoadedRun) -> Path:
    return run.config.out.parent / "pairs/rows.jsonl"


def leaks_of(run: LoadedRun, *paths: Path) -> list[str]:
    return leaks(run, open_sources([str(path) for path in paths], run.config.data, 48))


def test_training_rows_are_recognised_whatever_the_name_of_the_file(run, eve, tmp_path: Path):
    train, _ = open_train_and_val(run.config)
    num_train = len(train[0])
    assert 100 <= num_train <= 118  # a tenth is held out
    sentence = f"of 120 rows compared, {num_train} show what this run was trained on"
    assert leaks_of(run, table_of(run)) == [sentence]

    renamed = table_of(run).with_name("renamed.jsonl")
    renamed.write_text("".join(table_of(run).read_text().splitlines(keepends=True)[:60]))
    copies = write_color_rows(tmp_path / "new", 60, word="row")
    (sentence,) = leaks_of(run, renamed)
    match = re.match(r"of 60 rows compared, (\d+) ", sentence)
    assert match is not None
    assert 40 <= int(match[1]) < 60
    assert leaks_of(run, copies) == [sentence]
    for image in copies.parent.glob("*.png"):
        image.write_bytes(image.read_bytes() + b"another image")
    assert leaks_of(run, copies) == []
    done = eve("evaluate", "masked_signal", run.config.out, "--data", renamed)
    assert "show what this run was trained on" in done.stdout


@pytest.mark.parametrize(
    ("val_fraction", "leaks_any"),
    [
        (0.1, False),
        (0.4, True),
    ],
)
def test_validation_rows_that_the_initial_run_was_trained_on_are_reported(
    run, val_fraction, leaks_any
):
    """A larger share than the initial run's holds rows of its training."""
    data = replace(run.config.data, train=(str(table_of(run)),), val_fraction=val_fraction)
    config = replace(run.config, init=run.config.out, data=data)
    sentences = leaks(replace(run, config=config))
    assert bool(sentences) == leaks_any
    end = f" show what {run.config.out}, which this run started from, was trained on"
    assert all(sentence.endswith(end) for sentence in sentences)
