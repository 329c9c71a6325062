"""Opening the sources of a run by their names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eve_vl.config import DataConfig
from eve_vl.data.kinds.texts import TextOnly
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.predict.inputs import is_source
from eve_vl.search.sources import source_name
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.utils.errors import UserError
from helpers.tiny_config import tiny_config


def opened(spec: str | Path, kind: str = "captions", **options: Any) -> Any:
    (source,) = open_sources([str(spec)], DataConfig(), 16, kind, **options)
    return source


def test_generated_data_have_the_size_split_and_kind_that_are_asked_for():
    train = opened("scenes")
    val = opened("scenes:val")
    assert len(train) > len(val) > 0
    assert train[0].image.pixels.shape == (16, 16, 3)
    assert type(opened("scenes:val", "auto")) is type(val)
    message = r"^scenes:val: the generated scenes hold no recipes, but .*captions, .*questions"
    with pytest.raises(UserError, match=message):
        opened("scenes:val", "recipes")

    # every kind has the same images and texts
    for kind in ("images", "labels"):
        (image,) = opened("scenes:val", kind)[3].images
        np.testing.assert_array_equal(image.pixels, val[3].image.pixels)
    text = opened("scenes:val", "texts")[3]
    assert text == TextOnly(text=val[3].captions[0], where="scenes:val[3]")
    labels = opened("scenes:val", "labels")[3].labels
    assert sorted(labels) == sorted({shape.kind for shape in sample_scene("val", 0, 3).shapes})


def test_options_of_reading_reach_the_reader(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/0.png").touch()
    table = tmp_path / "rows.txt"
    table.write_text("picture,words,caption\n0.png,a circle,wrong\n")
    config = tiny_config(
        data={
            "train": (str(table),),
            "val": (str(table),),
            "format": "csv",
            "image_root": tmp_path / "here",
            "image_column": "picture",
            "text_column": "words",
        }
    )
    train: Any
    val: Any
    (train,), (val,) = open_train_and_val(config)
    assert train[0].captions == val[0].captions == ("a circle",)
    assert train[0].image.path == tmp_path / "here/0.png"


def test_a_source_without_a_usable_row_opens_only_on_demand(tmp_path):
    table = tmp_path / "rows.jsonl"
    table.write_text('{"image": "gone.png", "caption": "x"}\n')
    with pytest.raises(UserError, match="none of the first 1 rows can be used"):
        opened(table)
    assert len(opened(table, must_be_usable=False)) == 1


def test_a_path_named_like_built_in_data_is_refused_until_it_is_clear(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scenes", "phantoms"):
        (tmp_path / name).mkdir()
    for number in range(3):
        (tmp_path / f"scenes/{number}.png").touch()
        (tmp_path / f"scenes/{number}.txt").write_text(f"number {number}")
    for name in ("scenes", "phantoms"):
        message = f"^{name}: is both a path and built-in data; write ./{name} for the path"
        with pytest.raises(UserError, match=message):
            opened(name)
    assert len(opened("./scenes")) == 3
    assert len(opened("scenes:train")) == 100_000
    for read in (source_name, is_source):  # for eve index and eve features
        with pytest.raises(UserError, match=r"^scenes: is both a path and built-in data"):
            read("scenes")
        assert read("./scenes")
