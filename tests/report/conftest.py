"""Small runs whose pages the tests of this folder read."""

from pathlib import Path

import pytest

from eve_vl.run.training import train
from helpers.report_page import finetuned, tiny, train_small_tokenizer, trained


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    return train_small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, tokenizer) -> Path:
    """A run of two steps without a page."""
    config = tiny(tmp_path_factory.mktemp("tasks") / "pretrained", tokenizer, steps=2)
    train(config)
    return config.out


@pytest.fixture(scope="session")
def finetuned_runs(pretrained, tmp_path_factory) -> dict[str, Path]:
    """Task → a fine-tuned run with its page."""
    folder = tmp_path_factory.mktemp("finetuned")
    runs = {}
    for task, steps in (("vqa", 20), ("nlvr2", 6), ("retrieval", 20)):
        runs[task] = trained(finetuned(pretrained, task, folder / task, steps=steps)).parent
    return runs
