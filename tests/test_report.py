"""The report: one self-contained, well-formed file that shows what the model really does."""

import base64
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.cli import PretrainArgs, _parse
from eve_vl.config import Config, from_dict, to_dict
from eve_vl.data.batch import PairBatch
from eve_vl.data.loader import eval_loader, open_sources
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.errors import UserError
from eve_vl.model.embed import patchify
from eve_vl.model.moe import Router
from eve_vl.recipes import get_recipe
from eve_vl.report import charts, evidence, write_report
from eve_vl.report.markup import number, percent, picture, scientific
from eve_vl.report.sections import command_line
from eve_vl.run import LoadedRun, load_run, pretrain

VOID = {"meta", "img", "br"}
SVG_EMPTY = {"line", "polyline", "circle"}  # written with a closing slash


class Page(HTMLParser):
    """A strict reader: every element is closed in order; collects what the tests look at."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.pictures: dict[str, np.ndarray] = {}
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
            kind, _, data = (values["src"] or "").partition(",")
            assert kind == "data:image/png;base64"
            assert values["alt"] not in self.pictures
            self.pictures[values["alt"] or ""] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag not in VOID:
            self.open.append(tag)

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


def tiny(out: Path, *, steps: int = 1, model: dict | None = None, task: dict | None = None, data: dict | None = None) -> Config:
    config = get_recipe("tiny")
    return replace(
        config,
        out=out,
        model=replace(config.model, **(model or {})),
        task=replace(config.task, **(task or {})),
        data=replace(config.data, **{"val_samples": 16, **(data or {})}),
        train=replace(config.train, steps=steps, threads=1, log_every=1, val_every=2, save_every=2),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    assert pretrain(tiny(out, steps=4)) == out / "report.html"
    return out


@pytest.fixture(scope="module")
def normalised(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "normalised"
    pretrain(tiny(out, steps=2, task={"normalize_targets": True}))
    return out


def one_batch(run: LoadedRun, num_samples: int) -> PairBatch:
    config = replace(run.config, data=replace(run.config.data, val_samples=num_samples))
    sources = open_sources(config.data.val, config.data, config.model.image_size)
    (batch,) = eval_loader(sources, config, run.tokenizer, batch_size=num_samples, rank=0, world=1)
    return batch


def test_one_self_contained_file(run: Path):
    html = (run / "report.html").read_text()
    page = Page(run / "report.html")
    assert not {"script", "link", "iframe", "object", "image", "use"} & page.tags
    assert not re.search(r"https?:|url\(|@import|xmlns", html)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("srcset", "data", "xlink:href", "action")
        assert name != "src" or value.startswith("data:")
        assert name != "href" or value[1:] in page.ids
    assert page.ids == ["numbers", "curves", "pictures", "captions", "routing", "config"]
    assert len(page.pictures) == 8 * 6
    assert len(html) < 400_000


def test_path_of_the_file(run: Path, tmp_path: Path):
    out = tmp_path / "new/folder/page.html"
    assert write_report(run, out) == out
    assert out.read_text() == (run / "report.html").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nothing")


def test_header_numbers_and_curves(run: Path):
    page, loaded = Page(run / "report.html"), load_run(run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert "4 of 4" in page.text
    assert "unfinished" not in page.text
    assert number(sum(parameter.numel() for parameter in loaded.task.parameters())) in page.text
    for name, value in metrics.items():
        if name != "mlm_loss":
            assert f"{name}{percent(value) if 'acc' in name else number(value)}" in page.text
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-2])
    assert last["kind"] == "train"
    for title in ("Masked-token loss", "Masked-pixel loss", "Balance loss", "Learning rate", "Entropy of the gate"):
        assert title in page.text
    assert f"mlm, training {number(last['mlm'])}" in page.text
    assert f"step 4 mlm, training: {number(last['mlm'])} mlm_loss, validation: {number(metrics['mlm_loss'])}" in page.text
    assert f"block 3 {number(last['max_load/1'])}even load, 1/E 0.25" in page.text
    assert f"uniform gate, ln E {number(np.log(4))}" in page.text


@torch.inference_mode()
def test_pictures_are_what_the_model_makes(run: Path, normalised: Path):
    for folder in (run, normalised):
        page, loaded = Page(folder / "report.html"), load_run(folder)
        side, size = 4, loaded.config.model.patch_size
        batch = one_batch(loaded, 8)
        assert batch.wrong is not None
        for row, where in enumerate(batch.where):
            one = PairBatch(
                **{name: getattr(batch, name)[row : row + 1] for name in batch.__slots__ if name[-1] in "TKMW"}, where=()
            )
            true = batch.images_BCHW[row].permute(1, 2, 0).numpy()
            hidden = {(patch // side, patch % side): index for index, patch in enumerate(batch.hidden_BM[row].tolist())}
            wrong_one = one.with_text_of(
                PairBatch(
                    **{name: getattr(batch.wrong, name)[row : row + 1] for name in batch.__slots__ if name[-1] in "TKMW"},
                    where=(),
                )
            )
            for name, pair in (("rebuilt", one), ("wrong caption", wrong_one)):
                encoded = loaded.task.encode(patchify(one.pixels(), size), pair, keep=True)
                predicted = loaded.task.predict_pixels(encoded, pair)[0].reshape(-1, 3, size, size).permute(0, 2, 3, 1).numpy()
                expected, grey = true.copy(), true.copy()
                for (y, x), index in hidden.items():
                    place = np.s_[y * size : (y + 1) * size, x * size : (x + 1) * size]
                    patch = predicted[index]
                    if loaded.config.task.normalize_targets:
                        values = true[place] / 127.5 - 1
                        patch = patch * np.sqrt(values.var(ddof=1) + 1e-6) + values.mean()
                    expected[place] = np.rint(np.clip((patch + 1) * 127.5, 0, 255))
                    grey[place] = 128
                shown = page.pictures[f"{where}: {name}"]
                assert np.abs(shown.astype(int) - expected).max() <= 1
                assert (shown == true).all(2).sum() >= (16 - len(hidden)) * size**2
            assert (page.pictures[f"{where}: masked"] == grey).all()
            for name in ("original", "picture"):
                assert (page.pictures[f"{where}: {name}"] == true).all()
            assert (page.pictures[f"{where}: wrong picture"] == batch.wrong.images_BCHW[row].permute(1, 2, 0).numpy()).all()
    assert "true mean and deviation" in Page(normalised / "report.html").text


@torch.inference_mode()
def test_guesses_are_what_the_model_says(run: Path):
    page, loaded = Page(run / "report.html"), load_run(run)
    batch = one_batch(loaded, 8)
    assert batch.wrong is not None
    pairs = evidence.gather(loaded, num_routed=8).pairs
    for row, pair in enumerate(pairs):
        length = int((~batch.is_padding_BT[row]).sum())
        ids, masked = batch.ids_BT[row : row + 1, :length], batch.is_masked_BT[row : row + 1, :length]
        nothing = torch.zeros(1, length, dtype=torch.bool)
        probabilities = []
        for images in (batch.images_BCHW, batch.wrong.images_BCHW):
            one = replace(batch, images_BCHW=images[row : row + 1], ids_BT=ids, is_padding_BT=nothing, is_masked_BT=masked)
            encoded = loaded.task.encode(patchify(one.pixels(), loaded.config.model.patch_size), one, mask=True)
            probabilities.append(loaded.task.token_head(encoded.x_BND[0, -length:][masked[0]]).softmax(-1))
        truths = ids[masked].tolist()
        assert len(pair.hidden) == len(truths)
        for token, truth, right, wrong in zip(pair.hidden, truths, *probabilities, strict=True):
            order = right.argsort(descending=True)[:5].tolist()
            assert token.truth == loaded.tokenizer.word(truth)
            assert [guess.text for guess in token.guesses] == [loaded.tokenizer.word(index) for index in order]
            assert [guess.is_right for guess in token.guesses] == [index == truth for index in order]
            assert [guess.probability for guess in token.guesses] == pytest.approx(right[order].tolist(), abs=1e-4)
            assert token.wrong_picture[0].text == loaded.tokenizer.word(int(wrong.argmax()))
            assert token.truth_probability_wrong_picture == pytest.approx(wrong[truth].item(), abs=1e-4)
            guessed = "".join(f"{guess.text}{100 * guess.probability:.0f} %" for guess in token.guesses)
            assert f"{token.truth} {'✓' if order[0] == truth else '✗'}{guessed}wrong picture" in page.text


@torch.inference_mode()
def test_routing_shares(run: Path):
    loaded = load_run(run)
    seen: dict[Router, np.ndarray] = {}

    def count(router, inputs, _output):
        x_SD, is_text_S = inputs
        for x, is_text in zip(x_SD, is_text_S.tolist(), strict=True):
            logits = router.weight @ (x + router.modality_embed[int(is_text)])
            for expert in logits.argsort(descending=True)[:2].tolist():
                seen.setdefault(router, np.zeros((2, 4)))[int(is_text), expert] += 1

    for module in loaded.task.modules():
        if isinstance(module, Router):
            module.register_forward_hook(count)
    batch = one_batch(loaded, 12)
    patches = patchify(batch.pixels(), loaded.config.model.patch_size)
    loaded.task.encode(patches, batch, keep=True)
    loaded.task.encode(patches, batch, mask=True)
    expected = [counts / counts.sum(1, keepdims=True) for counts in seen.values()]
    found = evidence.gather(load_run(run), num_routed=12).shares_ME
    assert len(found) == len(expected) == 2
    for shares_ME, counts in zip(found, expected, strict=True):
        assert shares_ME.sum(1).tolist() == pytest.approx([1, 1])
        assert shares_ME.numpy() == pytest.approx(counts, abs=2e-3)  # a token on the brink may tip over
    page = Page(run / "report.html")
    whole = evidence.gather(load_run(run)).shares_ME[1]
    assert f"expert 3, text tokens: {percent(whole[1, 3].item())}" in page.text
    assert "Experts by modality, block 2 of 3" in page.text
    assert "Experts by modality, block 3 of 3" in page.text


def test_data_cannot_break_the_page(tmp_path: Path):
    evil = "<script>alert(1)</script> & \"double\" 'single' </p></style> ünï 日本 {x} %s"
    rows = []
    folder = tmp_path / "<b>&\"'"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (40, 40), (40 * index, 90, 200)).save(folder / f"<i>{index}.png")
        rows.append({"image": f"<i>{index}.png", "caption": f"{evil} number {index}"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = (str(folder / "pairs.jsonl"),)
    config = tiny(tmp_path / "<u>run", data={"train": source, "val": source})
    report = pretrain(replace(config, recipe="<em>mine"))
    assert report is not None
    page = Page(report)
    assert not {"script", "i", "u", "em"} & page.tags
    assert "<script>" in page.text
    assert "\"double\" 'single' </p></style> ünï 日本 {x} %s number 0" in page.text
    assert "No recipe is called <em>mine here" in page.text
    assert f"valscenes:val" not in page.text
    assert f"val{source[0]}" in page.text
    assert len(page.pictures) == 6 * 6


@pytest.mark.parametrize(
    ("part", "there", "missing"),
    [
        ({"task": {"mlm_weight": 0.0}}, ["Masked-pixel error", "rebuilt"], ["Masked-token loss", "mlm_acc", "truth"]),
        ({"task": {"mim_weight": 0.0}}, ["Masked-token accuracy", "truth"], ["Masked-pixel loss", "mim_mse", "rebuilt"]),
        ({"task": {"joint_masking": True}}, ["in one pass", "rebuilt", "truth", "masked picture"], ["complete picture"]),
        (
            {"model": {"deep_ffn": "shared"}},
            ["no moe block", "rebuilt", "truth"],
            ["Entropy", "Balance loss", "used per token"],
        ),
        ({"model": {"num_experts": 32, "top_k": 1}}, ["1 best of 32 experts", "expert 31, image tokens"], []),
        ({"data": {"val_samples": 3}}, ["rebuilt", "of 3 validation pairs"], []),
    ],
)
def test_parts_that_a_run_lacks(tmp_path: Path, part, there, missing):
    report = pretrain(tiny(tmp_path / "run", **part))
    assert report is not None
    page = Page(report)
    body = page.text.partition("Config")[0] + page.text.partition("Captions Routing")[2].partition("eve pretrain tiny")[0]
    assert [text for text in there if text not in page.text] == []
    assert [text for text in missing if text in page.text.partition("eve pretrain tiny")[0]] == []
    assert ("is 0)" in body) == (0.0 in part.get("task", {}).values())
    assert page.ids == ["numbers", "curves", "pictures", "captions", "routing", "config"]


def test_joint_masking_shows_what_the_model_saw(tmp_path: Path):
    report = pretrain(tiny(tmp_path / "run", task={"joint_masking": True}))
    assert report is not None
    pictures = Page(report).pictures
    originals = [alt for alt in pictures if alt.endswith(": original")]
    assert len(originals) == 8
    for alt in originals:
        where = alt.removesuffix(": original")
        assert (pictures[f"{where}: picture"] == pictures[f"{where}: masked"]).all()
        assert ((pictures[f"{where}: wrong picture"] == 128).all(2).sum()) >= 12 * 8**2


def test_unfinished_run_and_short_logs(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints/step_00000004")
    page = Page(write_report(copy))
    rows = (copy / "log.jsonl").read_text().splitlines()
    values = json.loads(next(row for row in rows if '"val"' in row))
    assert values["step"] == 2
    assert "2 of 4 unfinished" in page.text
    assert f"mlm_acc{percent(values['mlm_acc'])}" in page.text
    assert "checkpoint" in page.text.partition("Curves")[2]  # the mark in the charts

    (copy / "log.jsonl").write_text(rows[0] + "\n")  # one training row: measured now
    page = Page(write_report(copy))
    assert "Measured on at most 16 validation pairs, step 2" in page.text
    assert f"mlm_acc{percent(values['mlm_acc'])}" in page.text
    assert "Masked-token loss" in page.text
    assert "Masked-token accuracy" not in page.text

    (copy / "log.jsonl").unlink()
    page = Page(write_report(copy / "checkpoints/step_00000002", copy / "of_checkpoint.html"))
    assert "holds no log" in page.text
    assert f"mlm_acc{percent(values['mlm_acc'])}" in page.text


def test_data_out_of_reach(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "checkpoints/step_00000004/config.json"
    path.write_text(path.read_text().replace("scenes:val", "gone/<b>pairs.jsonl"))
    page = Page(write_report(copy))
    assert "The validation data cannot be read here" in page.text
    assert "gone/<b>pairs.jsonl" in page.text
    assert page.ids == ["curves", "config"]
    assert page.pictures == {}


def test_command_makes_the_same_config(tmp_path: Path):
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
        assert _parse(PretrainArgs, words[3:], "eve", default=PretrainArgs(config=get_recipe(each.recipe))).config == each
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
