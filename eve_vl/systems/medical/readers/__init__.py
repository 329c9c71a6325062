"""Readers of published medical data."""
