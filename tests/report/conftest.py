"""Small runs whose pages the tests of this folder read."""

from pathlib import Path
from typing import Any

import pytest

from eve_vl.config import Config
from eve_vl.run import flops
from eve_vl.run.training import train
from helpers.report_page import finetuned, tiny, train_small_tokenizer, trained


@pytest.fixture(scope="package", autouse=True)
def costs_counted_once():
    """Trace the arithmetic of equal models once, not for every page."""
    inspect_config = flops.inspect_config
    inspections: dict[str, flops.Inspection] = {}

    def inspect_once(config: Config, *sizes: Any) -> flops.Inspection:
        rows = config.train.batch_size
        key = repr(
            (
                config.recipe,
                config.input,
                config.model,
                config.task,
                rows,
                sizes,
            )
        )
        if key not in inspections:
            inspections[key] = inspect_config(config, *sizes)
        return inspections[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "inspect_config", inspect_once)
        yield


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory) -> Path:
    return train_small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="package")
def pretrained(tmp_path_factory, tokenizer) -> Path:
    """A run of two steps without a page."""
    config = tiny(tmp_path_factory.mktemp("tasks") / "pretrained", tokenizer, steps=2)
    train(config)
    return config.out


@pytest.fixture(scope="package")
def finetuned_runs(pretrained, tmp_path_factory) -> dict[str, Path]:
    """Task → a fine-tuned run with its page."""
    folder = tmp_path_factory.mktemp("finetuned")
    runs = {}
    for task, steps in (
        ("vqa", 12),
        ("nlvr2", 4),
        ("retrieval", 8),
    ):
        runs[task] = trained(finetuned(pretrained, task, folder / task, steps=steps)).parent
    return runs
