"""Classification of images, texts or both."""

from eve_vl.tasks.classification.config import ClassificationConfig as ClassificationConfig
from eve_vl.tasks.classification.requests import Classify as Classify
