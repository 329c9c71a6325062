"""Runs: training, loading, inspection, benchmark, lock."""
