"""A strict reader of report pages, and tiny runs to report on."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.config import Config, TaskConfig
from eve_vl.data.image_refs import ImageDrawing, ImageRef
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.recipes import get_finetune_recipe
from eve_vl.recipes.registry import get_recipe
from eve_vl.report.page import write_report
from eve_vl.run.loading import load_run
from eve_vl.run.training import train
from eve_vl.synthetic.scenes.rows import ScenePairs, SceneQuestions
from helpers.tiny_config import changed_section

VOID = {"meta", "img", "br", "input"}
NUM_VAL = 36  # validation rows of fine-tuned runs
SVG_EMPTY = {"line", "polyline", "circle"}  # written with a closing slash


class Page(HTMLParser):
    """A strict reader: every element is closed in order; collects what the tests look at."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.images: dict[str, np.ndarray] = {}
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(path.read_text())
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert all(value is not None for _, value in attrs)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag == "img":
            self._read_image(values["alt"] or "", values["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def _read_image(self, name: str, source: str) -> None:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert name not in self.images
        file = io.BytesIO(base64.b64decode(data))
        self.images[name] = np.asarray(Image.open(file))

    def handle_startendtag(self, tag, attrs):
        if tag in SVG_EMPTY:
            self.handle_starttag(tag, attrs)
            self.open.pop()
        else:
            raise AssertionError(f"<{tag}/> is not HTML")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def assert_self_contained(path: Path) -> None:
    """Nothing on the page comes from elsewhere, runs, or points to what is not there."""
    html = path.read_text()
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "image", "use"} & page.tags
    assert not re.search(r"https?:|url\(|@import|xmlns", html)
    assert len(page.ids) == len(set(page.ids))
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("srcset", "data", "xlink:href", "action")
        assert name != "src" or value.startswith("data:")
        assert name != "href" or value[1:] in page.ids


def tiny(
    out: Path,
    tokenizer: Path | None,
    *,
    steps: int = 1,
    model: dict | None = None,
    task: dict | TaskConfig | None = None,
    data: dict | None = None,
) -> Config:
    """Return the tiny recipe with initial weights by which captions matter from the start."""
    config = get_recipe("tiny")
    model_fields: dict[str, Any] = {"init_std": 0.1, "layer_scale_init": 1.0} | (model or {})
    data_fields: dict[str, Any] = {"val_samples": 16} | (data or {})
    return replace(
        config,
        out=out,
        model=replace(config.model, **model_fields),
        task=changed_section(config.task, task),
        data=replace(config.data, **data_fields),
        tokenizer=replace(config.tokenizer, path=tokenizer),
        train=replace(
            config.train,
            steps=steps,
            threads=1,
            log_every=1,
            val_every=2,
            save_every=2,
        ),
    )


def trained(config: Config) -> Path:
    """Train a run and write its page, as the command line does; return the path of the page."""
    assert train(config)
    return write_report(config.out)


def train_small_tokenizer(path: Path) -> Path:
    """Write a tokenizer trained on few captions and questions: a run's own takes much longer."""
    scenes = ScenePairs(split="train", image_size=32)
    questions = SceneQuestions(split="train")
    texts = [questions[row].question for row in range(100)]
    for row in range(200):
        texts += scenes[row].captions
    path.write_text(Tokenizer.train(texts, 400).to_json())
    return path


def finetuned(
    pretrained: Path,
    task_name: str,
    out: Path,
    *,
    steps: int,
    task: dict | None = None,
    data: dict | None = None,
) -> Config:
    """Return the config of a small fine-tuning run."""
    config = get_finetune_recipe(f"scenes_{task_name}", load_run(pretrained).config)
    interval = max(1, steps // 2)
    return replace(
        config,
        out=out,
        init=pretrained,
        data=replace(
            config.data,
            **{
                "val_samples": NUM_VAL,
                "num_workers": 0,
                **(data or {}),
            },
        ),
        task=replace(config.task, **(task or {})),
        train=replace(
            config.train,
            steps=steps,
            batch_size=16,
            lr=2e-3,
            log_every=5,
            val_every=interval,
            save_every=interval,
            threads=1,
            dtype="float32",
        ),
    )


def drawn_pixels(image: ImageRef) -> np.ndarray:
    """Return the pixels of a generated image."""
    assert isinstance(image, ImageDrawing)
    return image.pixels
