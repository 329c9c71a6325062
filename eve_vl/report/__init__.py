"""The page about a run: numbers, curves, pictures, captions and routing in one self-contained HTML file."""

from eve_vl.report.page import write_report

__all__ = ["write_report"]
