"""The section of a run without heads."""

from typing import ClassVar

from eve_vl.config import TaskConfig


class HeadlessConfig(TaskConfig):
    """An imported encoder without heads or losses, to start other runs from."""

    name: ClassVar[str] = "headless"
    title: ClassVar[str] = "an encoder without heads"
    is_pretraining: ClassVar[bool] = True
    has_numbers: ClassVar[bool] = False
