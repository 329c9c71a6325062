"""What conversions of published models need."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.published import write_tokenizer_of_500


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A tokenizer of 500 tokens."""
    return write_tokenizer_of_500(tmp_path_factory.mktemp("words") / "tokenizer.json")


@pytest.fixture(scope="session")
def answers(tmp_path_factory) -> Path:
    """A list of 37 answers, as many as the recorded head has."""
    path = tmp_path_factory.mktemp("answers") / "answers.txt"
    path.write_text("\n".join(f"answer {number}" for number in range(37)))
    return path


@pytest.fixture
def convert(eve, words) -> Callable[..., Any]:
    """Return a function that converts a file into a run with that tokenizer."""

    def run(source: object, target: object, *flags: object) -> Any:
        done = eve("convert", source, target, "--tokenizer", words, *flags)
        assert done.returncode == 0, done.stderr
        return done

    return run
