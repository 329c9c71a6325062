"""Pages about runs, each one self-contained HTML file: numbers, curves, examples with pictures, routing."""

from eve_vl.report.compare import find_runs, write_comparison
from eve_vl.report.page import write_report
from eve_vl.report.story import write_story

__all__ = ["find_runs", "write_comparison", "write_report", "write_story"]
