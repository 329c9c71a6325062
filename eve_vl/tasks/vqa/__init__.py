"""Visual question answering."""

from eve_vl.tasks.vqa.config import VQAConfig as VQAConfig
from eve_vl.tasks.vqa.requests import Answer as Answer
