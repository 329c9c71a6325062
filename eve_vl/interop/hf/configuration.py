"""What `transformers` must know of a run: the sections of our own config that say what the model is."""

from dataclasses import field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from eve_vl.config import Config, from_dict, to_dict
from eve_vl.config.base import Section
from eve_vl.config.serialization import FORMAT, check_format

DEFAULTS = to_dict(Config(recipe="transformers", out=Path()))
SECTIONS = ("input", "model", "task")


class EveConfig(PreTrainedConfig):
    """The sections `input`, `model` and `task` of our `Config` as JSON values, and the size of the vocabulary.

    The labels of a classifier, as the answers of VQA, are `id2label`. Where the run was trained, and on what, stays at home: a
    config that goes to the hub names no folder. What earlier versions saved is brought to the present form. Raises UserError
    for unknown or missing keys and for values that do not go together.
    """

    model_type = "eve"

    input: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS["input"]))
    model: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS["model"]))
    task: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS["task"]))
    vocab_size: int = 64_000
    mask_token_id: int = 0
    format: int = FORMAT
    """Format of the sections."""

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        assert self.id2label is not None
        self.label2id = {label: int(index) for index, label in self.id2label.items()}
        check_format({"format": self.format}, "config.json")
        _ = self.run  # which checks the sections

    @property
    def run(self) -> Config:
        """The run config with these sections, its other sections as they are by default."""
        return from_dict(Config, DEFAULTS | {name: getattr(self, name) for name in SECTIONS}, "config.json")

    hidden_size = property(lambda self: self.model["embed_dim"])
    """Width of the encoder."""
    num_hidden_layers = property(lambda self: self.run.model.block.depth)
    """Blocks that an image passes."""
    num_attention_heads = property(lambda self: self.model["num_heads"])
    """Attention heads of a block."""


def portable(section: Section) -> dict[str, Any]:
    """Return the JSON values of a section without paths, which mean nothing elsewhere."""
    return {name: value for name, value in to_dict(section).items() if not isinstance(getattr(section, name), Path)}
