"""Comparison of two items, each an image with a text."""

from eve_vl.systems.mlim.pair.config import PairConfig as PairConfig
from eve_vl.systems.mlim.pair.requests import Same as Same
