"""The verb demo: train and compare the runs of the demo."""

from pathlib import Path

from eve_vl.utils.console import print_line
from eve_vl.utils.frozen import Frozen


class DemoArgs(Frozen):
    """Flags of `eve demo`."""

    out: Path = Path("runs/demo")
    """Folder of the runs, metrics.json and report.html; the same command resumes after an
    interruption."""


def run_demo(args: DemoArgs) -> None:
    """Pre-train, fine-tune and compare on built-in scenes: eve demo [--out runs/demo]."""
    from eve_vl.demo.run_demo import run_demo as train_and_compare

    print_line(f"report: {train_and_compare(args.out)}")
