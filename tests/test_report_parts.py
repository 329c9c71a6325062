"""The report's small parts: command line, captions from tokens, numbers, charts."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eve_vl.cli import VERBS
from eve_vl.config import Config, from_dict, to_dict
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.recipes import get_recipe
from eve_vl.report import charts, evidence
from eve_vl.report.markup import number, percent, picture, scientific
from eve_vl.report.run_config import command_line


def test_command_makes_the_same_config(tmp_path: Path, monkeypatch):
    given: list[Config] = []
    monkeypatch.setattr("eve_vl.run.train", lambda config, must_resume: given.append(config))
    config = get_recipe("demo")
    changed = replace(
        config,
        out=tmp_path / "with space",
        model=replace(config.model, modality_routing=False, mlp_ratio=3.5, deep_ffn="shared"),
        task=replace(config.task, normalize_targets=True),
        data=replace(
            config.data, train=("a b.jsonl", "scenes:train"), train_weights=(1.0, 2.5), image_root=Path("x"), flip=True
        ),
        train=replace(config.train, lr=3e-4, betas=(0.9, 0.95), schedule="linear"),
    )
    for each in (config, changed, get_recipe("base")):
        words = shlex.split(command_line(each))
        assert words[:3] == ["eve", "pretrain", each.recipe]
        VERBS["pretrain"](words[2:])
        assert given.pop() == each
    assert command_line(config) == "eve pretrain demo"
    assert from_dict(Config, json.loads(json.dumps(to_dict(changed))), "here") == changed


def test_caption_pieces_read_as_the_caption():
    captions = ["a dog's café, in 東京 – at 3.5 km/h!", "naïve façade", "x"]
    tokenizer = Tokenizer.train([*captions, "a dog in a café"], 300)
    for caption in captions:
        ids, _ = tokenizer.encode(caption, 200)
        pieces = evidence.caption_pieces(tokenizer, ids.tolist(), [False] * len(ids))
        text = "".join(" " * piece.starts_word + piece.text for piece in pieces).strip()
        if caption.isascii():
            assert text == caption
        hidden = evidence.caption_pieces(tokenizer, ids.tolist(), [False] + [True] * (len(ids) - 1))
        assert len(hidden) == len(ids) - 1
        assert all(piece.is_hidden and piece.text for piece in hidden)


def test_numbers():
    assert [number(value) for value in (0, 0.08388, 12.345, 1234.5, 480_000, 86.2e6, 5.58e-5, -0.5)] == [
        *("0", "0.0839", "12.3", "1234", "480k", "86.2M", "5.58×10⁻⁵", "-0.5"),
    ]
    assert [scientific(value) for value in (0, 1e-3, 5e-4, 20)] == ["0", "1×10⁻³", "5×10⁻⁴", "2×10¹"]
    assert percent(0.44005) == "44.0 %"
    assert 'class="pixelated"' in picture(np.zeros((48, 48, 3), np.uint8), "small")
    assert "pixelated" not in picture(np.zeros((224, 224, 3), np.uint8), "large")


def test_ticks_and_thinning():
    for low, high in ((0, 1), (0.0755, 0.0849), (-3, 1e6), (5, 5), (0, 0), (1e-9, 3e-9)):
        found = charts.ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert 3 <= len(found) <= 8
        assert found == sorted(set(found))
    points = [(float(x), float(x % 7)) for x in range(10_000)] + [(10_000.0, float("nan"))]
    thinned = charts.thin(points)
    assert len(thinned) <= charts.MAX_POINTS
    assert np.mean([y for _, y in thinned]) == pytest.approx(np.mean([y for _, y in points[:-1]]), rel=0.01)
    assert charts.thin(points[:5]) == points[:5]
    assert charts.line_chart("x", [charts.Series(name="a", points=[(1, float("inf"))]), charts.constant("b", 1, 5)]) == ""
    assert charts.line_chart("x", [charts.Series(name="a", points=[(1, 0.5)])]).count("<circle") == 1
