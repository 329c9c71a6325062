"""Evaluation of a run on any data."""
