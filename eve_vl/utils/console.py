"""Console lines and progress bars. Imports no torch, which takes seconds."""

import contextlib
import functools
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from eve_vl.utils.errors import printable
from eve_vl.utils.launcher import process_place

T = TypeVar("T")


def _plain_console(**options) -> Console:
    """Return a console that changes nothing in the text that it prints."""
    return Console(highlight=False, soft_wrap=True, emoji=False, **options)


CONSOLE = _plain_console()  # shared: progress bars and lines need one console
PATIENCE = 10  # seconds between lines on progress
SOON = 1  # seconds of a loop before a terminal shows a bar


def is_main() -> bool:
    """Return whether this process prints and writes files for the run.

    Under torchrun, only the first process does.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return process_place().rank == 0  # before the processes meet


def print_line(*lines: str) -> None:
    """Print each text on one line, in the main process only.

    Line ends and control characters become escapes: names, labels and captions come from outside.
    """
    if not lines or not is_main():
        return
    with contextlib.suppress(OSError):  # a closed terminal must not keep a run from saving
        CONSOLE.print("\n".join(map(printable, lines)), markup=False)


print_once = functools.cache(print_line)
"""Print a line once, although a source may be opened several times."""


def print_error(text: str) -> None:
    """Print one line on stderr, so that a pipe does not get it, in any process."""
    _plain_console(stderr=True).print(f"eve: {printable(text)}", markup=False)


def warn(text: str) -> None:
    """Print one line on stderr, in the main process only."""
    if is_main():
        print_error(text)


def pluralize(count: float, singular: str, plural: str = "") -> str:
    """Return a number with its noun: 1 match, 3 matches, 1.5 matches.

    plural: by default with s or es.
    """
    is_whole = count == int(count) or count >= 1000
    number = f"{count:,.0f}" if is_whole else f"{count:.3g}"
    if count == 1:
        return f"{number} {singular}"
    ending = "es" if singular.endswith("ch") else "s"
    return f"{number} {plural or singular + ending}"


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show progress.

    A terminal shows a bar after SOON seconds, other outputs a line every PATIENCE seconds, with the
    time left if the total is known.
    """
    iterator = iter(items)
    label = printable(label)
    has_bar = CONSOLE.is_terminal and is_main()
    start = time.monotonic()
    last_output = start
    for num_done, item in enumerate(iterator):
        seconds = time.monotonic() - last_output
        if has_bar and seconds > SOON:
            remaining = itertools.chain([item], iterator)
            yield from track(
                remaining, escape(label), total, num_done, console=CONSOLE, transient=True
            )
            return
        if seconds > PATIENCE:
            last_output = time.monotonic()
            suffix = ""
            if total:
                seconds_left = (last_output - start) / max(num_done, 1) * (total - num_done)
                suffix = f" of {total:,}, about {_duration(seconds_left)} left"
            print_line(f"{label}: {num_done:,}{suffix}")
        yield item


def _duration(seconds: float) -> str:
    """Return a time in whole seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def progress_line(text: Callable[[], str]) -> Iterator[None]:
    """Show a changing line while the block runs.

    Other output of the block goes elsewhere. A terminal shows the line in place, other outputs a
    line every 3 · PATIENCE seconds.
    """
    if not is_main():
        yield
        return
    console = _plain_console(file=sys.stdout)
    stop = threading.Event()
    interval = SOON if console.is_terminal else 3 * PATIENCE

    def show() -> None:
        with console.status("") as status:  # nothing without a terminal
            while not stop.wait(interval):
                line = printable(text())
                status.update(escape(line))
                if not console.is_terminal:
                    console.print(line, markup=False)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
