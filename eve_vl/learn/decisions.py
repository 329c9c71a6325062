"""The decisions of `eve learn` as records, which plan.json holds."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stage:
    """A run of the plan: what it is trained with and, once it is done, its numbers."""

    size: int
    """Side of the input images, in pixels."""
    steps: int
    start: str | None = None
    """The run that it starts from, relative to the plan's folder; None: random weights, trained by
    masked prediction."""
    scratch: bool = False
    """Whether only the shape of `start` is taken."""
    caption: str = "none"
    """data.caption_augment of a search."""
    seed: int = 0
    runs: list[str] = field(default_factory=list)
    """Stages whose weights are averaged in place of training."""

    score: float | None = None
    """Mean of the row scores on the validation rows."""
    numbers: dict[str, Any] = field(default_factory=dict)
    took: float = 0.0
    """Seconds of the stage, also those of steps before an interruption."""
    setup: float = 0.0
    """Seconds of the stage next to its steps."""
    is_done: bool = False
    planned_steps: int = 0
    """The steps before a lack of time lowered them; 0 if it did not."""

    def settings(self, **changes: Any) -> "Stage":
        """Return a new stage with the same settings, except the changed ones, and no results."""
        stage = Stage(self.size, self.steps, self.start, self.scratch, self.caption)
        return dataclasses.replace(stage, **changes)


@dataclass
class DataFacts:
    """What the data check found, and how the rows are split."""

    rows: int
    side: float
    """The least median width of the sources' images, in pixels."""
    text_length: int
    vocab: int
    many_labels: bool
    held: dict[str, Any]
    """Options of DataConfig that name the held-out splits and the share of unusable rows."""
    train: int = 0
    val: int = 0
    test: int = 0


@dataclass
class Choice:
    """The best of several pilots."""

    best: str
    gains: dict[str, list[float]]
    """Its difference from each of the rest: mean and both ends of the interval."""


@dataclass
class Result:
    """The best run and its numbers on the test rows."""

    run: str
    numbers: dict[str, Any]
    comparison: str
    notes: list[str]


@dataclass
class Decisions:
    """All decisions so far."""

    request: dict[str, Any]
    """What a resumed call must ask for again."""
    seconds: float
    spent: float = 0.0
    lines: list[str] = field(default_factory=list)
    """Sentences about the decisions, in order."""
    data: DataFacts | None = None
    threads: int = 0
    num_pilots: int = 0
    pilots_until: float | None = None
    """Seconds from the start at which no further pilot begins."""
    stages: dict[str, Stage] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    planned: float = 0.0
    """The time that the final runs were planned for."""
    indexed: str = ""
    """The run and step that the index belongs to."""
    result: Result | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Decisions":
        """Return the decisions of a JSON object.

        Raises KeyError, TypeError or AttributeError for any other JSON.
        """
        decisions = cls(**values)
        decisions.stages = {name: Stage(**stage) for name, stage in values["stages"].items()}
        decisions.choices = {name: Choice(**choice) for name, choice in values["choices"].items()}
        if values["data"] is not None:
            decisions.data = DataFacts(**values["data"])
        if values["result"] is not None:
            decisions.result = Result(**values["result"])
        return decisions
