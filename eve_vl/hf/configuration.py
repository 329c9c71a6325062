"""What `transformers` must know of a run: the sections of our own config that say what the model is."""

from dataclasses import field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from eve_vl.config import Config, EveModelConfig, MaskedSignalConfig, from_dict, to_dict


class EveConfig(PreTrainedConfig):
    """The sections `model` and `task` of our `Config` as JSON values, and the size of the vocabulary.

    The answer list of VQA is `id2label`. Where the run was trained, and on what, stays at home: a config that goes to the hub
    names no folder. Raises UserError for unknown or missing keys and for values that do not go together.
    """

    model_type = "eve"

    model: dict[str, Any] = field(default_factory=lambda: to_dict(EveModelConfig()))
    task: dict[str, Any] = field(default_factory=lambda: to_dict(MaskedSignalConfig()))
    vocab_size: int = 64_000
    mask_token_id: int = 0

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        assert self.id2label is not None
        self.label2id = {label: int(index) for index, label in self.id2label.items()}
        _ = self.run  # which checks the sections

    @property
    def run(self) -> Config:
        """The run config with these sections, its other sections as they are by default."""
        values = to_dict(Config(recipe="transformers", out=Path()))
        return from_dict(Config, values | {"model": self.model, "task": self.task}, "config.json")

    @property
    def hidden_size(self) -> int:
        """Width of the encoder: model.embed_dim."""
        return self.model["embed_dim"]

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the encoder: model.depth."""
        return self.model["depth"]

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of a block: model.num_heads."""
        return self.model["num_heads"]
