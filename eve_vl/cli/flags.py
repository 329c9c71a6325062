"""Flags that several verbs have."""

import dataclasses
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from eve_vl.utils.frozen import Frozen


class RunArgs(Frozen):
    """Flags of verbs that use a run."""

    run: Positional[Path]
    """Run folder, or one of its checkpoints."""


class DeviceArgs(Frozen):
    """Flags of verbs that compute."""

    device: str = "auto"
    """Device in torch's notation: cpu, cuda, cuda:1, mps; auto: cuda if available."""


class JsonArgs(Frozen):
    """Flags of verbs whose result is numbers or text."""

    json: Path | None = None
    """Also write the result to this file."""


class SourceArgs(Frozen):
    """Flags on how to read sources."""

    format: str = "auto"
    """On-disk format; auto: detected from the path."""
    image_root: Path | None = None
    """Folder that image paths are relative to and must stay inside."""
    image_column: str | None = None
    """Column of the image; for statements about two images LEFT,RIGHT."""
    text_column: str | None = None
    """Column of the captions, question, statement or text."""
    label_column: str | None = None
    """Column of the answers, of the statement's truth value, or of the classes."""

    def reading(self) -> dict[str, Any]:
        """Return these options by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(SourceArgs)}


class MeasureArgs(JsonArgs, SourceArgs, DeviceArgs):
    """Flags of all forms of `eve evaluate`."""

    data: tuple[str, ...] = ()
    """Sources to evaluate on, as for --data.train, or held-out-test, the share that
    --data.test-fraction kept for it (of several runs: that of the first one that is no builtin:
    run); default: the run's own validation sources."""
    samples: int = 1_000_000
    """Maximum number of rows, evenly spread."""
    skip_invalid: bool = False
    """Skip and count invalid rows; by default an invalid row is an error."""
