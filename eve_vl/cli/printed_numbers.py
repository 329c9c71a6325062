"""Numbers of an evaluation as lines, with what they mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eve_vl.cli.output_files import write_json
from eve_vl.utils.console import print_line


def print_numbers(
    numbers: Mapping[str, float], data: str, notes: Sequence[str], comparison: str
) -> None:
    """Print numbers, the fingerprint of the data, notes and the comparison with the baseline."""
    for name, value in numbers.items():
        print_line(_number_line(name, value))
    print_line(f"{'fingerprint of the data':28} {data}")
    print_line(*(f"note: {note}" for note in notes))
    if comparison:
        print_line(f"comparison: {comparison}")


def _number_line(name: str, value: float) -> str:
    """Return a number with its interval and its meaning."""
    from eve_vl.metrics.names import meaning
    from eve_vl.tasks.baseline import FEW

    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    margin = getattr(value, "margin", "")
    words = []
    if meaning(name):
        words.append(meaning(name))
    if getattr(value, "groups", FEW) < FEW:
        words.append("too few to tell")
    return f"{name:28} {text:10}{margin:26}  {', '.join(words)}".rstrip()


def write_numbers(path: Path | None, numbers: Mapping[str, float], data: str) -> None:
    """Write numbers and the fingerprint of the data; nothing for None."""
    from eve_vl.metrics.intervals import to_json

    write_json(path, {**to_json(numbers), "data": data})
