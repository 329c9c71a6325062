"""The story: one page about a folder of runs, whatever of them is there."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from report_page import Page, assert_self_contained, tiny

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.recipes import get_finetune_recipe
from eve_vl.report.demo import TASKS, results_section, write_story
from eve_vl.report.templating import percent
from eve_vl.run.loading import load_run
from eve_vl.run.training import train
from eve_vl.synthetic.scenes import ScenePairs, SceneQuestions
from eve_vl.utils.errors import UserError

ALL = ["results", "learning", "pretrain", "images", "captions", "vqa", "nlvr2", "retrieval", "routing", "commands"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("story") / "demo"
    out.mkdir()
    words = [caption for row in range(60) for caption in ScenePairs(split="train", image_size=32)[row].captions]
    words += [SceneQuestions(split="train")[row].question for row in range(60)]
    (out / "tokenizer.json").write_text(Tokenizer.train(words, 400).to_json())
    train(tiny(out / "pretrain", out / "tokenizer.json", steps=2))
    init = load_run(out / "pretrain").config
    for task in TASKS:
        for arm in ("", "_scratch"):
            config = get_finetune_recipe(f"scenes_{task}", init)
            config = replace(
                config,
                out=out / (task + arm),
                init=out / "pretrain",
                scratch=bool(arm),
                data=replace(config.data, val_samples=16, num_workers=0),
                train=replace(config.train, steps=2, batch_size=8, val_every=1, save_every=2, threads=1),
            )
            train(config)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / '<script>&"copy'))


def numbers() -> dict[str, float]:
    found = {"mlm_acc": 0.91, "mlm_acc_wrong_image": 0.4, "mlm_acc_unigram": 0.1}
    found |= {"mim_mse": 0.1, "mim_mse_wrong_caption": 0.2, "mim_mse_mean_baseline": 0.3, "mim_mse_image_mean": 0.4}
    for number, key in enumerate(("vqa_acc", "nlvr2_acc", "retrieval_tr1", "retrieval_ir1")):
        for suffix, less in (("", 0.0), ("_novel", 0.041)):
            found[key + suffix] = 0.93 - 0.031 * number - less
            found[f"{key}_scratch{suffix}"] = 0.52 - 0.047 * number + less / 3
    return found | {"vqa_acc_blind": 0.351, "vqa_acc_blind_novel": 0.333}


def test_whole_story(folder: Path, tmp_path: Path):
    (folder / "metrics.json").write_text(json.dumps(numbers()))
    assert write_story(folder) == folder / "report.html"
    assert_self_contained(folder / "report.html")
    page = Page(folder / "report.html")
    assert page.ids == ALL
    assert (folder / "report.html").stat().st_size < 3e6
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == [f"#{name}" for name in ALL]
    values = numbers()
    tables = re.findall(r'<table class="numbers">.*?</table>', (folder / "report.html").read_text(), re.DOTALL)
    assert len(tables) == 2
    for table, suffix in zip(tables, ("", "_novel"), strict=True):
        rows = [re.findall(r"<td>(?:<b>)?(.*?)(?:</b>)?</td>", row) for row in re.findall(r"<tr>.*?</tr>", table)[1:]]
        keys = ("vqa_acc", "nlvr2_acc", "retrieval_tr1", "retrieval_ir1")
        blind = (percent(values[f"vqa_acc_blind{suffix}"]), "50.0 %", "–", "–")
        assert len(rows) == len(keys)
        for row, key, guess in zip(rows, keys, blind, strict=True):
            ours, scratch = values[key + suffix], values[f"{key}_scratch{suffix}"]
            assert row == [percent(ours), percent(scratch), f"{100 * (ours - scratch):+.1f}", guess]
    for name in ("mlm_acc", "mlm_acc_wrong_image"):
        assert f"{name}{percent(values[name])}" in page.text
    for task in TASKS:
        log = [json.loads(line) for line in (folder / f"{task}_scratch/log.jsonl").read_text().splitlines()]
        last = [row for row in log if row["kind"] == "val"][-1]
        key, way = {"vqa": ("vqa_acc", ""), "nlvr2": ("nlvr2_acc", ""), "retrieval": ("tr1", "→ caption, ")}[task]
        assert f"{way}from scratch {percent(last[key])}" in page.text
        assert f"eve finetune scenes_{task} --init {folder / 'pretrain'}" in page.text
        assert any(alt.startswith(f"{task} ") and ": heat" in alt for alt in page.images)
    assert any(alt.endswith(": rebuilt") for alt in page.images)
    assert page.text.count("Experts by modality, block 2") == 4
    assert "Left out" not in page.text
    assert write_story(folder, tmp_path / "new/page.html").read_text() == (folder / "report.html").read_text()


def test_chance_of_search_where_sizes_are_known():
    values = numbers() | {"retrieval_tr1_chance": 2 / 50}
    html = results_section(values).body
    assert f"<title>→ caption, blind or chance: {percent(2 / 50)}" in html
    assert "<title>→ image, blind or chance" not in html


def test_missing_runs(copy: Path):
    shutil.rmtree(copy / "nlvr2")
    shutil.rmtree(copy / "vqa_scratch")
    (copy / "metrics.json").write_text(json.dumps({"vqa_acc": 0.9}))
    page = Page(write_story(copy))
    assert page.ids == ALL
    assert f"Left out: {copy / 'nlvr2'}: no such run folder." in page.text
    assert "Left out, for there is no such run: vqa_scratch, nlvr2." in page.text
    assert "90.0 %–––" in page.text
    assert "There are no numbers of this split." in page.text
    assert any(alt.startswith("vqa ") for alt in page.images)
    assert not any(alt.startswith("nlvr2 ") for alt in page.images)

    shutil.rmtree(copy / "pretrain")
    (copy / "metrics.json").unlink()
    page = Page(write_story(copy))
    assert page.ids == [name for name in ALL if name not in ("images", "captions")]
    assert f"Left out: {copy / 'pretrain'}: no such run folder." in page.text


def test_nothing_to_tell(tmp_path: Path, copy: Path):
    with pytest.raises(UserError, match="holds none of the runs pretrain, vqa"):
        write_story(tmp_path / "nothing")
    (copy / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        write_story(copy)
