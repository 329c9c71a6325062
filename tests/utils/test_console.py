"""Console lines and progress: which process prints, when a long loop reports."""

import contextlib
import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from eve_vl.cli.main import main
from eve_vl.run import training
from eve_vl.utils import console
from helpers import shortcuts


def test_only_the_first_of_several_processes_prints_and_warns(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        console.print_line(f"[bold]rank {rank}")
        console.warn(f"warning of rank {rank}")
        console.print_error(f"rank {rank} failed")
    out, err = capsys.readouterr()
    assert out == "[bold]rank 0\n"
    assert err.splitlines() == [
        "eve: warning of rank 0",
        "eve: rank 0 failed",
        "eve: rank 1 failed",
    ]


HOSTILE = "cat\x1b]0;title\x07\nSECOND LINE: all is well\r\u202etxt\u2028\x9b1A\udcff"
HARMLESS = r"cat\x1b]0;title\x07\nSECOND LINE: all is well\r\u202etxt\u2028\x9b1A\udcff"


def test_text_from_outside_cannot_steer_the_terminal(monkeypatch, capsys):
    """Neither in lines nor in warnings nor beside a progress bar; each line is one line."""
    console.print_line(HOSTILE, "own line [b]", HOSTILE)
    console.print_once(HOSTILE)
    console.print_once(HOSTILE)
    console.warn(HOSTILE)
    out, err = capsys.readouterr()
    assert out.splitlines() == [HARMLESS, "own line [b]", HARMLESS, HARMLESS]
    assert err == f"eve: {HARMLESS}\n"
    screen = io.StringIO()
    monkeypatch.setattr(
        console,
        "CONSOLE",
        Console(
            file=screen,
            force_terminal=True,
            width=300,
        ),
    )
    monkeypatch.setattr(console, "SOON", -1)
    assert list(console.progress("ab", HOSTILE, 2)) == ["a", "b"]
    assert HARMLESS in screen.getvalue()


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("encoding", "kind"),
    [
        ("ascii", io.TextIOWrapper),
        ("latin-1", io.TextIOWrapper),
        ("utf-8", Terminal),
    ],
)
def test_help_and_errors_are_printed_in_any_encoding(monkeypatch, encoding, kind):
    """Help has dots, boxes and dashes; a mistake is the same plain line everywhere."""
    monkeypatch.setenv("TERM", "xterm")

    def run(
        *words: str, encoding: str = encoding, kind: type[io.TextIOWrapper] = kind
    ) -> tuple[str, str]:
        out = kind(io.BytesIO(), encoding)
        err = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
        with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            main(words)
        for stream in (out, err):
            stream.flush()
        return out.buffer.getvalue().decode(encoding), err.buffer.getvalue().decode(encoding)  # pyright: ignore

    dots = "…".encode(encoding, "backslashreplace").decode(encoding)
    assert run("--help")[0].startswith(f"usage: eve VERB {dots}\n")
    assert "--image" in run("search", "--help")[0]
    for words in (
        ("search", "--bogus"),
        ("search", "x", "--topp", "3"),
        ("completion", "fish"),
    ):
        expected = run(*words, encoding="utf-8", kind=io.TextIOWrapper)
        assert run(*words) == expected
        assert expected[1].removesuffix("\n").isprintable()


def test_closed_terminal_does_not_stop_a_run(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("Input/output error")

    monkeypatch.setattr(console, "CONSOLE", Console(file=Gone()))
    console.print_line("hello")


@pytest.mark.parametrize(
    ("total", "tail"),
    [
        (6, " of 6, about 12 s left"),
        (None, ""),
    ],
)
def test_slow_loop_prints_its_progress(monkeypatch, capsys, total, tail):
    """Each item takes 4 seconds of a made-up clock."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    seen = []
    for item in console.progress(iter("abcdef"), "reading", total):
        seen.append(item)
        clock[0] += 4
    assert seen == list("abcdef")
    assert capsys.readouterr().out == f"reading: 3{tail}\n"


@pytest.mark.parametrize(
    ("count", "seconds", "is_shown"),
    [
        (5000, 0, False),
        (60, 0.25, True),
        (3, 0.25, False),
        (4, 5, True),
    ],
)
@pytest.mark.parametrize("is_total_known", [True, False])
def test_slow_loop_on_a_terminal_shows_a_bar(monkeypatch, count, seconds, is_shown, is_total_known):
    """However few items there are; inside of another bar, as validation is."""
    screen = io.StringIO()
    clock = [0.0]
    monkeypatch.setattr(
        console,
        "CONSOLE",
        Console(
            file=screen,
            force_terminal=True,
            width=80,
        ),
    )
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    total = count if is_total_known else None
    items = []
    with Progress(console=console.CONSOLE):
        for item in console.progress(range(count), "reading [/a].csv", total):
            items.append(item)
            clock[0] += seconds
        assert next(console.progress(range(count), "reading", total)) == 0  # ended early
        assert [*console.progress(range(2), "again", None)] == [0, 1]
    assert items == list(range(count))
    assert ("reading [/a].csv" in screen.getvalue()) == is_shown


NO_TORCH = """
import sys
from eve_vl.cli.main import main
class Refused:
    def find_spec(name, *_):
        if name == "torch":
            raise SystemExit(7)
sys.meta_path.insert(0, Refused)
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            "pretrain tiny --out x",
            "eve pretrain tiny: trains on scenes:train, validates on scenes:val, writes to x\n",
        ),
        ("finetune demo_vqa --init a --out x", "eve finetune demo_vqa: starts from a\n"),
    ],
)
def test_first_line_is_printed_before_torch_is_imported(tmp_path: Path, command, line):
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (7, line), done.stderr


def with_all_lines() -> None:
    training.run_lines = shortcuts.RUN_LINES


def test_lines_of_a_run(eve_fork):
    flags = ["--out", "run", "--train.steps", "6", "--data.val-samples", "32"]
    process = eve_fork("pretrain", "tiny", *flags, before=with_all_lines)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    expected = [
        r"eve pretrain tiny: trains on scenes:train, validates on scenes:val, writes to run",
        r"machine: cpu, (bfloat16|float32), \d+ threads?",
        r"training data: 100,000 rows of scenes:train",
        r"validation data: 1,000 rows of scenes:val, 32 of them used",
        r"training a tokenizer of at most 400 tokens on \d+,\d+ texts",
        r"model: \d+,\d+ parameters, all of which train, 1 GFLOP a step, about 0\.5 GiB of memory "
        r"besides the data",
        r"training: 6 steps of 16 rows, 0\.0 epochs; validation every 10 steps, a checkpoint "
        r"every 10",
        r"[\d.e+-]+ s a step  ETA 0:\d\d, \d\.\d\d GiB of memory so far",
        r"train 5/6  .*  ETA 0:\d\d",
        r"train 6/6  .*  ETA 0:00",
        r".*mlm_acc .*",
        r"mlm_loss [\d.]+ on training rows, [\d.]+ on validation rows",
        r"val   6/6  mlm_acc \S+  mlm_loss \S+  mim_mse \S+",
        r"report: run/report\.html",
    ]
    slow = re.compile(r"reading rows: |validating: |step  +\d/6 ")  # said where the machine is slow
    lines = [line for line in stdout.splitlines() if not slow.match(line)]
    assert len(lines) == len(expected), stdout
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
