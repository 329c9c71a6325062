"""Calls of retrieval runs: those of every run with a contrast."""

from eve_vl.tasks.contrast.predictor import ContrastPredictor as ContrastPredictor
