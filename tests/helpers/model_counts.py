"""Parameters of models that are built without memory, and arithmetic, each counted once."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from eve_vl.config import Config
from eve_vl.run.flops import NUM_LABELS, inspect_config
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes

Result = TypeVar("Result")


def build_on_meta(config: Config, num_labels: int = NUM_LABELS) -> Any:
    """Return an untrained task whose parameters have no memory."""
    sizes = Sizes(vocab_size=config.tokenizer.vocab_size, labels=("",) * num_labels)
    with torch.device("meta"):
        return build_untrained(config, sizes)


def once_per_shape(function: Callable[[Config], Result]) -> Callable[[Config], Result]:
    """Compute a function once for all configs with the same shapes, task and micro-batch."""
    results: dict[str, Result] = {}

    def cached(config: Config) -> Result:
        rows = config.train.batch_size, config.train.accumulation
        key = repr(
            (
                config.input,
                config.model,
                config.tokenizer,
                config.task,
                rows,
            )
        )
        if key not in results:
            results[key] = function(config)
        return results[key]

    return cached


@once_per_shape
def count_parameters(config: Config) -> int:
    """Return the number of parameters of a config's task."""
    task = build_on_meta(config)
    assert all(parameter.device.type == "meta" for parameter in task.parameters())
    return sum(parameter.numel() for parameter in task.parameters())


inspect_once = once_per_shape(inspect_config)
