"""How completely a conversion fills our tensors from those of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

from eve_vl.config import Config
from eve_vl.interop.convert import Conversion, config_for
from eve_vl.interop.weight_table import convert_tensor, resolve
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes


@dataclass(frozen=True)
class Coverage:
    """The converted config; names of our tensors, of those with a source, and of the sources."""

    config: Config
    ours: set[str]
    filled: set[str]
    sources: set[str]


def coverage_of(plan: Conversion, vocab_size: int, num_labels: int) -> Coverage:
    """Convert tensors without memory; each result must have the shape that our task asks for."""
    config = config_for(plan, Path("run"), "file")
    sizes = Sizes(vocab_size=vocab_size, labels=("",) * num_labels)
    sources = set()
    with torch.device("meta"):
        state = build_untrained(config, sizes).state_dict()
        table = resolve(plan.table, state)
        for name, computed in table.items():
            tensor = convert_tensor(name, computed, dict(plan.tensors), state[name], "file")
            assert tensor.shape == state[name].shape, name
            sources.update(computed.sources)
    return Coverage(config, set(state), set(table), sources)
