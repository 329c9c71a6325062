"""Console lines and progress bars. Imports no torch, which takes seconds."""

import contextlib
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from eve_vl.utils.errors import printable

T = TypeVar("T")
CONSOLE = Console(
    highlight=False, soft_wrap=True, emoji=False
)  # shared: progress bars and lines need one console
PATIENCE = 10  # seconds between lines on progress
SOON = 1  # seconds of a loop before a terminal shows a bar


def is_main() -> bool:
    """Return whether this process prints and writes files for the run.

    Under torchrun, only the first process does.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return place_in_torchrun()[0] == 0  # before the processes meet


def place_in_torchrun() -> tuple[int, int]:
    """Return this process's number and the number of processes under torchrun.

    They are 0 and 1 without it. Other launchers and old shells set RANK alone.
    """
    is_torchrun = os.environ.keys() >= {"LOCAL_RANK", "WORLD_SIZE"}
    return (
        (int(os.environ.get("RANK", 0)), int(os.environ["WORLD_SIZE"])) if is_torchrun else (0, 1)
    )


def print_line(*lines: str) -> None:
    """Print each text on one line, in the main process only.

    Line ends and control characters become escapes: names, labels and captions come from outside.
    """
    with contextlib.suppress(OSError):  # a closed terminal must not keep a run from saving
        if lines and is_main():
            CONSOLE.print("\n".join(map(printable, lines)), markup=False)


print_once = functools.cache(print_line)
"""Print a line once, although a source may be opened several times."""


def warn(text: str) -> None:
    """Print one line on stderr, so that a pipe does not get it."""
    Console(stderr=True, highlight=False, soft_wrap=True, emoji=False).print(
        f"eve: {printable(text)}", markup=False
    )


def pluralize(count: float, one: str, many: str = "") -> str:
    """Return a number with its noun: 1 match, 3 matches, 1.5 matches.

    many: the plural, by default with s or es.
    """
    text = f"{count:,.0f}" if count == int(count) or count >= 1000 else f"{count:.3g}"
    return f"{text} {one if count == 1 else many or one + ('es' if one.endswith('ch') else 's')}"


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show progress.

    A terminal shows a bar after SOON seconds, other outputs a line every PATIENCE seconds.
    """
    shown_at, items, is_bar, what = (
        time.monotonic(),
        iter(items),
        CONSOLE.is_terminal and is_main(),
        printable(what),
    )
    for done, item in enumerate(items):
        if is_bar and time.monotonic() - shown_at > SOON:
            yield from track(
                itertools.chain([item], items),
                escape(what),
                total,
                done,
                console=CONSOLE,
                transient=True,
            )
            return
        if time.monotonic() - shown_at > PATIENCE:
            shown_at = time.monotonic()
            print_line(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))
        yield item


@contextlib.contextmanager
def progress_line(text: Callable[[], str]) -> Iterator[None]:
    """Show a changing line while the block runs.

    Other output of the block goes elsewhere. A terminal shows it in place, other outputs a line every 3 · PATIENCE seconds.
    """
    console, stop = (
        Console(file=sys.stdout, highlight=False, soft_wrap=True, emoji=False),
        threading.Event(),
    )

    def show() -> None:
        with console.status("") as status:  # nothing without a terminal
            while not stop.wait(SOON if console.is_terminal else 3 * PATIENCE):
                status.update(escape(printable(text())))
                if not console.is_terminal:
                    console.print(printable(text()), markup=False)

    thread = threading.Thread(target=show, daemon=True)
    if is_main():
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if is_main():
            thread.join()
