"""Tasks: each joins a batch type, the model and its objectives. The task of the section `name` is in `eve_vl.tasks.<name>`."""

import importlib
import importlib.util
from typing import Any

from eve_vl.config import TaskConfig, subclasses
from eve_vl.errors import UserError
from eve_vl.tasks.task import Task


def task_class(section: type[TaskConfig]) -> type[Task[Any]]:
    """Return the task of a section. Raises UserError if there is none."""
    module = f"{__name__}.{section.name}"
    if importlib.util.find_spec(module) is not None:  # else whoever defined the section has defined the task
        importlib.import_module(module)
    for task in subclasses(Task):
        if vars(task).get("section") is section:
            return task
    raise UserError(f"no task is there for the section {section.__name__}")
