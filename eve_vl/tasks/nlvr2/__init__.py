"""Statements about two images."""

from eve_vl.tasks.nlvr2.config import NLVR2Config as NLVR2Config
from eve_vl.tasks.nlvr2.requests import Verify as Verify
