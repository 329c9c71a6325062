"""The verb report: an HTML page about a run, or about several."""

from pathlib import Path

from tyro.conf import Positional

from eve_vl.cli.output_files import check_writable
from eve_vl.utils.console import print_line
from eve_vl.utils.frozen import Frozen


class ReportArgs(Frozen):
    """Flags of `eve report`."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or folders of runs; several runs are compared on one page."""
    out: Path | None = None
    """File to write; default: report.html in the run folder, or comparison.html in the runs' common
    folder."""


def run_report(args: ReportArgs) -> None:
    """Write an HTML page about a run or a comparison of runs: eve report RUN|FOLDER …"""
    check_writable(args.out)
    from eve_vl.interop.run_names import path_of
    from eve_vl.report.compare import write_comparison
    from eve_vl.report.find_runs import find_runs
    from eve_vl.report.page import write_report

    runs = find_runs([path_of(path) for path in args.runs])
    page = write_report(runs[0], args.out) if len(runs) == 1 else write_comparison(runs, args.out)
    print_line(f"report: {page}")
