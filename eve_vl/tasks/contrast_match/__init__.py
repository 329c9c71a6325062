"""Pre-training by contrast, matching and masked signals: the baselines of [paper] Table 1."""

from eve_vl.tasks.contrast.requests import Match as Match
from eve_vl.tasks.contrast.requests import ZeroShot as ZeroShot
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig as ContrastMatchConfig
