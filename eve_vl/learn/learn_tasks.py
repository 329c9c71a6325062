"""What `eve learn` can train for, and which of it the columns of the sources suggest."""

from dataclasses import dataclass
from typing import Any

from eve_vl.config import DataConfig
from eve_vl.data.opening import open_sources
from eve_vl.data.records import usable_rows
from eve_vl.learn import settings
from eve_vl.utils.errors import UserError


@dataclass(frozen=True)
class LearnTask:
    """A task that `eve learn` trains for."""

    rows: str
    """Kind of rows."""
    task: str
    """Name for `eve evaluate`."""
    recipe: str
    row_name: str
    """Name of a row in messages."""


LEARN_TASKS = {
    "search": LearnTask("captions", "retrieval", "search_small", "captioned image"),
    "questions": LearnTask("questions", "vqa", "questions_small", "question"),
    "statements": LearnTask("statements", "nlvr2", "statements_small", "statement"),
    "labels": LearnTask("labels", "classification", "labels_small", "labelled image"),
}


def learn_task_of_sources(data: DataConfig) -> str:
    """Return the name of the task that the first rows of the first source suggest.

    Raises UserError if it holds nothing to learn from.
    """
    source: Any = open_sources(data.train, data, settings.SIZES[0], "auto")[0]
    columns = getattr(source, "names", ())
    first_rows = range(min(len(source), 100))
    kind = next((row.KIND for _, row in usable_rows(source, first_rows)), "captions")
    if kind == "labels" and "captions" in columns:
        return "search"
    for name, learn_task in LEARN_TASKS.items():
        if learn_task.rows == kind:
            return name

    problem = f"holds {kind} only; eve learn needs captions, questions, statements or labels"
    if len(columns) <= 1:
        raise UserError(f"{data.train[0]}: {problem}")
    if kind == "texts":
        advice = "If one holds images, name it with --data.image-column"
    else:
        advice = "If one holds captions, name it with --data.text-column"
    raise source.lacks(problem, advice)
