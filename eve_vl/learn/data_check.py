"""The data check of `eve learn`: it reads all rows and chooses the validation and test splits."""

from collections.abc import Iterable, Sequence

from eve_vl.config import HELD_OUT
from eve_vl.data.image_copies import shared_rows
from eve_vl.data.opening import open_sources, open_splits
from eve_vl.data.records import Record, Source, usable_rows
from eve_vl.data.source_check import SourceReport, check_source
from eve_vl.data.split_file import write_split
from eve_vl.data.split_overlap import overlap_lines, shared_images
from eve_vl.data.splits import Splits
from eve_vl.learn import settings
from eve_vl.learn.decisions import DataFacts
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_config import with_data
from eve_vl.recipes import get_recipe
from eve_vl.train import processes
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError

SPLIT_FILE = "split.json"


def check_data(plan: Plan) -> None:
    """Read all rows and choose the splits, unless that is done.

    Raises UserError for data that teach nothing.
    """
    if plan.decisions.data is not None:
        return
    sources = _open(plan, plan.request.data.train)
    reports = [check_source(source, keeps_images=True) for source in sources]
    num_usable = sum(report.usable for report in reports)
    num_broken = sum(len(report.broken) for report in reports)
    size = pluralize(num_usable, plan.learn_task.row_name)
    if num_broken:
        size += f", {num_broken:,} unusable (eve data check lists them)"
    rows = _usable(sources)
    _refuse_too_few(plan, rows, num_usable, size)
    _refuse_overlaps(plan, sources)

    # twice the share of unusable rows, because the rows of a run are a sample
    max_invalid = min(1.0, round(0.01 + 2 * num_broken / (num_usable + num_broken), 3))
    held = _held_out_options(plan, sources, num_usable)
    held["max_invalid_fraction"] = max_invalid
    facts = _facts_about(rows, num_usable, reports, held)
    plan.decisions.data = facts
    splits = open_splits(with_data(plan, get_recipe("icons")), plan.learn_task.rows)
    _count_splits(plan, facts, splits, num_broken)
    plan.decide(
        f"data: {size}: {facts.train:,} to train on, {facts.val:,} to choose by, "
        f"{facts.test:,} for the final numbers only"
    )
    _note_near_duplicates(plan, splits, reports)


def _open(plan: Plan, specs: Sequence[str]) -> list[Source]:
    return open_sources(specs, plan.request.data, settings.SIZES[0], plan.learn_task.rows)


def _refuse_too_few(plan: Plan, rows: Sequence[Record], num_usable: int, size: str) -> None:
    """Raise UserError if there are too few rows or captions to learn from."""
    where = " ".join(plan.request.data.train)
    if num_usable < settings.MIN_ROWS:
        needed = f"at least {settings.MIN_ROWS} are needed to train and to measure on others"
        raise UserError(f"{where}: {size}; {needed}")
    captions = {text for row in rows for text in row.texts}
    if plan.is_search and len(captions) < settings.MIN_CAPTIONS:
        problem = (
            f"{pluralize(len(captions), 'distinct caption')} for {pluralize(num_usable, 'image')}"
        )
        advice = "give each image captions of its own"
        raise UserError(f"{where}: {problem}, too few to tell images apart; {advice}")


def _refuse_overlaps(plan: Plan, train_sources: list[Source]) -> None:
    """Compare the images of --val and --test with those of the sources before them."""
    data = plan.request.data
    earlier = {" ".join(data.train): train_sources}
    for flag, specs in (("--val", data.val), ("--test", plan.request.test)):
        if specs and specs != (HELD_OUT,):
            sources = _open(plan, specs)
            name = " ".join(specs)
            _refuse_overlap(plan, f"{flag} {name}", sources, earlier)
            earlier[name] = sources


def _refuse_overlap(
    plan: Plan, flag: str, sources: list[Source], earlier: dict[str, list[Source]]
) -> None:
    """Note images that earlier sources have too.

    Raises UserError if more than MAX_SHARED_IMAGES of the rows show such images.
    """
    rows = _usable(sources)
    for where, earlier_sources in earlier.items():
        num_shared = len(shared_rows(_usable(earlier_sources), rows))
        if num_shared == 0:
            continue
        size = pluralize(len(rows), "row")
        problem = f"{num_shared:,} of {size} show images that are also in {where}"
        if num_shared > settings.MAX_SHARED_IMAGES * len(rows):
            name = flag.partition(" ")[0]
            advice = f"leave {name} out, and a part of the sources takes its place"
            raise UserError(f"{flag}: {problem}; name other data, or {advice}")
        plan.decide(f"note: {problem}, so the numbers on them are a little too good")


def _usable(sources: Iterable[Source]) -> list[Record]:
    return [row for source in sources for _, row in usable_rows(source)]


def _held_out_options(plan: Plan, sources: list[Source], num_rows: int) -> dict[str, object]:
    """Choose validation and test rows; return the options of DataConfig that name them.

    In a search, rows that share a caption or an image are in one part.
    """
    share = min(settings.MAX_HELD_OUT_SHARE, settings.MAX_HELD_OUT_ROWS / num_rows)
    num_held_out = int(share * num_rows)
    num_val = num_held_out if plan.request.data.val == (HELD_OUT,) else 0
    num_test = 0 if plan.request.test else num_held_out
    if plan.is_search and (num_val or num_test):
        file = plan.out / SPLIT_FILE
        if processes.from_main(lambda: write_split(file, sources, num_val, num_test)):
            return {"split_file": SPLIT_FILE}
    options: dict[str, object] = {}
    if num_val:
        options["val_fraction"] = round(share, 4)
    if num_test:
        options["test_fraction"] = round(share, 4)
    return options


def _facts_about(
    rows: Sequence[Record],
    num_usable: int,
    reports: Sequence[SourceReport],
    held: dict[str, object],
) -> DataFacts:
    """Return the facts by which the inputs of runs are chosen."""
    texts = [text for row in rows for text in row.texts]
    lengths = sorted(len(text.split()) for text in texts) or [1]
    nearly_longest = lengths[int(0.99 * (len(lengths) - 1))]
    words = {word for text in texts for word in text.split()}
    widths = [report.width.median for report in reports if report.width]
    return DataFacts(
        rows=num_usable,
        side=min(widths, default=settings.SIZES[0]),
        text_length=min(64, max(8, round(1.4 * nearly_longest) + 3)),
        vocab=min(8000, max(1000, len(words))),
        many_labels=any(len(getattr(row, "labels", ())) > 1 for row in rows),
        held=held,
    )


def _note_near_duplicates(plan: Plan, splits: Splits, reports: Sequence[SourceReport]) -> None:
    """Note held-out images that resemble images to train on, such as resized copies."""
    is_val_held_out = plan.request.data.val == (HELD_OUT,)
    held_out_sources = [*(splits.val if is_val_held_out else ()), *splits.test]
    held_out_rows = {row.where for row in _usable(held_out_sources)}
    held_out_images = []
    train_images = []
    for report in reports:
        for image in report.images:
            if image.where in held_out_rows:
                held_out_images.append(image)
            else:
                train_images.append(image)
    shared = shared_images(held_out_images, train_images)
    for line in overlap_lines(shared, len(held_out_images), "the rows to train on"):
        plan.decide(f"note: of the held-out rows, {line}")


def _count_splits(plan: Plan, facts: DataFacts, splits: Splits, num_broken: int) -> None:
    """Count the usable rows of each split."""
    # held-out parts of a split file have usable rows only; of fractions, nearly so
    facts.train = sum(map(len, splits.train)) - num_broken
    facts.val = sum(map(len, splits.val))
    facts.test = sum(map(len, splits.test)) or sum(map(len, _open(plan, plan.request.test)))
