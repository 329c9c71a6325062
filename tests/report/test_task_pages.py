"""Reports of fine-tuned runs: evaluation numbers, right examples, found candidates."""

import html
import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eve_vl.cli.train import run_finetune
from eve_vl.config import Config
from eve_vl.data.image_refs import ImageDrawing, ImageRef
from eve_vl.data.row_dataset import eval_positions
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.demo.train_and_test import read_numbers
from eve_vl.evaluation.evaluate import evaluated, with_settings
from eve_vl.model.router import Router
from eve_vl.pages.number_formats import percent
from eve_vl.recipes import get_finetune_recipe
from eve_vl.report.config_section import command_line
from eve_vl.report.page import task_report, write_report
from eve_vl.report.routing import routing_of
from eve_vl.run.loading import LoadedRun, load_run, read_config
from eve_vl.run.training import train
from eve_vl.synthetic.scenes.rows import ScenePairs, SceneQuestions, SceneStatements
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.predictor import predictor_of
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.report import Query, RetrievalReport
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.vqa.task import VQA
from eve_vl.train.run_log import read_log
from helpers.report_page import Page, assert_self_contained, tiny, trained

TASKS = ("vqa", "nlvr2", "retrieval")
NUM_VAL = 36


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    scenes = ScenePairs(split="train", image_size=32)
    words = [caption for row in range(100) for caption in scenes[row].captions]
    words += [SceneQuestions(split="train")[row].question for row in range(100)]
    (folder / "tokenizer.json").write_text(Tokenizer.train(words, 400).to_json())
    config = tiny(folder / "pretrained", folder / "tokenizer.json", steps=2)
    train(config)
    return config.out


def finetuned(pretrained: Path, name: str, out: Path, *, steps: int, **sections: dict) -> Config:
    init = load_run(pretrained).config
    config = get_finetune_recipe(f"scenes_{name}", init)
    often = max(1, steps // 2)
    values = {
        "steps": steps,
        "batch_size": 16,
        "lr": 2e-3,
        "log_every": 5,
        "val_every": often,
        "save_every": often,
    }
    values |= {"threads": 1, "dtype": "float32"}
    return replace(
        config,
        out=out,
        init=pretrained,
        data=replace(
            config.data, **{"val_samples": NUM_VAL, "num_workers": 0, **sections.get("data", {})}
        ),
        task=replace(config.task, **sections.get("task", {})),
        train=replace(config.train, **values),
    )


@pytest.fixture(scope="module")
def runs(pretrained: Path, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("finetuned")
    steps = {"vqa": 20, "nlvr2": 6, "retrieval": 20}
    for task in TASKS:
        assert (
            trained(finetuned(pretrained, task, folder / task, steps=steps[task]))
            == folder / task / "report.html"
        )
    return {task: folder / task for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_page(runs: dict[str, Path], pretrained: Path, task: str):
    path = runs[task] / "report.html"
    page, loaded = Page(path), load_run(runs[task])
    assert_self_contained(path)
    assert page.ids == ["numbers", "curves", task, "routing", "config"]
    assert " Heat (Grad-CAM), blue to red: " in page.text and any(
        "heat" in alt for alt in page.images
    )
    assert path.stat().st_size < 600_000
    assert f"{task}recipescenes_{task}step" in page.text
    assert (
        "training datascenes:train (100,000 rows)validation datascenes:val (1,000 rows)"
        in page.text
    )
    assert f"started from{pretrained}" in page.text
    notes = [row["text"] for row in read_log(runs[task]) if row["kind"] == "note"]
    notes = [
        note for note in notes if task != "vqa" or "without a baseline" not in note
    ]  # the page has one
    assert notes
    assert all(note in page.text for note in notes)
    assert "chosen by validation" in page.text
    assert "unfinished" not in page.text
    assert f"step {loaded.step}." in page.text
    numbers = evaluated(loaded, NUM_VAL).numbers
    shares = {
        name: value for name, value in numbers.items() if value <= 1 and not name.startswith("num")
    }
    shown = {
        "vqa": ["vqa_acc", "vqa_acc_blind", "vqa_acc_majority"],
        "nlvr2": ["nlvr2_acc"],
        "retrieval": ["tr1", "ir1"],  # validation chose to re-rank nothing
    }
    for name in shown[task]:
        assert f"{name}{percent(shares[name])}" in page.text
    for name, value in shares.items():
        if name.startswith("vqa_acc/"):
            assert f"answer type {name.partition('/')[2]}, model: {percent(value)}" in page.text
        if re.fullmatch(r"(tr|ir)\d+", name):
            assert f"R@{name[2:]}, contrast: {percent(value)}" in page.text
    for block in (2, 3):
        assert f"Experts by modality, block {block}" in page.text


def test_baselines(runs: dict[str, Path]):
    page = Page(runs["nlvr2"] / "report.html")
    rows = SceneStatements(split="val", image_size=32)
    picks = [rows[row] for _, _, row in eval_positions([len(rows)], NUM_VAL)]
    share = sum(row.label is True for row in picks) / len(picks)
    assert f"majority{percent(max(share, 1 - share))}" in page.text
    assert "Consistency" not in page.text  # a part of the statements tears their groups apart
    page, numbers = (
        Page(runs["retrieval"] / "report.html"),
        evaluated(load_run(runs["retrieval"]), NUM_VAL).numbers,
    )
    assert f"chance{percent(numbers['texts_per_image'] / numbers['num_texts'])}" in page.text


def test_chance_counts_each_query_with_its_own_matches(runs: dict[str, Path]):
    """Drawn without replacement, from the captions that the scenes say are true; both ways."""
    page, rows = Page(runs["retrieval"] / "report.html"), ScenePairs(split="val", image_size=32)
    picks = [row for _, _, row in eval_positions([len(rows)], NUM_VAL)]
    texts = list(dict.fromkeys(rows[row].captions[0] for row in picks))
    true = np.array([[text in rows.true_captions(row) for text in texts] for row in picks])
    for k in (1, 5, 10):
        shown = re.findall(rf"R@{k}, chance: ([\d.]+) %", page.text)
        assert len(shown) == 2
        for given, matches, num in (
            (shown[0], true.sum(1), len(texts)),
            (shown[1], true.sum(0), len(picks)),
        ):
            missed = [math.comb(num - int(m), k) / math.comb(num, k) for m in matches if m]
            assert float(given) == pytest.approx(100 * (1 - np.mean(missed)), abs=0.051)


@pytest.mark.parametrize("is_worse", [True, False])
def test_a_matching_head_that_makes_the_search_worse(
    runs: dict[str, Path], tmp_path: Path, is_worse: bool
):
    """In the log of an earlier version, which re-ranked whatever came of it."""
    copy = Path(shutil.copytree(runs["retrieval"], tmp_path / "run"))
    lines = (copy / "log.jsonl").read_text().splitlines()
    rows = [
        {name: value for name, value in json.loads(line).items() if "_k" not in name}
        for line in lines
    ]
    for row in rows:
        if row["kind"] == "val":
            row |= {"r_mean": 0.352 if is_worse else 0.5, "r_mean_itc_only": 0.472, "tr1": 0.123}
    (copy / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(copy))
    assert (
        "re-ranking makes this search worse (r_mean 0.352, with ITC only 0.472)" in page.text
    ) == is_worse
    numbers = (copy / "report.html").read_text().partition('class="card number main"><code>')[2]
    assert numbers.startswith(
        "tr1</code><strong>12.3 %"
    )  # what people get, who search with the run's own re-ranking


def test_routing_counts_all_tokens(runs: dict[str, Path]):
    """In evaluation the last block computes [CLS] alone; the page counts what the experts are for:
    every token."""
    for name in TASKS:
        run = load_run(runs[name])
        report = task_report(run)
        dataset = report.dataset(8)
        batches = list(report.batches(dataset))
        seen: dict[Router, np.ndarray] = {}

        def count(router, inputs, _output, seen=seen):
            x_SD, rows = inputs
            for x, is_of in zip(x_SD, rows.is_modality_2S.T.tolist(), strict=True):
                if is_of == [0, 0]:  # padding that fills a tile
                    continue
                is_text = is_of[1]
                logits = router.weight @ (x + router.modality_embed[int(is_text)])
                for expert in logits.argsort(descending=True)[:2].tolist():
                    seen.setdefault(router, np.zeros((2, len(logits))))[int(is_text), expert] += 1

        chosen = routing_of(run.task, batches)
        for module in run.task.modules():
            if isinstance(module, Router):
                module.register_forward_hook(count)
        run.task.encoder.computes_all = True  # of the encoder itself, not of a twin
        with torch.no_grad():
            run.task.routers(batches[0])
        assert chosen.num_rows == 8
        assert not load_run(runs[name]).task.encoder.computes_all
        for shares_ME, counts in zip(chosen.shares_ME.values(), seen.values(), strict=True):
            assert shares_ME.numpy() == pytest.approx(
                counts / counts.sum(1, keepdims=True), abs=5e-3
            )
        num_text = sum(int((~batch.is_padding_BT).sum()) for batch in batches)
        num_image = 8 * (1 + run.config.input.num_patches)
        times = {"vqa": (1, 1), "nlvr2": (2, 2), "retrieval": (2, 2)}[name]
        for counts in seen.values():
            assert counts.sum(1).tolist() == [2 * num_image * times[0], 2 * num_text * times[1]]


def cards(path: Path) -> list[tuple[str, str]]:
    """Verdict and HTML of each example."""
    return re.findall(
        r'<article class="card example (\w+)">(.*?)</article>', path.read_text(), re.DOTALL
    )


def pixels_of(image: ImageRef) -> np.ndarray:
    assert isinstance(image, ImageDrawing)
    return image.pixels


def alone(run: LoadedRun, pixels_HWC: np.ndarray, text: str) -> torch.Tensor:
    """The state of the text [CLS] of one pair, encoded by itself."""
    pixels = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    ids = torch.from_numpy(run.tokenizer.encode(text, run.config.input.text_length)[0])[None]
    encoder = run.task.encoder
    image = encoder.image(pixels)
    return encoder.encode(image, encoder.text(ids, None)).x_BND[:, image.num_image]


@torch.no_grad()
def test_answers_are_the_models_and_right_ones_are_right(runs: dict[str, Path]):
    run, page, found = (
        load_run(runs["vqa"]),
        Page(runs["vqa"] / "report.html"),
        cards(runs["vqa"] / "report.html"),
    )
    assert isinstance(run.task, VQA)
    assert [verdict for verdict, _ in found] == ["right"] * 6 + ["wrong"] * 6
    rows = SceneQuestions(split="val", image_size=32)
    for verdict, card in found:
        alt = re.findall(r'alt="(.*?)"', card)
        assert len(alt) == 2
        (index,) = re.findall(r"val\[(\d+)\]: image", alt[0])
        asked = rows[int(index)]
        assert (page.images[alt[0]] == pixels_of(asked.image)).all()
        assert asked.question in card
        shown = re.findall(r"<span>(\w+)</span><span>([\d.]+ %)</span>", card)
        best = (
            run.task.answer_head(alone(run, pixels_of(asked.image), asked.question))
            .sigmoid()[0]
            .topk(3)
        )
        assert [answer for answer, _ in shown] == [
            run.task.answers[index] for index in best.indices.tolist()
        ]
        given = [float(share.split()[0]) for _, share in shown]
        assert given == pytest.approx([100 * value for value in best.values.tolist()], abs=0.06)
        assert (verdict == "right") == (shown[0][0] == asked.answers[0])
        assert f"truth</span> {asked.answers[0]}<" in card
        with torch.enable_grad():
            heat = (
                predictor_of(run)
                .call("explain")(pixels_of(asked.image), asked.question, answer=shown[0][0])
                .overlays()[0]
            )
        assert (page.images[alt[1]] == heat).all()
    assert (
        len(
            {
                rows[int(re.findall(r"val\[(\d+)\]", card)[0])].answer_type
                for verdict, card in found[6:]
            }
        )
        >= 3
    )


@torch.no_grad()
def test_verdicts_are_the_models_and_right_ones_are_right(runs: dict[str, Path]):
    run, page, found = (
        load_run(runs["nlvr2"]),
        Page(runs["nlvr2"] / "report.html"),
        cards(runs["nlvr2"] / "report.html"),
    )
    assert isinstance(run.task, NLVR2)
    assert [verdict for verdict, _ in found] == ["right"] * 6 + ["wrong"] * 6
    rows = SceneStatements(split="val", image_size=32)
    for verdict, card in found:
        alts = re.findall(r'alt="(.*?)"', card)
        claimed = rows[int(re.findall(r"val\[(\d+)\]: left", alts[0])[0])]
        images = [pixels_of(claimed.left), pixels_of(claimed.right)]
        for alt, expected in zip(
            alts, [*images, *heat_of(run, images, claimed.statement)], strict=True
        ):
            assert (page.images[html.unescape(alt)] == expected).all()
        states = [alone(run, pixels, claimed.statement) for pixels in images]
        true = run.task.compare_head(*states).softmax(1)[0, 1].item()
        share = max(true, 1 - true)
        assert claimed.statement in card
        (first, given), (second, rest) = re.findall(
            r"<span>(true|false)</span><span>([\d.]+) %</span>", card
        )
        assert {first, second} == {"true", "false"}
        assert first == str(true > 0.5).lower()
        assert float(given) == pytest.approx(100 * share, abs=0.06)
        assert float(rest) == pytest.approx(100 - 100 * share, abs=0.06)
        assert (verdict == "right") == ((true > 0.5) == claimed.label)


def heat_of(run: LoadedRun, images: list[np.ndarray], text: str) -> tuple[np.ndarray, ...]:
    with torch.enable_grad():
        return predictor_of(run).call("explain")(images, text).overlays()


@torch.no_grad()
def test_searches_find_what_the_model_finds(runs: dict[str, Path]):
    run = load_run(runs["retrieval"])
    task = run.task = with_settings(run.task, replace(run.task.settings, rerank=16))
    assert isinstance(task, Retrieval)
    assert task.settings.rerank_by == "sum"
    with torch.enable_grad():
        report = RetrievalReport(run, evaluated)
        dataset = report.dataset(40, for_evaluation=True)
        by_text, by_image = report.searches(dataset, 2)
    rows = ScenePairs(split="val", image_size=32)
    picks = [row for _, _, row in eval_positions([len(rows)], 40)]
    images = [pixels_of(rows[row].image) for row in picks]
    texts = list(dict.fromkeys(rows[row].captions[0] for row in picks))
    true = {(index, text) for index, row in enumerate(picks) for text in rows.true_captions(row)}
    image_Id = torch.cat(
        [
            task.image_features(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
            for pixels in images
        ]
    )
    ids = [torch.from_numpy(run.tokenizer.encode(text, 32)[0])[None] for text in texts]
    text_Td = torch.cat([task.text_features(each, None) for each in ids])

    def score(image: int, text: str) -> float:
        assert task.contrast.match_head is not None
        no, yes = task.contrast.match_head(alone(run, images[image], text))[0].tolist()
        similarity = (
            image_Id[image] @ text_Td[texts.index(text)] / task.contrast.features.temperature
        )
        return yes - no + similarity.item()

    assert len(dataset.images) == 40
    assert dataset.captions == texts
    assert 2 <= len(by_text) <= 4
    assert 2 <= len(by_image) <= 4
    for query in by_text:
        similarity = image_Id @ text_Td[texts.index(query.item.text)]
        first = similarity.argsort(descending=True)[:16].tolist()
        best = sorted(first, key=lambda image: -score(image, query.item.text))[:5]
        assert [item.where for item in query.hits] == [f"image {image}" for image in best]
        for item, image in zip(query.hits, best, strict=True):
            assert (item.images["image"] == images[image]).all()
        assert query.is_match == [(image, query.item.text) in true for image in best]
    for query in by_image:
        index = int(query.item.where.removeprefix("image "))
        first = (text_Td @ image_Id[index]).argsort(descending=True)[:16].tolist()
        best = sorted(first, key=lambda text: -score(index, texts[text]))[:5]
        assert [item.text for item in query.hits] == [texts[text] for text in best]
        assert query.is_match == [(index, texts[text]) in true for text in best]
        assert (index, query.truth.text) in true
        assert (report.explained(query).heatmaps[0] == look_for(run, images[index], query)).all()
    verdicts = [query.is_match[0] for query in by_text]
    assert verdicts == sorted(verdicts, reverse=True)


def look_for(run: LoadedRun, pixels: np.ndarray, query: Query) -> np.ndarray:
    with torch.enable_grad():
        return predictor_of(run).call("explain")(pixels, query.truth.text).overlays()[0]


def test_true_items_are_framed(runs: dict[str, Path]):
    """The page shows the searches' verdicts."""
    report = RetrievalReport(load_run(runs["retrieval"]), evaluated)
    by_text, by_image = report.searches(
        report.dataset(200, for_evaluation=True), report.num_examples
    )
    text = (runs["retrieval"] / "report.html").read_text()
    lists = re.findall(r'<ol class="hits \w+">(.*?)</ol>', text)
    queries = [*by_text, *by_image]
    assert len(lists) == len(queries)
    for items, query in zip(lists, queries, strict=True):
        assert re.findall(r'<li class="(right|wrong)">', items) == [
            "right" if each else "wrong" for each in query.is_match
        ]
        if query.item.images:
            assert [
                html.unescape(item) for item in re.findall(r'<li class="\w+">(.*?)</li>', items)
            ] == [item.text for item in query.hits]


@pytest.mark.parametrize("num_right", [8, 0])
def test_what_validation_chooses_to_rerank_goes_with_the_weights(
    num_right: int, pretrained: Path, tmp_path: Path, monkeypatch
):
    """A matching head that is right only about the first candidates."""

    def scores(task: Retrieval, gallery: Gallery, *candidates: Tensor) -> list[Tensor]:
        sides = gallery.relevance.texts_of_image, gallery.relevance.images_of_text
        found = []
        for order_QK, side in zip(candidates, sides, strict=True):
            matches = [
                set(each.tolist()) for each in side.candidate_M.tensor_split(side.start_Q1[1:-1])
            ]
            is_match = [
                [each in true for each in row]
                for row, true in zip(order_QK.tolist(), matches, strict=True)
            ]
            score_QK = torch.tensor(is_match).float()
            score_QK[:, num_right:] = 2 - 4 * score_QK[:, num_right:]
            found.append(score_QK)
        return found

    monkeypatch.setattr("eve_vl.tasks.retrieval.rerank_choice.rerank_scores", scores)
    config = finetuned(pretrained, "retrieval", tmp_path / "run", steps=4)
    page, run = Page(trained(config)), load_run(config.out)
    whole = read_config(config.out)
    assert whole.task == config.task == replace(run.config.task, rerank=16)  # pyright: ignore[reportCallIssue]
    assert run.config == replace(whole, task=run.task.settings)
    assert run.task.settings.rerank == num_right
    best = read_numbers(config.out / "metrics.json")
    assert best["rerank_k"] == num_right
    assert (best["r_mean"] > best["r_mean_itc_only"]) == (num_right > 0)
    notes = [row["text"] for row in read_log(config.out) if row["kind"] == "note"]
    (note,) = [
        note
        for note in notes
        if note.startswith("of 16, 8, 4, 2 or no candidates to re-rank, validation chose ")
    ]
    assert (f"chose the best {num_right} (r_mean {best['r_mean']:.3f}" in note) == (num_right > 0)
    assert ("chose none: not even the best" in note) == (num_right == 0)
    chosen = f"the best {num_right}" if num_right else "none"
    assert f"Re-ranked candidates per query: {chosen}, chosen in validation." in page.text
    alone = (
        f"{percent(best['r_mean_itc_only'])} with ITC only, {percent(best['r_mean_k16'])} with 16"
    )
    assert alone in page.text
    for name in ("tr1", "tr1_itc_only", "ir1_itc_only") if num_right else ("tr1",):
        assert f"{name}{percent(best[name])}" in page.text
    for name in (f"{way}{k}" for way in ("tr", "ir") for k in (1, 5, 10)):
        series = (
            {"re-ranked": name, "contrast only": f"{name}_itc_only"}
            if num_right
            else {"contrast": name}
        )
        for shown, number in series.items():
            assert f"R@{name[2:]}, {shown}: {percent(best[number])}" in page.text
    for flags, k in (({}, num_right), ({"rerank": 2}, 2), ({"rerank": 0}, 0), ({"rerank": 16}, 16)):
        numbers = evaluated(run, NUM_VAL, flags=flags).numbers
        assert numbers["rerank_k"] == k
        assert numbers["r_mean"] == pytest.approx(
            best[f"r_mean_k{k}"] if k else best["r_mean_itc_only"]
        )
        assert numbers["r_mean_itc_only"] == pytest.approx(best["r_mean_itc_only"])
        assert not [name for name in numbers if name.startswith("r_mean_k")]
    train(
        replace(config, train=replace(config.train, steps=6))
    )  # resumes: the run's own config is as it was
    assert load_run(config.out).config.task == run.config.task


def test_without_matching_head_and_from_scratch(pretrained: Path, tmp_path: Path):
    config = finetuned(
        pretrained,
        "retrieval",
        tmp_path / "run",
        steps=1,
        task={"itm_weight": 0.0, "rerank": 0, "itm_batchnorm": False},
    )
    page = Page(trained(replace(config, scratch=True)))
    assert f"random weights (shape and tokenizer of {pretrained})" in page.text
    assert "contrast only" not in page.text.partition("Searches over ")[0]
    assert "_itc_only" not in page.text
    assert "heat" not in " ".join(page.images) and "Heat" not in page.text
    assert "--scratch" in page.text


def test_a_search_among_images_some_of_which_cannot_be_read(pretrained: Path, tmp_path: Path):
    """Those that can are numbered anew; what is shown as true is."""
    rows = []
    for index in range(12):
        Image.new("RGB", (40, 40), (20 * index, 90, 200)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "caption": f"the image with number {index}"})
    for index in (0, 5):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "train": (str(source),),
        "val": (str(source),),
        "skip_invalid_val": True,
        "max_invalid_fraction": 1.0,
    }
    run = load_run(
        trained(finetuned(pretrained, "retrieval", tmp_path / "run", steps=1, data=data)).parent
    )
    report = RetrievalReport(run, evaluated)
    by_text, _ = report.searches(report.dataset(100, for_evaluation=True), 6)
    assert by_text
    for query in by_text:
        assert query.truth.images["image"][0, 0].tolist() == [
            20 * int(query.item.text.split()[-1]),
            90,
            200,
        ]


def test_own_questions(pretrained: Path, tmp_path: Path):
    """Several annotators, no answer types, evil words; then answers kept back."""
    evil = "<script>alert(1)</script> what \"is\" 'this' </p>"
    rows = []
    for index in range(12):
        Image.new("RGB", (40, 40), (20 * index, 90, 200)).save(tmp_path / f"{index}.png")
        answers = ["<b>red</b>", "<b>red</b>", "blue"] if index % 2 else ["green"] * 3
        rows.append(
            {
                "image": f"{index}.png",
                "question": f"{evil} {index}",
                "answers": answers,
                "question_id": index,
            }
        )
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": (str(source),), "val": (str(source),)}
    config = finetuned(
        pretrained, "vqa", tmp_path / "run", steps=1, data=data, task={"min_answer_count": 1}
    )
    page = Page(trained(replace(config, recipe="vqa")))
    assert "script" not in page.tags
    assert f"{evil} 0" in page.text
    assert "truth <b>red</b>, blue" in page.text
    assert "by answer type" not in page.text
    assert " of 12 questions right" in page.text

    source.write_text(
        "".join(json.dumps({key: row[key] for key in ("image", "question")}) + "\n" for row in rows)
    )
    page = Page(write_report(tmp_path / "run"))
    assert "Truth unknown" in page.text
    assert "✓" not in page.text
    assert "baselines without the image are missing" in page.text
    assert [verdict for verdict, _ in cards(tmp_path / "run/report.html")] == ["unknown"] * 12
    assert "The model gets 0 of 12 questions right, spread over the validation data." in page.text


def test_command_makes_the_same_config(
    runs: dict[str, Path], pretrained: Path, monkeypatch, tmp_path: Path
):
    given: list[Config] = []
    monkeypatch.setattr("eve_vl.run.training.train", lambda config, **_: given.append(config))
    for task in TASKS:
        config = load_run(runs[task]).config
        words = shlex.split(command_line(config))
        assert words[:5] == ["eve", "finetune", f"scenes_{task}", "--init", str(pretrained)]
        run_finetune(words[2:])
        assert given.pop() == config
        assert shlex.join(words) in html.unescape((runs[task] / "report.html").read_text())


def test_run_that_it_started_from_is_gone(runs: dict[str, Path], tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(runs["nlvr2"], copy)
    path = copy / "best/config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"init": str(tmp_path / "gone")}))
    page = Page(write_report(copy))
    assert f"eve finetune scenes_nlvr2 --init {tmp_path / 'gone'}" in page.text
    assert "is no longer at" in page.text


def test_stopped_run_and_its_checkpoints(runs: dict[str, Path], tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(runs["retrieval"], copy)
    for config in copy.rglob("config.json"):
        values = json.loads(config.read_text())
        values["train"]["steps"] = 50
        config.write_text(json.dumps(values))
    page = Page(write_report(copy))
    assert "chosen by validation unfinished" in page.text
    page = Page(write_report(copy / "checkpoints/step_00000010", tmp_path / "page.html"))
    assert "10 of 50 unfinished" in page.text
    assert "chosen by validation" not in page.text
    assert "Measured on the run's validation data, step 10." in page.text


def test_a_note_of_an_earlier_stop_does_not_finish_a_run(runs: dict[str, Path], tmp_path: Path):
    """Ended by its patience at step 10, then continued and stopped by hand at 20."""
    copy = Path(shutil.copytree(runs["retrieval"], tmp_path / "run"))
    for config in copy.rglob("config.json"):
        values = json.loads(config.read_text())
        values["train"]["steps"] = 50
        config.write_text(json.dumps(values))
    with (copy / "log.jsonl").open("a") as log:
        log.write(
            json.dumps(
                {
                    "kind": "note",
                    "step": 10,
                    "text": "stopped early: 1 validation without a better r_mean",
                }
            )
            + "\n"
        )
    assert "unfinished" in Page(write_report(copy)).text
    with (copy / "log.jsonl").open("a") as log:
        log.write(
            json.dumps(
                {
                    "kind": "note",
                    "step": 20,
                    "text": "stopped early: 2 validations without a better r_mean",
                }
            )
            + "\n"
        )
    assert "unfinished" not in Page(write_report(copy)).text


def test_warnings_are_shown_as_they_are(runs: dict[str, Path], tmp_path: Path, capfd):
    copy = Path(shutil.copytree(runs["vqa"], tmp_path / "run"))
    for path in (copy / "best/config.json", copy / "config.json"):
        path.write_text(path.read_text().replace("scenes:val", "gone/:x:/questions.jsonl"))
    write_report(copy)
    assert "gone/:x:/questions.jsonl" in capfd.readouterr().err


def test_the_verdict_on_questions_knows_the_baseline_below_it(runs: dict[str, Path]):
    page = Page(runs["vqa"] / "report.html")
    numbers = evaluated(load_run(runs["vqa"]), NUM_VAL).numbers
    verdict = evaluator_of(load_run(runs["vqa"]).task).comparison(numbers)
    assert "answering without the image" in verdict and verdict in page.text
    assert "without a baseline" not in page.text.partition("Curves")[0]
    assert "worth" not in page.text


def test_data_out_of_reach(runs: dict[str, Path], tmp_path: Path, capfd):
    copy = tmp_path / "run"
    shutil.copytree(runs["vqa"], copy)
    path = copy / "best/config.json"
    path.write_text(path.read_text().replace("scenes:val", "gone/questions.jsonl"))
    page = Page(write_report(copy))
    assert page.ids == ["curves", "config"]
    assert "gone/questions.jsonl" in capfd.readouterr().err
