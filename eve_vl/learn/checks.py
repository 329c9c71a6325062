"""Checks of the data before `eve learn` trains anything, and the parts that it holds out."""

from collections.abc import Sequence
from typing import Any

from eve_vl.config import HELD_OUT, DataConfig
from eve_vl.data.decoding import read_image
from eve_vl.data.loader import open_sources, open_splits
from eve_vl.data.records import Source, Unencoded, hash_of, image_key, usable_rows
from eve_vl.data.validate import check_source
from eve_vl.learn.plan import JOBS, SIZES, Plan
from eve_vl.recipes import get_recipe
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError

MIN_ROWS, MIN_CAPTIONS = 50, 10
HELD_ROWS, MOST_HELD = 500, 0.1  # rows for validation and for the test, each; at most this share


def check(plan: Plan) -> None:
    """Read all rows and decide what is held out. Raises UserError for data that teach nothing."""
    if "data" in plan.values:
        return
    where, sources = " ".join(plan.data.train), open_sources(plan.data.train, plan.data, SIZES[0], plan.job.rows)
    reports = [check_source(source) for source in sources]
    rows, broken = (sum(each) for each in zip(*((r["usable"], len(r["broken"])) for r in reports), strict=True))
    if rows < MIN_ROWS:
        unusable = f", {broken:,} cannot be used (eve data check lists them)" if broken else ""
        many = f"{pluralize(rows, plan.job.words)}{unusable}"
        raise UserError(f"{where}: {many}; at least {MIN_ROWS} are needed to train and to measure on others")
    known = [row for source in sources for _, row in usable_rows(source)]
    texts = [text for row in known for text in row.texts]
    if plan.name == "search" and (distinct := len(set(texts))) < MIN_CAPTIONS:
        problem = f"{pluralize(distinct, 'distinct caption')} for {pluralize(rows, 'image')}"
        raise UserError(f"{where}: {problem}, which tells no image from another; give each image captions of its own")
    for flag, specs in {"--test": plan.test, "--val": plan.data.val}.items():
        if specs and specs != (HELD_OUT,):
            _refuse_overlap(plan, sources, flag, specs)
    lengths = sorted(len(text.split()) for text in texts) or [1]
    sides = [report["width"]["median"] for report in reports if report["width"]]
    share = round(min(MOST_HELD, HELD_ROWS / rows), 4)
    holds = plan.data.val == (HELD_OUT,)
    facts: dict[str, Any] = {
        "rows": rows,
        "side": min(sides, default=SIZES[0]),
        "text_length": min(64, max(8, round(1.4 * lengths[int(0.99 * (len(lengths) - 1))]) + 3)),
        "vocab": min(8000, max(1000, len({word for text in texts for word in text.split()}))),
        "val_fraction": share if holds else DataConfig.val_fraction,
        "test_fraction": 0.0 if plan.test else share,
        "many_labels": any(len(getattr(row, "labels", ())) > 1 for row in known),
    }
    plan.values["data"] = facts
    parts = [sum(map(len, part)) for part in open_splits(plan.with_data(get_recipe("icons")), plan.job.rows)]
    parts[2] = parts[2] or sum(len(source) for source in open_sources(plan.test, plan.data, SIZES[0], plan.job.rows))
    num_train, num_val, num_test = parts
    kept = f"{num_train:,} to train on, {num_val:,} to choose by, {num_test:,} for the final numbers only"
    plan.decide(
        f"data: {pluralize(rows, plan.job.words)}{f', {broken:,} unusable' * (broken > 0)}: {kept}",
        data=facts | dict(zip(("train", "val", "test"), parts, strict=True)),
    )


def _refuse_overlap(plan: Plan, sources: Sequence[Source], flag: str, specs: Sequence[str]) -> None:
    others = open_sources(specs, plan.data, SIZES[0], plan.job.rows)
    known = {content for source in sources for _, row in usable_rows(source) for content in contents(row)}
    rows = [contents(row) for source in others for _, row in usable_rows(source)]
    if same := sum(not known.isdisjoint(row) for row in rows):
        fix = f"name other data, or leave {flag} out to hold a part of the sources out"
        problem = f"{same:,} of {pluralize(len(rows), 'row')} show images that are also in {' '.join(plan.data.train)}"
        raise UserError(f"{flag} {' '.join(specs)}: {problem}; {fix}")


def contents(row: Any) -> list[int]:
    """Return a hash of the content of each image of a row."""
    images = [(each, row.where) for each in row.images]
    return [image_key(*pair) if isinstance(pair[0], Unencoded) else hash_of(read_image(*pair)) for pair in images]


def kind_of(data: DataConfig) -> str:
    """Return the job that the columns of the sources suggest. Raises UserError."""
    (source, *_) = open_sources(data.train, data, SIZES[0], "auto")
    table: Any = source
    found = next((row.KIND for _, row in usable_rows(source, range(min(len(source), 100)))), "captions")
    if found == "labels" and "captions" in getattr(table, "names", ()):
        return "search"
    jobs = {job.rows: name for name, job in JOBS.items()}
    if found not in jobs:
        raise UserError(f"{data.train[0]}: holds {found} only; eve learn needs captions, questions, statements or labels")
    return jobs[found]
