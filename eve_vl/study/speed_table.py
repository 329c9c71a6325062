"""The table of `study.speed` for the terminal."""

from rich.console import Console
from rich.table import Table

from eve_vl.study.memory import GIB
from eve_vl.study.speed import Row, Speed

RIVAL = "MLM+ITC+ITM"
FAIR = (
    "All tasks run the same code. ITM's three fusion passes are one pass of three times the batch; tokens are predicted only "
    "where they are masked; no encoder pass is computed twice."
)


def render(speed: Speed, console: Console) -> None:
    """Print time and arithmetic, memory, and the rival against EVE by decoder depth."""
    console.print(headline(speed), highlight=False)
    console.print(_times(speed))
    console.print(
        f"optimiser (clipping and {speed.config.train.optimizer}): {speed.optimizer_seconds:.3g} s per step", highlight=False
    )
    if speed.rows[0].memory is not None:
        console.print(_memory(speed))
    console.print(_by_depth(speed))
    for note in notes(speed):
        console.print(note, highlight=False, style="dim")


def _times(speed: Speed) -> Table:
    eve = speed.reference
    table = _table(f"batch {speed.batch}", "GFLOP", "s", "× GFLOP", "× s (least–most)", "× paper")
    for row in speed.rows:
        table.add_row(
            row.variant.name,
            f"{row.gflop:.3g}",
            f"{row.median:.3g}",
            f"{row.gflop / eve.gflop:.2f}",
            _range(speed, row, eve),
            f"{row.variant.paper_hours / eve.variant.paper_hours:.2f}",
        )
    table.caption = f"per pair, forward + backward; × {eve.variant.name}"
    return table


def _memory(speed: Speed) -> Table:
    eve = speed.reference
    names = [f"GiB at {speed.batch}"]
    if speed.memory_cap is not None:
        names += [f"batch in {speed.memory_cap / GIB:.4g} GiB", "s there", "× epoch", "× paper"]
    table = _table("memory", *names)
    for row in speed.rows:
        assert row.memory is not None
        cells = [row.variant.name, f"{row.memory.at(speed.batch) / GIB:.2f}"]
        if row.largest is not None:
            paper = f"{row.variant.paper_hours / eve.variant.paper_hours:.2f}"
            cells += [*_largest_cells(speed, row, eve), paper]
        table.add_row(*cells)
    if speed.memory_cap is not None:
        table.caption = f"s there: per pair, whole steps with the optimiser; × {eve.variant.name}"
    return table


def _table(*names: str) -> Table:
    table = Table(*names)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def headline(speed: Speed) -> str:
    """Return what was measured, and on what."""
    texts = "full length" if speed.texts == "full" else f"made-up captions padded to {speed.text_length} tokens"
    words = ", ".join(f"{name} {value}" for name, value in speed.setting.items())
    return f"{speed.config.recipe}: batch {speed.batch}, texts of {texts} ({speed.config.input.text_length} at most); {words}"


def notes(speed: Speed) -> list[str]:
    """Return what a reader must know to read the numbers."""
    found = [FAIR]
    if speed.rows[0].memory is not None:
        found.append(
            "Memory: a whole training step with the optimiser's state, in a process of its own; at a batch that was not run, "
            "from the line through the two largest that were."
        )
    if speed.rows[0].largest is not None:
        found.append("× epoch: each task at its largest batch, the optimiser included: what the paper's Table 1 compares.")
        if not all(row.largest and row.largest.is_verified for row in speed.rows):
            found.append("~: a step of that batch was not run to see whether it fits.")
    return found


def _by_depth(speed: Speed) -> Table:
    rival = next(row for row in speed.rows if row.variant.name == RIVAL)
    table = _table(f"{RIVAL} over EVE", "× GFLOP", "× s (least–most)", "× epoch", "× paper")
    for eve in (row for row in speed.rows if row.variant.is_eve):
        median, low, high = speed.ratios(rival, eve)
        epoch = speed.epoch_ratio(rival, eve)
        table.add_row(
            f"decoder of {eve.variant.decoder_depth}",
            f"{rival.gflop / eve.gflop:.2f}",
            f"{median:.2f} ({low:.2f}–{high:.2f})",
            "" if epoch is None else f"{epoch:.2f}",
            f"{rival.variant.paper_hours / eve.variant.paper_hours:.2f}",
        )
    return table


def _range(speed: Speed, row: Row, eve: Row) -> str:
    median, low, high = speed.ratios(row, eve)
    return f"{median:.2f}" if row is eve else f"{median:.2f} ({low:.2f}–{high:.2f})"


def _largest_cells(speed: Speed, row: Row, eve: Row) -> list[str]:
    assert row.largest is not None
    if row.largest.batch == 0:
        return ["none", "", ""]
    batch = f"{'' if row.largest.is_verified else '~'}{row.largest.batch}"
    seconds, epoch = row.whole_step_at_largest(speed.optimizer_seconds), speed.epoch_ratio(row, eve)
    return [batch, "" if seconds is None else f"{seconds:.3g}", "" if epoch is None else f"{epoch:.2f}"]
