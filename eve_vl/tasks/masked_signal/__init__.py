"""Pre-training by masked signal modelling, EVE's own objective."""

from eve_vl.tasks.masked_signal.config import MaskedSignalConfig as MaskedSignalConfig
from eve_vl.tasks.masked_signal.requests import FillMask as FillMask
from eve_vl.tasks.masked_signal.requests import Reconstruct as Reconstruct
