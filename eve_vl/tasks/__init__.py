"""Tasks: each joins a batch type, the model and its objectives.

The task `name` is in `eve_vl.tasks.<name>` or `classifiers`.
"""

from typing import Any

from eve_vl.config import TaskConfig, define, subclasses
from eve_vl.tasks.task import Task
from eve_vl.utils.errors import UserError


def task_class(section: type[TaskConfig]) -> type[Task[Any]]:
    """Return the task of a section. Raises UserError if there is none."""
    for name in (
        "retrieval",
        "classifiers",
        section.name,
    ):  # retrieval.py also defines contrast_match
        define(__name__, name)
    for task in subclasses(Task):
        if vars(task).get("section") is section:
            return task
    raise UserError(f"{section.__name__}: no task has this section; define one in the same file")
