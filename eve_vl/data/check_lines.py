"""The result of `eve data check` as lines of text."""

from eve_vl.data.source_check import SourceReport, Spread

MAX_BROKEN = 20  # lines on broken rows
NUM_COUNTS = 10  # answers or labels in a line
NAME_WIDTH = 20  # characters


def report_lines(report: SourceReport) -> list[str]:
    """Return the result of `check_source` as lines of text."""
    kind = report.kind
    table: list[tuple[str, object]] = [
        ("rows", report.rows),
        ("usable", report.usable),
        ("broken", len(report.broken)),
    ]
    if report.formats or not report.usable:
        table += [
            ("width in pixels", f"{_spread(report.width)}   (min / median / max)"),
            ("height in pixels", _spread(report.height)),
            ("formats", _counts(report.formats)),
            ("converted", _counts(report.conversions)),
            ("repeated images", report.duplicate_images),
        ]
    if report.texts or not report.usable:
        texts = kind if kind in ("captions", "questions", "statements") else "texts"
        table += [
            (texts, report.texts),
            (f"words per {texts[:-1]}", _spread(report.text_words)),
            (f"repeated {texts}", report.duplicate_texts),
        ]
    if kind == "captions":
        table.append(("captions per image", _spread(report.texts_per_row)))
    if kind == "questions":
        answer_types = {name or "none": count for name, count in report.answer_types.items()}
        table += [
            ("answers each", _spread(report.answers_per_question)),
            ("answer types", _counts(answer_types)),
            ("distinct answers", report.distinct_answers),
            ("frequent answers", _counts(report.top_answers)),
        ]
    if kind in ("questions", "statements"):
        table.append(("repeated ids", report.duplicate_ids))
    if report.labels:
        table.append(("labels", _counts(report.labels)))

    lines = [f"{name:<{NAME_WIDTH}}{value}" for name, value in table]
    return lines + _noise_lines(report) + _broken_lines(report)


def _noise_lines(report: SourceReport) -> list[str]:
    if report.kind != "captions":
        return []
    lines = []
    for text, count in report.frequent_texts.items():
        lines.append(
            f"note: {count:,} captions are {text!r}; such a caption tells little about each image"
        )
    return lines


def _broken_lines(report: SourceReport) -> list[str]:
    lines = [f"broken: {row.where}: {row.reason}" for row in report.broken[:MAX_BROKEN]]
    num_omitted = len(report.broken) - MAX_BROKEN
    if num_omitted > 0:
        lines.append(f"broken: {num_omitted:,} more; --json FILE lists all")
    return lines


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.min} / {spread.median:g} / {spread.max}"


def _counts(counts: dict[str, int]) -> str:
    """Return the first counts as text, and their number if not all are there."""
    first = list(counts.items())[:NUM_COUNTS]
    text = ", ".join(f"{name} {count}" for name, count in first) or "-"
    if len(counts) > NUM_COUNTS:
        text += f", … ({len(counts)} in all)"
    return text
