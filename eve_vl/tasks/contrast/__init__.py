"""What tasks with contrast and matching share."""

from eve_vl.tasks.contrast.requests import Match as Match
from eve_vl.tasks.contrast.requests import ZeroShot as ZeroShot
