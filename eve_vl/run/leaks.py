"""Evaluation rows that a run, or a run that it started from, was trained on."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eve_vl.config import HELD_OUT, Config
from eve_vl.config.generated_sources import generated
from eve_vl.data.image_copies import shared_rows
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import Source
from eve_vl.data.splits import Splits
from eve_vl.run.loading import LoadedRun, read_config
from eve_vl.run.start_folder import start_folder
from eve_vl.tasks.evaluator import eval_rows
from eve_vl.tasks.task import task_class
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.utils.errors import UserError

MAX_SEEN_ROWS = 50_000  # of a run's data, against which rows are compared
MAX_COMPARED_ROWS = 500  # of each evaluated source, so that the comparison takes seconds


@dataclass
class SeenData:
    """Data that a run has seen."""

    use: str
    """End of the sentence "N rows show what …"."""
    specs: Sequence[str]
    sources: Sequence[Source[Any]]


def leaks(run: LoadedRun, sources: Sequence[Source[Any]] | None = None) -> list[str]:
    """Return a sentence for each set of seen data that shares rows with the sources.

    The sources are by default the run's validation sources. Seen are the training rows of the run
    and of the runs that it started from (--init), and, for other sources, the rows that its weights
    were chosen on. Data that cannot be read are left out.
    """
    sentences: list[str] = []
    with contextlib.suppress(UserError):
        train, val = _open_train_and_val(run.config)
        is_own_validation = sources is None
        compared = val if is_own_validation else sources
        for seen in _seen_by(run, train, val, is_own_validation):
            num_seen, num_compared = _count_seen_rows(seen, compared)
            if num_seen:
                sentences.append(
                    f"of {num_compared:,} rows compared, {num_seen:,} show what {seen.use}"
                )
    return sentences


def validation_leaks(config: Config, splits: Splits) -> list[str]:
    """Return a sentence if validation rows of other data than the training data show images that
    are trained on."""
    data = config.data
    if data.val == (HELD_OUT,) or data.split_file is not None:
        return []  # disjoint by construction
    if any(map(generated, data.val)):
        return []
    seen = SeenData("", splits.train_names, splits.train)
    num_seen, num_compared = _count_seen_rows(seen, splits.val)
    if not num_seen:
        return []
    return [
        f"of {num_compared:,} validation rows compared, {num_seen:,} show what is trained on, so "
        "validation says too much; name other data with --data.val, or held-out"
    ]


def _open_train_and_val(config: Config) -> tuple[list[Source[Any]], list[Source[Any]]]:
    return open_train_and_val(config, task_class(type(config.task)).dataset.kind_of(config))


def _seen_by(
    run: LoadedRun,
    train: Sequence[Source[Any]],
    val: Sequence[Source[Any]],
    is_own_validation: bool,
) -> list[SeenData]:
    """Return the data that a run and the runs before it have seen."""
    data = run.config.data
    is_held_out = data.val == (HELD_OUT,)
    seen: list[SeenData] = []
    if not is_own_validation or not is_held_out:  # else both are disjoint by construction
        seen.append(SeenData("this run was trained on", data.train, train))
    if not is_own_validation and not is_held_out and run.evaluator.main_metric:
        use = "validation has chosen these weights by, so that they say too much"
        seen.append(SeenData(use, data.val, val))
    for name, config in _ancestors(run.config):
        with contextlib.suppress(UserError):
            rows, _ = _open_train_and_val(config)
            use = f"{name}, which this run started from, was trained on"
            seen.append(SeenData(use, config.data.train, rows))
    return seen


def _ancestors(config: Config) -> Iterator[tuple[Path, Config]]:
    """Yield name and config of the runs that a run started from.

    A run that cannot be read ends the sequence.
    """
    with contextlib.suppress(UserError):
        while config.init is not None and not config.scratch:
            name = config.init
            config = read_config(chosen_checkpoint(start_folder(name)))
            yield name, config


def _count_seen_rows(seen: SeenData, sources: Sequence[Source[Any]]) -> tuple[int, int]:
    """Return how many rows are among the seen data, and how many were compared.

    Rows are equal if they share an image, also as a copy, or, without images, a text. Generated
    data are equal as a whole: scenes of one split do not differ.
    """
    pairs = zip(seen.specs, seen.sources, strict=True)
    files = [source for spec, source in pairs if not generated(spec)]
    seen_rows = list(eval_rows(files, MAX_SEEN_ROWS))
    compared_rows = []
    num_seen = 0
    num_compared = 0
    for source in sources:
        rows = list(eval_rows([source], MAX_COMPARED_ROWS))
        num_compared += len(rows)
        if source in seen.sources:
            num_seen += len(rows)
        else:
            compared_rows += rows
    num_seen += len(shared_rows(seen_rows, compared_rows))
    return num_seen, num_compared
