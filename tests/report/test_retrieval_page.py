"""The page of a run for retrieval: chance, re-ranking, and searches of the model."""

import html
import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eve_vl.data.row_dataset import eval_positions
from eve_vl.demo.train_and_test import read_numbers
from eve_vl.evaluation.evaluate import evaluated, with_settings
from eve_vl.eve import Eve
from eve_vl.pages.number_formats import percent
from eve_vl.report.page import write_report
from eve_vl.run.loading import LoadedRun, load_run, read_config
from eve_vl.run.training import train
from eve_vl.synthetic.scenes.rows import ScenePairs
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.report import RetrievalReport, chance_recall
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.train.run_log import read_log
from helpers.report_page import NUM_VAL, Page, drawn_pixels, finetuned, trained
from helpers.source_files import write_jsonl


@pytest.fixture
def run_folder(finetuned_runs: dict[str, Path]) -> Path:
    return finetuned_runs["retrieval"]


def test_chance_is_that_of_drawing_without_replacement():
    assert chance_recall(10, 18, [1] * 18) == pytest.approx(10 / 18)
    num_matches = (1, 3, 2, 6)
    orders = list(itertools.permutations(range(6)))
    for k in (1, 2, 5, 10):
        num_hits = 0
        for m in num_matches:
            num_hits += sum(min(order[:k]) < m for order in orders)
        recall = num_hits / len(orders) / len(num_matches)
        assert chance_recall(k, 6, num_matches) == pytest.approx(recall)


@pytest.mark.parametrize(
    ("r_mean", "is_worse"),
    [
        (0.352, True),
        (0.5, False),
    ],
)
def test_page_warns_of_a_matching_head_that_makes_the_search_worse(
    run_folder: Path,
    tmp_path: Path,
    r_mean: float,
    is_worse: bool,
):
    """The log is that of a version that always re-ranked."""
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    rows = []
    for row in read_log(copy):
        if row["kind"] == "val":
            row = {name: row[name] for name in row if "_k" not in name}  # noqa: PLW2901
            row.update(r_mean=r_mean, r_mean_itc_only=0.472, tr1=0.123)
        rows.append(row)
    write_jsonl(copy / "log.jsonl", rows)
    path = write_report(copy)
    warning = "re-ranking makes this search worse (r_mean 0.352, with ITC only 0.472)"
    assert (warning in Page(path).text) == is_worse
    main_card = path.read_text().partition('class="card number main"><code>')[2]
    assert main_card.startswith("tr1</code><strong>12.3 %")  # with the run's own re-ranking


class SearchedScenes:
    """Images and captions of the validation scenes, and the score of each pair."""

    def __init__(self, run: LoadedRun, num_images: int):
        scenes = ScenePairs(split="val", image_size=32)
        rows = [row for _, _, row in eval_positions([len(scenes)], num_images)]
        self.images = [drawn_pixels(scenes[row].images[0]) for row in rows]
        self.texts = list(dict.fromkeys(scenes[row].captions[0] for row in rows))
        self.true_captions = [scenes.true_captions(row) for row in rows]
        eve = Eve(run)
        assert isinstance(run.task, Retrieval)
        temperature = run.task.contrast.features.temperature.item()
        self.similarity_IT = eve.encode_image(self.images) @ eve.encode_text(self.texts).T
        match_IT = eve.match(self.images, self.texts)
        self.score_IT = np.log(match_IT / (1 - match_IT)) + self.similarity_IT / temperature

    def best_images(self, text: int) -> list[int]:
        first = np.argsort(-self.similarity_IT[:, text])[:16]
        return sorted(first.tolist(), key=lambda image: -self.score_IT[image, text])[:5]

    def best_texts(self, image: int) -> list[int]:
        first = np.argsort(-self.similarity_IT[image])[:16]
        return sorted(first.tolist(), key=lambda text: -self.score_IT[image, text])[:5]

    def is_match(self, image: int, text: int) -> bool:
        return self.texts[text] in self.true_captions[image]


def test_searches_are_those_of_the_model(run_folder: Path):
    run = load_run(run_folder)
    run.task = with_settings(run.task, replace(run.task.settings, rerank=16))
    assert run.task.settings.rerank_by == "sum"
    report = RetrievalReport(run, evaluated)
    dataset = report.dataset(40, for_evaluation=True)
    by_text, by_image = report.searches(dataset, 2)
    scenes = SearchedScenes(run, 40)
    assert len(dataset.images) == 40
    assert dataset.captions == scenes.texts
    assert 2 <= len(by_text) <= 4
    assert 2 <= len(by_image) <= 4
    for query in by_text:
        text = scenes.texts.index(query.item.text)
        best = scenes.best_images(text)
        assert [hit.where for hit in query.hits] == [f"image {image}" for image in best]
        assert query.is_match == [scenes.is_match(image, text) for image in best]
        for hit, image in zip(query.hits, best, strict=True):
            assert (hit.images["image"] == scenes.images[image]).all()
    for query in by_image:
        image = int(query.item.where.removeprefix("image "))
        best = scenes.best_texts(image)
        assert [hit.text for hit in query.hits] == [scenes.texts[text] for text in best]
        assert query.is_match == [scenes.is_match(image, text) for text in best]
        assert query.truth.text in scenes.true_captions[image]
        (overlay,) = Eve(run).explain(scenes.images[image], query.truth.text).overlays()
        assert (report.explained(query).heatmaps[0] == overlay).all()
    is_first_right = [query.is_match[0] for query in by_text]
    assert is_first_right == sorted(is_first_right, reverse=True)


def test_page_frames_true_hits(run_folder: Path):
    report = RetrievalReport(load_run(run_folder), evaluated)
    dataset = report.dataset(200, for_evaluation=True)
    by_text, by_image = report.searches(dataset, report.num_examples)
    page = (run_folder / "report.html").read_text()
    hit_lists = re.findall(r'<ol class="hits \w+">(.*?)</ol>', page)
    for hits, query in zip(hit_lists, [*by_text, *by_image], strict=True):
        labels = re.findall(r'<li class="(right|wrong)">', hits)
        assert [label == "right" for label in labels] == query.is_match
        if query.item.images:
            texts = re.findall(r'<li class="\w+">(.*?)</li>', hits)
            assert [html.unescape(text) for text in texts] == [hit.text for hit in query.hits]


def matching_head(*, num_right: int):
    """Return rerank_scores of a head that is right about the first candidates only."""

    def scores(_task: Retrieval, gallery: Gallery, *candidates: Tensor) -> list[Tensor]:
        directions = (gallery.relevance.texts_of_image, gallery.relevance.images_of_text)
        scores_by_direction = []
        for candidate_QK, relevance in zip(candidates, directions, strict=True):
            matches = relevance.candidate_M.tensor_split(relevance.start_Q1[1:-1])
            rows = []
            for candidate_K, match_M in zip(candidate_QK, matches, strict=True):
                rows.append(torch.isin(candidate_K.cpu(), match_M.cpu()).float())
            score_QK = torch.stack(rows)
            score_QK[:, num_right:] = 2 - 4 * score_QK[:, num_right:]
            scores_by_direction.append(score_QK)
        return scores_by_direction

    return scores


def test_reranking_chosen_in_validation_goes_with_the_weights(
    pretrained: Path, tmp_path: Path, monkeypatch
):
    module = "eve_vl.tasks.retrieval.rerank_choice"
    monkeypatch.setattr(f"{module}.rerank_scores", matching_head(num_right=8))
    config = finetuned(pretrained, "retrieval", tmp_path / "run", steps=2)
    page = Page(trained(config))
    run = load_run(config.out)
    assert read_config(config.out).task == config.task
    assert run.task.settings.rerank == 8
    best = read_numbers(config.out / "metrics.json")
    assert best["rerank_k"] == 8
    assert best["r_mean"] > best["r_mean_itc_only"]
    for flags, k in (
        ({}, 8),
        ({"rerank": 2}, 2),
        ({"rerank": 0}, 0),
        ({"rerank": 16}, 16),
    ):
        numbers = evaluated(run, NUM_VAL, flags=flags).numbers
        expected = best[f"r_mean_k{k}"] if k else best["r_mean_itc_only"]
        assert numbers["rerank_k"] == k
        assert numbers["r_mean"] == pytest.approx(expected)
        assert numbers["r_mean_itc_only"] == pytest.approx(best["r_mean_itc_only"])
        assert not any(name.startswith("r_mean_k") for name in numbers)

    check_rerank_note(config.out, f"the best 8 (r_mean {best['r_mean']:.3f}")
    assert "Re-ranked candidates per query: the best 8, chosen in validation." in page.text
    means = f"{percent(best['r_mean_itc_only'])} with ITC only, {percent(best['r_mean_k16'])}"
    assert f"{means} with 16" in page.text
    for name in ("tr1", "tr5", "tr10", "ir1", "ir5", "ir10"):
        k = name[2:]
        assert f"R@{k}, re-ranked: {percent(best[name])}" in page.text
        assert f"R@{k}, contrast only: {percent(best[f'{name}_itc_only'])}" in page.text

    train(replace(config, train=replace(config.train, steps=3)))  # resumes with its own config
    assert read_config(config.out).task == config.task


def check_rerank_note(folder: Path, choice: str) -> None:
    """One note says what validation chose."""
    start = "of 16, 8, 4, 2 or no candidates to re-rank, validation chose "
    notes = [row["text"] for row in read_log(folder) if row["kind"] == "note"]
    (note,) = (text for text in notes if text.startswith(start))
    assert note.startswith(start + choice)


def test_page_of_a_run_whose_validation_chose_not_to_rerank(run_folder: Path):
    best = read_numbers(run_folder / "metrics.json")
    assert best["rerank_k"] == load_run(run_folder).task.settings.rerank == 0
    check_rerank_note(run_folder, "none: not even the best")
    page = Page(run_folder / "report.html")
    assert "Re-ranked candidates per query: none, chosen in validation." in page.text
    for name in ("tr1", "tr5", "tr10", "ir1", "ir5", "ir10"):
        assert f"R@{name[2:]}, contrast: {percent(best[name])}" in page.text


def test_page_without_matching_head_and_from_scratch(pretrained: Path, tmp_path: Path):
    task = {"itm_weight": 0.0, "rerank": 0, "itm_batchnorm": False}
    config = finetuned(pretrained, "retrieval", tmp_path / "run", steps=1, task=task)
    page = Page(trained(replace(config, scratch=True)))
    assert f"random weights (shape and tokenizer of {pretrained})" in page.text
    assert "--scratch" in page.text
    assert "contrast only" not in page.text.partition("Searches over ")[0]
    assert "_itc_only" not in page.text
    assert "Heat" not in page.text
    assert not any("heat" in alt for alt in page.images)


def test_search_leaves_out_unreadable_images(pretrained: Path, tmp_path: Path):
    """Hits and true images stay those of their captions."""
    rows = []
    for index in range(12):
        Image.new("RGB", (40, 40), (20 * index, 90, 200)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "caption": f"the image with number {index}"})
    for index in (0, 5):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    source = (str(write_jsonl(tmp_path / "pairs.jsonl", rows)),)
    data = {
        "train": source,
        "val": source,
        "skip_invalid_val": True,
        "max_invalid_fraction": 1.0,
    }
    config = finetuned(pretrained, "retrieval", tmp_path / "run", steps=1, data=data)
    run = load_run(trained(config).parent)
    report = RetrievalReport(run, evaluated)
    by_text, _ = report.searches(report.dataset(100, for_evaluation=True), 6)
    assert by_text
    for query in by_text:
        index = int(query.item.text.split()[-1])
        assert query.truth.images["image"][0, 0].tolist() == [20 * index, 90, 200]
