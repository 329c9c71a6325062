"""The result of `eve data check` as lines of text."""

from eve_vl.data.source_check import NUM_SHOWN, SPREADS, Report

MOST_BROKEN = 20  # lines on broken rows


def report_lines(report: Report) -> list[str]:
    """Return the result of `check_source` as lines of text."""
    kind, found = report["kind"], {name: report[name] for name in SPREADS}
    spreads = {
        name: f"{s['min']} / {s['median']:g} / {s['max']}" if s else "-"
        for name, s in found.items()
    }
    texts = kind if kind in ("captions", "questions", "statements") else "texts"
    has_images, has_texts = (
        bool(report[name]) or not report["usable"] for name in ("formats", "texts")
    )
    answer_types = {name or "none": count for name, count in report["answer_types"].items()}
    table = [
        (True, "rows", report["rows"]),
        (True, "usable", report["usable"]),
        (True, "broken", len(report["broken"])),
        (has_images, "width in pixels", f"{spreads['width']}   (min / median / max)"),
        (has_images, "height in pixels", spreads["height"]),
        (has_images, "formats", _shown(report["formats"])),
        (has_images, "converted", _shown(report["conversions"])),
        (has_images, "repeated images", report["duplicate_images"]),
        (has_texts, texts, report["texts"]),
        (has_texts, f"words per {texts[:-1]}", spreads["text_words"]),
        (has_texts, f"repeated {texts}", report["duplicate_texts"]),
        (kind == "captions", "captions per image", spreads["texts_per_row"]),
        (kind == "questions", "answers each", spreads["answers_per_question"]),
        (kind == "questions", "answer types", _shown(answer_types)),
        (kind == "questions", "distinct answers", report["distinct_answers"]),
        (kind == "questions", "frequent answers", _shown(report["top_answers"])),
        (kind in ("questions", "statements"), "repeated ids", report["duplicate_ids"]),
        (report["labels"], "labels", _shown(report["labels"])),
    ]
    broken = [f"broken: {row['where']}: {row['reason']}" for row in report["broken"][:MOST_BROKEN]]
    if (more := len(report["broken"]) - MOST_BROKEN) > 0:
        broken.append(f"broken: {more:,} more; --json FILE lists all")
    frequent = report["frequent_texts"] if kind == "captions" else {}
    tells_little = "such a caption tells little about each image"
    noise = [
        f"note: {num:,} captions are {text!r}; {tells_little}" for text, num in frequent.items()
    ]
    return [f"{name:<20}{value}" for is_shown, name, value in table if is_shown] + noise + broken


def _shown(counts: dict[str, int]) -> str:
    """Return the first counts as text, and their number if not all are shown."""
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:NUM_SHOWN]) or "-"
    return f"{shown}, … ({len(counts)} in all)" if len(counts) > NUM_SHOWN else shown
