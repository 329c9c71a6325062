"""Readers of rows, one file per form on disk; `open_source` recognises the form from the path."""
