"""Runs of the related systems, trained for two steps: pages, calls, hub."""

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
from eve_vl.run.flops import inspect_run
from eve_vl.synthetic.disclaimers import source_note
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from helpers.report_page import Page, assert_self_contained, trained
from helpers.tiny_runs import TEXTS, noise

CLASS = {
    "vlmo_tiny": "EveForContrastMatch",
    "mlim_tiny": "EveForMlim",
    "m3ae_tiny": "EveForContrastMatch",
    "medflip_tiny": "EveForRetrieval",
    "mlim_pairs": "EveForPair",
    "vlmo_nlvr2": "EveForNLVR2",
    "m3ae_tiny_vqa": "EveForVisualQuestionAnswering",
}
STARTS = {
    "mlim_pairs": "mlim_tiny",
    "vlmo_nlvr2": "vlmo_tiny",
    "m3ae_tiny_vqa": "m3ae_tiny",
}
SHOWN = {
    "mlim_pairs": "pairs of items",
    "mlim_tiny": "masked texts and images",
    "medflip_tiny": "Contrastive loss",
    "vlmo_nlvr2": "statements",
    "m3ae_tiny_vqa": "questions",
}


def short(config: Config, out: Path) -> Config:
    """The recipe with two steps of a few rows."""
    train = replace(
        config.train,
        steps=2,
        batch_size=4,
        log_every=1,
        val_every=2,
        save_every=2,
        device="cpu",
        threads=1,
    )
    task = (
        replace(config.task, ranking_candidates=4)
        if getattr(config.task, "ranking_candidates", 0)
        else config.task
    )
    return replace(
        config,
        out=out,
        task=task,
        data=replace(config.data, val_samples=4, num_workers=0),
        train=train,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of the runs, with a tokenizer of few captions."""
    folder = tmp_path_factory.mktemp("systems")
    scenes = ScenePairs(split="train", image_size=32)
    captions = [caption for row in range(200) for caption in scenes[row].captions]
    (folder / "tokenizer.json").write_text(Tokenizer.train(captions, 400).to_json())
    return folder


def made(folder: Path, name: str) -> Path:
    """Train a recipe, and what it starts from, unless that was done."""
    if not (folder / name).exists():
        if name in STARTS:
            config = get_finetune_recipe(
                name, replace(get_recipe(STARTS[name]), out=made(folder, STARTS[name]))
            )
            if not all(map(generated, config.data.train)):
                config = replace(
                    config, data=replace(config.data, train=("scenes:train",), val=("scenes:val",))
                )
        else:
            tokenizer = replace(get_recipe(name).tokenizer, path=folder / "tokenizer.json")
            config = replace(get_recipe(name), tokenizer=tokenizer)
        trained(short(config, folder / name))
    return folder / name


@pytest.fixture(scope="module", params=CLASS)
def run(request, folder: Path) -> Path:
    return made(folder, request.param)


def test_it_has_a_page(run: Path):
    page = Page(run / "report.html")
    assert_self_contained(run / "report.html")
    assert SHOWN.get(run.name, "Matching loss") in page.text
    assert {"numbers", "curves", "config"} <= {*page.ids}
    assert (NO_MEDICINE in page.text) == run.name.startswith(("m3ae", "medflip"))
    assert sum(inspect_run(run).parameters.values()) > 0


@pytest.mark.parametrize(
    ("source", "says"),
    [("phantoms", True), ("phantoms:test", True), ("phantoms/", False), ("scenes", False)],
)
def test_which_pages_say_that_phantoms_are_no_medicine(source: str, says: bool):
    assert source_note(["scenes:val", source]) == (NO_MEDICINE if says else "")


def test_features_of_the_hub_are_those_of_eve(run: Path):
    eve = Eve.load(run, device="cpu")
    model, processor = hf.from_run(run)
    assert type(model).__name__ == CLASS[run.name]
    source_images = [noise(seed, 48, 48) for seed in range(3)]
    inputs = processor(images=source_images, text=[*TEXTS])
    with torch.no_grad():
        images: Any = model.get_image_features(inputs["pixel_values"]).pooler_output
        texts: Any = model.get_text_features(
            inputs["input_ids"], inputs["attention_mask"]
        ).pooler_output
    np.testing.assert_allclose(images, eve.encode_image(source_images), atol=1e-5)
    np.testing.assert_allclose(texts, eve.encode_text([*TEXTS]), atol=1e-5)
    is_contrast = (
        isinstance(eve.run.config.task, ContrastMatchConfig) and eve.run.config.task.itc_weight > 0
    )
    assert eve.task.is_comparable == is_contrast
