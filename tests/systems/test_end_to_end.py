"""Tiny recipes of the related systems, trained for two steps: training, pages, transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.config import Config
from eve_vl.config.generated_sources import generated
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.interop import hf
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.report.page import write_report
from eve_vl.run.training import train
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from helpers.report_page import Page, assert_self_contained
from helpers.tiny_runs import TEXTS, noise

STARTS = {
    "mlim_pairs": "mlim_tiny",
    "vlmo_nlvr2": "vlmo_tiny",
    "m3ae_tiny_vqa": "m3ae_tiny",
}
"""What a fine-tuning recipe starts from."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of the runs, with a tokenizer of few captions."""
    folder = tmp_path_factory.mktemp("systems")
    scenes = ScenePairs(split="train", image_size=32)
    captions = []
    for row in range(200):
        captions += scenes[row].captions
    (folder / "tokenizer.json").write_text(Tokenizer.train(captions, 400).to_json())
    return folder


def trained_run(folder: Path, name: str) -> Path:
    """Train a recipe, and what it starts from, unless that was done."""
    if (folder / name).exists():
        return folder / name
    if name in STARTS:
        start = replace(get_recipe(STARTS[name]), out=trained_run(folder, STARTS[name]))
        config = get_finetune_recipe(name, start)
    else:
        config = get_recipe(name)
        tokenizer = replace(config.tokenizer, path=folder / "tokenizer.json")
        config = replace(config, tokenizer=tokenizer)
    assert train(shortened(config, folder / name))
    return folder / name


def shortened(config: Config, out: Path) -> Config:
    """The recipe with two steps of a few generated rows."""
    data = replace(config.data, val_samples=4, num_workers=0)
    if not all(map(generated, data.train)):
        data = replace(data, train=("scenes:train",), val=("scenes:val",))
    schedule = replace(
        config.train,
        steps=2,
        batch_size=4,
        log_every=1,
        val_every=2,
        save_every=2,
    )
    schedule = replace(schedule, device="cpu", threads=1)
    config = replace(
        config,
        out=out,
        data=data,
        train=schedule,
    )
    if getattr(config.task, "ranking_candidates", 0):
        config = replace(config, task=replace(config.task, ranking_candidates=4))
    return config


@pytest.mark.parametrize(
    ("name", "text", "is_medical"),
    [
        ("vlmo_tiny", "Matching loss", False),
        ("mlim_tiny", "masked texts and images", False),
        ("mlim_pairs", "pairs of items", False),
        ("m3ae_tiny_vqa", "questions", True),
    ],
)
def test_a_run_has_a_page_which_says_if_it_is_no_medicine(folder, name, text, is_medical):
    path = write_report(trained_run(folder, name))
    assert_self_contained(path)
    page = Page(path)
    assert text in page.text
    assert {"numbers", "curves", "config"} <= {*page.ids}
    assert (NO_MEDICINE in page.text) == is_medical


@pytest.mark.parametrize(
    ("name", "class_name", "is_comparable"),
    [
        ("vlmo_tiny", "EveForContrastMatch", True),
        ("vlmo_nlvr2", "EveForNLVR2", False),
        ("mlim_tiny", "EveForMlim", False),
        ("mlim_pairs", "EveForPair", False),
        ("m3ae_tiny", "EveForContrastMatch", False),
        ("m3ae_tiny_vqa", "EveForVisualQuestionAnswering", False),
        ("medflip_tiny", "EveForRetrieval", True),
    ],
)
def test_features_in_transformers_are_those_of_eve(folder, name, class_name, is_comparable):
    run = trained_run(folder, name)
    eve = Eve.load(run, device="cpu")
    assert eve.task.is_comparable == is_comparable
    model, processor = hf.from_run(run)
    assert type(model).__name__ == class_name
    images = [noise(seed, 48, 48) for seed in range(3)]
    inputs = processor(images=images, text=[*TEXTS])
    with torch.no_grad():
        image_output: Any = model.get_image_features(inputs["pixel_values"])
        text_output: Any = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    np.testing.assert_allclose(image_output.pooler_output, eve.encode_image(images), atol=1e-5)
    np.testing.assert_allclose(text_output.pooler_output, eve.encode_text([*TEXTS]), atol=1e-5)
