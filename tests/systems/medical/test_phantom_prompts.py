"""Prompts of the classes of phantoms."""

import pytest

from eve_vl.systems.medical.phantoms.reports import class_prompts, sample_report
from eve_vl.systems.medical.phantoms.sampling import sample_phantom


@pytest.mark.parametrize("split", ["train", "test"])
def test_prompts_occur_in_no_report(split: str):
    sentences = set()
    for index in range(300):
        report = sample_report(split, sample_phantom(split, 0, index)).text
        for sentence in report.removesuffix(" .").split(" . "):
            sentences.add(sentence.strip())
    assert len(sentences) > 300
    for prompts in class_prompts().values():
        assert sentences.isdisjoint(prompts)
