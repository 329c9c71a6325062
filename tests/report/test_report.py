"""The report: one self-contained, well-formed file with the model's real outputs."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.data.loader import eval_loader
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.opening import open_sources
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.metrics.intervals import from_json
from eve_vl.model.router import Router
from eve_vl.pages.number_formats import number, percent
from eve_vl.report.page import write_report
from eve_vl.report.routing import routing_of
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.report import MaskedSignalReport
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.report import NUM_SEEN, TaskReport
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError
from helpers.report_page import Page, assert_self_contained, tiny, trained


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Trained on few captions: a run would use all of its training data, which takes longer than
    all of these tests."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    scenes = ScenePairs(split="train", image_size=32)
    captions = [caption for row in range(200) for caption in scenes[row].captions]
    path.write_text(Tokenizer.train(captions, 400).to_json())
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    assert trained(tiny(out, tokenizer, steps=4)) == out / "report.html"
    return out


@pytest.fixture(scope="module")
def normalised(tmp_path_factory, tokenizer) -> Path:
    out = tmp_path_factory.mktemp("report") / "normalised"
    trained(tiny(out, tokenizer, steps=2, task={"normalize_targets": True}))
    return out


@pytest.fixture(scope="module")
def page_with(tmp_path_factory, tokenizer) -> Callable[..., Path]:
    """The page of a run with a part changed, trained when it is asked for first."""
    pages: dict[str, Path] = {}

    def page(**part: Any) -> Path:
        if repr(part) not in pages:
            pages[repr(part)] = trained(
                tiny(tmp_path_factory.mktemp("part") / "run", tokenizer, **part)
            )
        return pages[repr(part)]

    return page


def task_of(run: LoadedRun) -> MaskedSignal:
    assert isinstance(run.task, MaskedSignal)
    return run.task


def one_batch(run: LoadedRun, num_samples: int) -> PairBatch:
    config = replace(run.config, data=replace(run.config.data, val_samples=num_samples))
    sources = open_sources(config.data.val, config.data, config.input.image_size)
    dataset = evaluator_of(run.task).dataset(sources, config, run.tokenizer)
    (batch,) = eval_loader(dataset, batch_size=num_samples, rank=0, world=1)
    return batch


def test_one_self_contained_file(run: Path):
    page = Page(run / "report.html")
    assert_self_contained(run / "report.html")
    assert page.ids == ["numbers", "curves", "images", "captions", "routing", "config"]
    assert len(page.images) == 8 * 6
    assert (run / "report.html").stat().st_size < 400_000


def test_path_of_the_file(run: Path, tmp_path: Path):
    out = tmp_path / "new/folder/page.html"
    assert write_report(run, out) == out
    assert out.read_text() == (run / "report.html").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nothing")


def test_header_numbers_and_curves(run: Path):
    page, loaded = Page(run / "report.html"), load_run(run)
    metrics = from_json(json.loads((run / "metrics.json").read_text()))
    assert "4 of 4" in page.text
    assert "unfinished" not in page.text
    assert number(sum(parameter.numel() for parameter in loaded.task.parameters())) in page.text
    for name, value in metrics.items():
        if name != "mlm_loss":
            assert f"{name}{percent(value) if 'acc' in name else number(value)}" in page.text
    last = [
        row
        for line in (run / "log.jsonl").read_text().splitlines()
        if (row := json.loads(line))["kind"] == "train"
    ][-1]
    for title in (
        "Masked-token loss",
        "Masked-pixel loss",
        "Balance loss",
        "Learning rate",
        "Entropy of the gate",
    ):
        assert title in page.text
    assert f"mlm, training {number(last['mlm'])}" in page.text
    assert (
        f"step 4 mlm, training: {number(last['mlm'])} mlm_loss, validation: {number(metrics['mlm_loss'])}"
        in page.text
    )
    assert f"block 3 {number(last['max_load/1'])}even load, 1/E 0.25" in page.text
    assert f"uniform gate, ln E {number(np.log(4))}" in page.text


def single(batch: PairBatch, row: int) -> PairBatch:
    """One pair as a batch of its own, without padding."""
    length = int((~batch.is_padding_BT[row]).sum())
    here = slice(row, row + 1)
    return PairBatch(
        images_BCHW=batch.images_BCHW[here],
        ids_BT=batch.ids_BT[here, :length],
        is_padding_BT=batch.is_padding_BT[here, :length],
        is_masked_BT=batch.is_masked_BT[here, :length],
        keep_BK=batch.keep_BK[here],
        hidden_BM=batch.hidden_BM[here],
        image_id_B=batch.image_id_B[here],
        caption_B=batch.caption_B[here],
        where=batch.where[here],
    )


def pixels_of(batch: PairBatch, row: int) -> np.ndarray:
    return batch.images_BCHW[row].permute(1, 2, 0).numpy()


@torch.inference_mode()
def painted(run: LoadedRun, pair: PairBatch) -> tuple[np.ndarray, np.ndarray]:
    """A slow twin: the masked and the reconstructed image, patch by patch with slices of the
    image."""
    size = run.config.input.patch_size
    side = run.config.input.image_size // size
    encoded = task_of(run).encode(pair, keep=True)
    predicted = (
        task_of(run)
        .predict_pixels(encoded, pair)[0]
        .reshape(-1, 3, size, size)
        .permute(0, 2, 3, 1)
        .numpy()
    )
    true = pixels_of(pair, 0)
    masked, reconstructed = true.copy(), true.copy()
    for patch, values in zip(pair.hidden_BM[0].tolist(), predicted, strict=True):
        y, x = patch // side * size, patch % side * size
        place = np.s_[y : y + size, x : x + size]
        if task_of(run).settings.normalize_targets:
            inside = true[place] / 127.5 - 1
            pixels = values * np.sqrt(inside.var(ddof=1) + 1e-6) + inside.mean()
        else:
            pixels = values
        masked[place] = 128
        reconstructed[place] = np.rint(np.clip((pixels + 1) * 127.5, 0, 255))
    return masked, reconstructed


def test_images_are_what_the_model_makes(run: Path, normalised: Path):
    for folder in (run, normalised):
        page, loaded, differences = Page(folder / "report.html"), load_run(folder), []
        batch = one_batch(loaded, 8)
        assert batch.wrong is not None
        for row, where in enumerate(batch.where):
            pair, shown = single(batch, row), page.images
            masked, reconstructed = painted(loaded, pair)
            _, reconstructed_wrong = painted(loaded, pair.with_text_of(single(batch.wrong, row)))
            assert (shown[f"{where}: original"] == pixels_of(batch, row)).all()
            assert (shown[f"{where}: image"] == pixels_of(batch, row)).all()
            assert (shown[f"{where}: wrong image"] == pixels_of(batch.wrong, row)).all()
            assert (shown[f"{where}: masked"] == masked).all()
            for name, expected in (
                ("reconstructed", reconstructed),
                ("wrong caption", reconstructed_wrong),
            ):
                found = shown[f"{where}: {name}"]
                assert np.abs(found.astype(int) - expected).max() <= 1  # rounding
                assert (found == masked)[
                    (masked != 128).any(2)
                ].all()  # visible patches are the original's
            differences.append(np.abs(reconstructed.astype(int) - reconstructed_wrong).max())
        assert max(differences) > 5
    assert "true mean and deviation" in Page(normalised / "report.html").text


@torch.inference_mode()
def test_guesses_are_what_the_model_says(run: Path):
    page, loaded = Page(run / "report.html"), load_run(run)
    batch = one_batch(loaded, 8)
    assert batch.wrong is not None
    pairs = MaskedSignalReport(loaded, evaluated).examples_to_compare(8)
    for row, pair in enumerate(pairs):
        one = single(batch, row)
        ids, masked = one.ids_BT, one.is_masked_BT
        probabilities = []
        for images in (batch.images_BCHW, batch.wrong.images_BCHW):
            one = replace(one, images_BCHW=images[row : row + 1])
            encoded = task_of(loaded).encode(one, mask=True)
            text_TD = encoded.x_BND[0, 1 + loaded.config.input.num_patches :]
            probabilities.append(task_of(loaded).token_head(text_TD[masked[0]]).softmax(-1))
        truths = ids[masked].tolist()
        assert len(pair.masked_tokens) == len(truths)
        for token, truth, right, wrong in zip(
            pair.masked_tokens, truths, *probabilities, strict=True
        ):
            order = right.argsort(descending=True)[:5].tolist()
            assert token.truth == loaded.tokenizer.word(truth)
            assert [guess.text for guess in token.guesses] == [
                loaded.tokenizer.word(index) for index in order
            ]
            assert [guess.is_right for guess in token.guesses] == [
                index == truth for index in order
            ]
            assert [guess.probability for guess in token.guesses] == pytest.approx(
                right[order].tolist(), abs=1e-4
            )
            assert token.wrong_image.text == loaded.tokenizer.word(int(wrong.argmax()))
            assert token.truth_probability[1] == pytest.approx(wrong[truth].item(), abs=1e-4)
            guessed = "".join(
                f"{guess.text}{percent(guess.probability)}" for guess in token.guesses
            )
            assert (
                f"{token.truth} {'✓' if order[0] == truth else '✗'}{guessed}wrong image"
                in page.text
            )


@torch.inference_mode()
def test_routing_shares(run: Path):
    loaded = load_run(run)
    seen: dict[Router, np.ndarray] = {}

    def count(router, inputs, _output):
        x_SD, rows = inputs
        for x, is_of in zip(x_SD, rows.is_modality_2S.T.tolist(), strict=True):
            if is_of == [0, 0]:  # padding that fills a tile
                continue
            is_text = is_of[1]
            logits = router.weight @ (x + router.modality_embed[int(is_text)])
            for expert in logits.argsort(descending=True)[:2].tolist():
                seen.setdefault(router, np.zeros((2, 4)))[int(is_text), expert] += 1

    for module in loaded.task.modules():
        if isinstance(module, Router):
            module.register_forward_hook(count)
    batch = one_batch(loaded, 12)
    task_of(loaded).encode(batch, keep=True)
    task_of(loaded).encode(batch, mask=True)
    expected = [counts / counts.sum(1, keepdims=True) for counts in seen.values()]
    fresh = load_run(run)
    found = routing_of(fresh.task, [one_batch(fresh, 12)]).shares_ME
    assert len(found) == len(expected) == 2
    for shares_ME, counts in zip(found.values(), expected, strict=True):
        assert shares_ME.sum(1).tolist() == pytest.approx([1, 1])
        assert shares_ME.numpy() == pytest.approx(
            counts, abs=2e-3
        )  # a token on the brink may tip over
    page = Page(run / "report.html")
    report = MaskedSignalReport(fresh, evaluated)
    whole = routing_of(fresh.task, report.batches(report.dataset(NUM_SEEN))).shares_ME[3]
    assert f"expert 3, text tokens: {percent(whole[1, 3].item())}" in page.text
    assert "Experts by modality, block 2" in page.text
    assert "Experts by modality, block 3" in page.text


def test_data_cannot_break_the_page(tmp_path: Path, monkeypatch):
    evil = "<script>alert(1)</script> & \"double\" 'single' </p></style> ünï 日本 {x} %s"
    rows = []
    folder = tmp_path / "<b>&\"'"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (40, 40), (40 * index, 90, 200)).save(folder / f"<i>{index}.png")
        rows.append({"image": f"<i>{index}.png", "caption": f"{evil} number {index}"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = (str(folder / "pairs.jsonl"),)
    config = tiny(tmp_path / "<u>run", None, data={"train": source, "val": source})
    monkeypatch.setattr(
        Tokenizer,
        "word",
        lambda self, token_id: f"<u>token {token_id}</u><script>alert(2)</script>",
    )
    page = Page(trained(replace(config, recipe="<em>mine")))
    assert not {"script", "i", "u", "em"} & page.tags
    assert "<script>" in page.text
    assert "\"double\" 'single' </p></style> ünï 日本 {x} %s number 0" in page.text
    assert "This version has no recipe <em>mine" in page.text
    assert "valscenes:val" not in page.text
    assert f"val{source[0]}" in page.text
    assert f"training data{source[0]} (6 rows)" in page.text
    assert (
        "masked signal modelling<u>runrecipe<em>minestep1 of 1" in page.text
    )  # the title is the run, not the recipe
    assert len(page.images) == 6 * 6
    assert "on 6 validation pairs" in page.text


@pytest.mark.parametrize(
    ("part", "there", "missing"),
    [
        (
            {"task": {"mlm_weight": 0.0}},
            ["Masked-pixel error", "reconstructed"],
            ["Masked-token loss", "mlm_acc", "truth"],
        ),
        (
            {"task": {"mim_weight": 0.0}},
            ["Masked-token accuracy", "truth"],
            ["Masked-pixel loss", "mim_mse", "reconstructed"],
        ),
        (
            {"task": {"joint_masking": True}},
            ["in one pass", "reconstructed", "truth", "masked image"],
            ["complete image"],
        ),
        (
            {"model": {"deep_ffn": "shared"}},
            ["reconstructed", "truth"],
            ["Entropy", "Experts by modality", "Balance loss", "used per token"],
        ),
        (
            {"task": ContrastMatchConfig(mlm_weight=0.0)},
            [
                "Contrastive loss",
                "Matching loss",
                "Partner accuracy",
                "itc_acc",
                "itm_acc",
                "block 3",
            ],
            ["Masked-token loss", "Masked-pixel loss"],
        ),
        (
            {"model": {"num_experts": 32, "top_k": 1}},
            ["among 32 experts", "expert 31, image tokens"],
            [],
        ),
    ],
)
def test_parts_that_a_run_lacks(page_with, part, there, missing):
    page = Page(page_with(**part))
    assert [text for text in there if text not in page.text] == []
    assert [text for text in missing if text in page.text.partition("eve pretrain tiny")[0]] == []
    assert ("is 0)" in page.text) == ("weight" in str(part))
    routing = ["routing"] * ("Entropy" not in missing)  # without experts there is none
    assert page.ids == ["numbers", "curves", "images", "captions", *routing, "config"]


@pytest.mark.parametrize(
    ("rows", "other", "number"), [("image", "mlm", "mim_mse"), ("text", "mim", "mlm_acc")]
)
def test_rows_alone_have_a_page(tmp_path: Path, tokenizer: Path, rows, other, number):
    page = Page(
        trained(
            tiny(
                tmp_path / "run", tokenizer, data={"modality": rows}, task={f"{other}_weight": 0.0}
            )
        )
    )
    assert number in page.text and "wrong" not in page.text.partition("eve pretrain tiny")[0]
    shown = {"image": "images", "text": "captions"}[rows]
    assert page.ids == ["numbers", "curves", shown, "routing", "config"]
    assert len(page.images) == {"image": 8 * 3, "text": 0}[rows]
    assert ("Masked texts" in page.text) == (rows == "text")


def test_partners_told_apart(page_with):
    path = page_with(task=ContrastMatchConfig(mlm_weight=0.0))
    page, values = Page(path), from_json(json.loads(path.with_name("metrics.json").read_text()))
    assert set(values) == {"itc_acc", "itm_acc"}
    for name, value in values.items():
        assert f"{name}{percent(value)}" in page.text
    assert "chance50.0 %" in page.text


def test_joint_masking_shows_what_the_model_saw(page_with):
    images = Page(page_with(task={"joint_masking": True})).images
    originals = [alt for alt in images if alt.endswith(": original")]
    assert len(originals) == 8
    for alt in originals:
        where = alt.removesuffix(": original")
        assert (images[f"{where}: image"] == images[f"{where}: masked"]).all()
        assert ((images[f"{where}: wrong image"] == 128).all(2).sum()) >= 12 * 8**2


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
    assert "Measured on the run's validation data, step 2." in page.text
    assert "checkpoint" in page.text.partition("Curves")[2]  # the mark in the charts

    (copy / "log.jsonl").write_text(rows[0] + "\n")  # one training row: measured now
    page = Page(write_report(copy))
    assert "Measured on at most 16 validation pairs, step 2" in page.text
    assert f"mlm_acc{percent(values['mlm_acc'])}" in page.text
    assert "Masked-token loss" in page.text
    assert "Masked-token accuracy" not in page.text

    (copy / "log.jsonl").unlink()
    page = Page(write_report(copy / "checkpoints/step_00000002", copy / "of_checkpoint.html"))
    assert "has no log" in page.text
    assert f"mlm_acc{percent(values['mlm_acc'])}" in page.text


def test_header_says_how_long_it_took_and_what_was_rejected(run: Path, tmp_path: Path):
    copy = tmp_path / "a copy"
    shutil.copytree(run, copy)
    rows = [
        {"kind": "train", "step": step, "lr": 1.0, "samples_per_second": 2.0}
        for step in (100, 3000)
    ]
    (copy / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = [{"where": f"rows.jsonl:{row}", "reason": f"<b>reason {row}"} for row in range(25)]
    (copy / "bad_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    page = Page(write_report(copy))
    batch_size = load_run(run).config.train.batch_size
    minutes = 3000 * batch_size / 2 / 60
    assert f"training took{minutes // 60:.0f} h {minutes % 60:.0f} min" in page.text
    assert "invalid rows25 (bad_samples.jsonl)" in page.text
    assert "25 invalid rows, the first 20 shown" in page.text
    assert "rows.jsonl:19<b>reason 19" in page.text and "rows.jsonl:20" not in page.text
    assert "a copyrecipetinystep" in page.text
    (copy / "bad_samples.jsonl").write_text(json.dumps(bad[0]) + "\n")
    assert "1 invalid rowrows.jsonl:0" in Page(write_report(copy)).text
    own = Page(run / "report.html").text
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    cores = sum(row["core_seconds"] for row in rows if row["kind"] == "train")
    assert re.search(rf"training took\d+ s \({re.escape(pluralize(cores, 'core-second'))}\)", own)
    (start,) = json.loads((run / "environment.json").read_text())
    for name, value in start.items():
        assert f"{name}{value}" in own or not value, name
    assert "invalid rows" not in Page(run / "report.html").text


def test_a_task_without_a_report_of_its_own(run: Path, tmp_path: Path, monkeypatch):
    """All its numbers in a table, a chart of everything in its log, and the routing."""
    monkeypatch.setattr("eve_vl.report.page.task_report", lambda run: TaskReport(run, evaluated))
    page = Page(write_report(run, tmp_path / "page.html"))
    assert_self_contained(tmp_path / "page.html")
    assert page.ids == ["numbers", "curves", "routing", "config"]
    values = from_json(json.loads((run / "metrics.json").read_text()))
    for name, value in values.items():
        assert f"{name}{number(value)}" in page.text
        assert f"{name}, validation {number(value)}" in page.text
    assert "mlm, training" in page.text
    assert "Experts by modality, block 3" in page.text


def test_data_out_of_reach(run: Path, tmp_path: Path, capfd, eve):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "checkpoints/step_00000004/config.json"
    path.write_text(path.read_text().replace("scenes:val", "gone/<b>pairs.jsonl"))
    page = Page(write_report(copy))
    assert "The validation data cannot be read" in page.text
    assert "gone/<b>pairs.jsonl" in page.text
    assert page.ids == ["curves", "config"]
    assert page.images == {}
    assert capfd.readouterr().err.startswith("eve: warning: The validation data cannot be read")
    done = eve("report", copy, "--out", tmp_path / "page.html")
    assert done.returncode == 0
    assert done.stderr.startswith("eve: warning: The validation data cannot be read")
    assert "gone/<b>pairs.jsonl" in done.stderr
    assert done.stderr.count("\n") == 1
