"""Image–text retrieval."""

from eve_vl.tasks.contrast.requests import Match as Match
from eve_vl.tasks.contrast.requests import ZeroShot as ZeroShot
from eve_vl.tasks.retrieval.config import RetrievalConfig as RetrievalConfig
