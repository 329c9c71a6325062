"""Tables of runs on the console."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from eve_vl.utils.console import print_line
from eve_vl.utils.errors import printable

COST = "core-seconds, with --init runs"


def number_text(value: float | None) -> str:
    """Return a number with its interval; a dash if there is none."""
    if value is None:
        return "–"
    return f"{value:.4f} {getattr(value, 'spread', '')}".rstrip()


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Print rows, each a text by column; in a file or a pipe, a line per cell."""
    console = Console(emoji=False, highlight=False)
    if not console.is_terminal:
        for row in rows:
            for head, cell in row.items():
                if cell:
                    print_line(f"{head}: {cell.replace(chr(10), '; ')}")
            print_line("")
        return
    table = Table(*(Column(head, overflow="fold") for head in rows[0]))
    for row in rows:
        table.add_row(*(_cell(text) for text in row.values()))
    console.print(table)


def _cell(text: str) -> Text:
    return Text("\n".join(map(printable, text.split("\n"))))
