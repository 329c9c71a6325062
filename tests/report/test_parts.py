"""Small parts of reports: command line, captions from tokens, numbers, charts."""

import itertools
import json
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from eve_vl.cli.train import run_pretrain
from eve_vl.config import Config, TaskConfig, to_dict
from eve_vl.config.json_form import from_dict
from eve_vl.config.kinds import all_kinds
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.pages import charts, rendering
from eve_vl.pages.number_formats import interval, number, percent, points
from eve_vl.pages.numbers import Card, NumberGroup, draw_numbers
from eve_vl.pages.rendering import draw
from eve_vl.recipes.registry import get_recipe
from eve_vl.report.config_section import command_line
from eve_vl.report.page import task_report, write_report
from eve_vl.tasks.examples import Choice
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.masked_signal.caption_pieces import Piece, caption_pieces
from eve_vl.tasks.masked_signal.report import TEMPLATE, MaskedExample, MaskedToken
from eve_vl.tasks.report import TaskReport
from eve_vl.tasks.retrieval.report import chance_recall
from eve_vl.utils.console import pluralize
from helpers.report_page import Page, assert_self_contained
from helpers.tiny_runs import tiny_run, write_run


def test_command_makes_the_same_config(tmp_path: Path, monkeypatch):
    given: list[Config] = []
    monkeypatch.chdir(tmp_path)
    Path("a b.jsonl").touch()
    monkeypatch.setattr("eve_vl.run.training.train", lambda config, **_: given.append(config))
    config = get_recipe("tiny")
    changed = replace(
        config,
        out=tmp_path / "with space",
        model=replace(config.model, modality_routing=False, mlp_ratio=3.5, shallow_ffn="shared"),
        task=replace(config.task, normalize_targets=True),
        data=replace(
            config.data,
            train=("a b.jsonl", "scenes:train"),
            train_weights=(1.0, 2.5),
            image_root=Path("x"),
            flip=True,
        ),
        train=replace(config.train, lr=3e-4, betas=(0.9, 0.95), schedule="linear"),
    )
    for each in (config, changed, get_recipe("base")):
        words = shlex.split(command_line(each))
        assert words[:3] == ["eve", "pretrain", each.recipe]
        run_pretrain(words[2:])
        assert given.pop() == each
    assert command_line(config) == "eve pretrain tiny"
    assert from_dict(Config, json.loads(json.dumps(to_dict(changed))), "here") == changed


def test_caption_pieces_read_as_the_caption():
    captions = ["a dog's café, in 東京 – at 3.5 km/h!", "naïve façade", "x"]
    tokenizer = Tokenizer.train([*captions, "a dog in a café"], 300)
    for caption in captions:
        ids, _ = tokenizer.encode(caption, 200)
        pieces = caption_pieces(tokenizer, ids.tolist(), [False] * len(ids))
        text = "".join(" " * piece.starts_word + piece.text for piece in pieces).strip()
        if caption.isascii():
            assert text == caption
        hidden = caption_pieces(tokenizer, ids.tolist(), [False] + [True] * (len(ids) - 1))
        assert len(hidden) == len(ids) - 1
        assert all(piece.is_masked and piece.text for piece in hidden)


def test_numbers():
    assert [
        number(value) for value in (0, 0.08388, 12.345, 1234.5, 480_000, 86.2e6, 5.58e-5, -0.5)
    ] == [
        *("0", "0.0839", "12.3", "1234", "480k", "86.2M", "5.58e-05", "-0.5"),
    ]
    assert (percent(0.44005), percent(float("nan"))) == ("44.0 %", "–")
    assert [points(value) for value in (0.5, -0.041, float("nan"))] == ["+50.0", "−4.1", "–"]
    assert [pluralize(count, "match", "matches") for count in (1, 3, 1.5, 12000, 1.0, 0)] == [
        *("1 match", "3 matches", "1.5 matches", "12,000 matches", "1 match", "0 matches"),
    ]
    assert [pluralize(count, "row") for count in (1, 2)] == ["1 row", "2 rows"]
    small, large = (
        draw("macros.html", "image", pixels=np.zeros((side, side, 3), np.uint8), alt="an image")
        for side in (48, 224)
    )
    assert 'class="pixelated"' in small
    assert "pixelated" not in large


def test_templates_escape_what_they_are_given():
    evil = """<script>alert("1")</script> & 'x' {{ 1 + 1 }}"""
    choice = Choice(text=evil, probability=0.5, is_right=True)
    token = MaskedToken(
        truth=evil, guesses=[choice], wrong_image=choice, truth_probability=(0.5, 0.25)
    )
    shown = {evil: np.zeros((2, 2, 3), np.uint8)}
    pieces = (
        Piece(text=evil, starts_word=True, is_masked=True),
        Piece(text=evil, starts_word=True, is_masked=False),
    )
    seen = {"images": shown, "seen_by_text": shown, "with_wrong_caption": {}}
    pair = MaskedExample(
        where=evil, text=evil, wrong_caption=evil, pieces=pieces, masked_tokens=(token,), **seen
    )  # pyright: ignore
    settings = SimpleNamespace(
        mim_weight=1, mlm_weight=1, joint_masking=True, normalize_targets=True
    )
    settings.image_mask_ratio = settings.text_mask_ratio = 0.5
    for macro, count in (("images", 6), ("captions", 8)):
        drawn = draw(TEMPLATE, macro, examples=[pair], settings=settings, modality="image_text")
        assert "<script" not in drawn
        assert drawn.unescape().count(evil) == count
    bars = charts.bar_chart(
        evil,
        [evil],
        [charts.Bars(evil, [0.5])],
        level=charts.Level(evil, 0.2),
        show=percent,
        axis=evil,
    )
    line = charts.line_chart(evil, [charts.Series(name=evil, points=[(1, 0.5)])], note=evil)
    for chart in (bars, line):
        assert "<script" not in chart
        assert "&lt;script&gt;" in chart


def test_templates_refuse_values_that_are_not_there():
    with pytest.raises(UndefinedError, match="values"):
        draw("numbers.html", "table")


def test_an_installed_package_holds_the_templates():
    """All files besides code are named in pyproject.toml, and are those that the pages are made
    with."""
    root = Path(rendering.__file__).parents[2]
    globs = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    named = {
        path
        for package, each in globs.items()
        for glob in each
        for path in (root / package.replace(".", "/")).glob(glob)
    }
    others = {
        path
        for path in (root / "eve_vl").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others == named


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
    assert np.mean([y for _, y in thinned]) == pytest.approx(
        np.mean([y for _, y in points[:-1]]), rel=0.01
    )
    assert charts.thin(points[:5]) == points[:5]
    reference = charts.Series(name="b", points=[(0, 1), (5, 1)], is_reference=True)
    assert (
        charts.line_chart("x", [charts.Series(name="a", points=[(1, float("inf"))]), reference])
        == ""
    )


def test_a_single_point_is_seen():
    """A line of one point draws nothing: its dot is larger than those on lines, of something to
    compare with too."""
    lines = [
        charts.Series(name="a", points=[(5, 0.5)]),
        charts.Series(name="b", points=[(5, 0.4)], is_reference=True),
        charts.Series(name="c", points=[(1, 0.3), (5, 0.2)]),
    ]
    radii = re.findall(r'<circle class="([^"]*)"[^>]* r="([\d.]+)"', charts.line_chart("x", lines))
    assert [style for style, _ in radii] == ["c0", "ref ref0", "c1", "c1"]
    assert [float(radius) for _, radius in radii[:2]] == [5, 5]
    assert all(float(radius) < 4 for _, radius in radii[2:])


def test_a_chart_of_single_points_is_its_values():
    """Dots in an empty frame would say less."""
    lines = [
        charts.Series(name="a", points=[(20, 0.5)]),
        charts.Series(name="b", points=[(20, 0.25)]),
        charts.Series(name="c", points=[(0, 1), (20, 1)], is_reference=True),
    ]
    chart = charts.line_chart("x", lines, show=percent)
    assert "<svg" not in chart and "One point so far, at 20 steps." in chart
    for axis, place, said in (
        ("pairs", 1280, "1,280 pairs"),
        ("minutes", 0.08794, "0.0879 minutes"),
        ("step", 1, "1 step"),
    ):
        line = charts.Series(name="a", points=[(place, 1.0)])
        assert f"One point so far, at {said}." in charts.line_chart("x", [line], axis=axis)
    assert re.findall(r"<dt>(\w)</dt><dd>([\d.]+) %</dd>", chart) == [
        ("a", "50.0"),
        ("b", "25.0"),
        ("c", "100.0"),
    ]


def test_a_spread_is_an_upright_stroke_within_the_frame():
    line = charts.Series(
        name="a", points=[(1, 0.4), (2, 0.5)], spread=[(1, 0.2, 0.9), (2, 0.5, 0.5)]
    )
    chart = charts.line_chart("x", [line], show=percent)
    strokes = re.findall(
        r'<line class="c0" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"/>',
        chart.split("legend")[0],
    )
    dots = re.findall(r'<circle class="c0" cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert [stroke[:2] for stroke in strokes] == [(x, x) for x, _ in dots]
    (low, high), level = ([float(y) for y in stroke[2:]] for stroke in strokes)
    assert charts.Frame.bottom >= low > float(dots[0][1]) > high >= charts.Frame.top
    assert [*level] == [float(dots[1][1])] * 2


def test_numbers_that_know_how_sure_they_are():
    estimate = MeasuredValue(0.5, n=1200, low=0.47, high=0.53, method="wilson")
    card = draw_numbers([NumberGroup("", [Card("acc", estimate, "")])])
    assert "<strong>50.0 %</strong>" in card and "<small>47.0 % to 53.0 %, n 1,200</small>" in card
    assert "<small>" not in draw_numbers([NumberGroup("", [Card("acc", 0.5, "")])])
    rows = [{"kind": "val", "step": 1, "acc": estimate, "text": "unknown"}]
    run = SimpleNamespace(
        config=SimpleNamespace(data=SimpleNamespace(val_samples=9)), step=1, task=None
    )
    values = TaskReport(run, evaluated).measured(rows).values  # pyright: ignore[reportArgumentType]
    assert isinstance(values["acc"], MeasuredValue) and set(values) == {"acc"}
    assert interval(values["acc"], percent) == "47.0 % to 53.0 %, n 1,200"


def test_names_of_bars_do_not_run_into_each_other():
    """At 0.6 of its height per letter, each name fits between its neighbours, or the chart leaves
    some out."""
    for labels in (
        ["attribute", "comparison", "count", "existence", "relation"],
        [str(expert) for expert in range(64)],
    ):
        chart = charts.bar_chart(
            "x", labels, [charts.Bars("a", [0.5] * len(labels))], show=percent, axis=""
        )
        texts = re.findall(
            r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle"(?: style="font-size:([\d.]+)px")?>(\w+)<',
            chart,
        )
        spans = [(float(x), len(label) * 0.6 * float(size or 12) / 2) for x, size, label in texts]
        assert all(x + half < y - other for (x, half), (y, other) in itertools.pairwise(spans))
        assert {label for _, _, label in texts} == set(labels) or len(labels) > 20


def test_chance_is_that_of_drawing_without_replacement():
    """All orders of the candidates, pluralize; and 18 images with one match each: 10 of 18."""
    assert chance_recall(10, 18, [1] * 18) == pytest.approx(10 / 18)
    matches, num = (1, 3, 2, 6), 6
    for k in (1, 2, 5, 10):
        hits = [
            any(candidate < m for candidate in order[:k])
            for m in matches
            for order in itertools.permutations(range(num))
        ]
        assert chance_recall(k, num, matches) == pytest.approx(sum(hits) / len(hits))


def run_of(section: type[TaskConfig]) -> Any:
    """A run of a task, of which only the section is known."""
    data = SimpleNamespace(modality="image_text")
    config = SimpleNamespace(task=object.__new__(section), data=data)
    return SimpleNamespace(config=config, task=None)


def test_a_tasks_report_is_found_by_its_name():
    for name, section in all_kinds(TaskConfig, "tasks").items():
        report = type(task_report(run_of(section)))
        if section.has_numbers:
            assert report is not TaskReport
            assert report.name == name
        else:
            assert report is TaskReport


def test_own_task_has_its_report_or_the_general_one():
    class OwnSection(TaskConfig):
        name = "own"
        title = "a task with a report"

    class OwnReport(TaskReport):
        name = "own"

    class SectionWithoutReport(TaskConfig):
        name = "nothing"
        title = "a task without a report"

    assert type(task_report(run_of(OwnSection))) is OwnReport
    assert type(task_report(run_of(SectionWithoutReport))) is TaskReport


def test_what_all_pages_share_names_no_task():
    sections = [
        section for section in all_kinds(TaskConfig, "tasks").values() if section.has_numbers
    ]
    names = [name for section in sections for name in (section.__name__, f'"{section.name}"')]
    package = Path(rendering.__file__).parents[1]
    shared = [
        *package.glob("pages/*.py"),
        *package.glob("report/*.py"),
        package / "tasks/report.py",
    ]
    for path in shared:
        text = path.read_text()
        assert [name for name in names if name in text] == [], path


def test_an_encoder_without_numbers(tmp_path: Path):
    run = tiny_run("masked", task=HeadlessConfig())
    write_run(run, tmp_path / "mine/checkpoints/step_00000001")
    page = Page(write_report(tmp_path / "mine"))
    assert_self_contained(tmp_path / "mine/report.html")
    assert page.ids == ["config"]
    assert "has no numbers and no examples" in page.text
    assert "an encoder without headsminerecipe" in page.text
