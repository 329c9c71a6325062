"""Pages of runs that answer questions and judge statements: outputs are the model's."""

import html
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.data.row_dataset import eval_positions
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.eve import Eve
from eve_vl.pages.number_formats import percent
from eve_vl.report.page import write_report
from eve_vl.run.loading import load_run
from eve_vl.synthetic.scenes.rows import SceneQuestions, SceneStatements
from eve_vl.tasks.evaluator import evaluator_of
from helpers.report_page import NUM_VAL, Page, drawn_pixels, finetuned, trained
from helpers.source_files import write_jsonl


@dataclass
class ExampleCard:
    """An example on a page."""

    label: str
    html: str

    @property
    def alts(self) -> list[str]:
        """Names of its images."""
        return [html.unescape(alt) for alt in re.findall(r'alt="(.*?)"', self.html)]

    @property
    def row(self) -> int:
        """Its row in the validation data."""
        return int(re.findall(r"val\[(\d+)\]", self.html)[0])

    @property
    def choices(self) -> dict[str, float]:
        """Choice → its percentage."""
        pattern = r"<span>(\w+)</span><span>([\d.]+) %</span>"
        return {text: float(share) for text, share in re.findall(pattern, self.html)}


def example_cards(page: Path) -> list[ExampleCard]:
    pattern = r'<article class="card example (\w+)">(.*?)</article>'
    matches = re.findall(pattern, page.read_text(), re.DOTALL)
    return [ExampleCard(*match) for match in matches]


def test_answers_are_those_of_the_model(finetuned_runs: dict[str, Path]):
    path = finetuned_runs["vqa"] / "report.html"
    eve = Eve.load(finetuned_runs["vqa"])
    page = Page(path)
    cards = example_cards(path)
    assert [card.label for card in cards] == ["right"] * 6 + ["wrong"] * 6
    rows = SceneQuestions(split="val", image_size=32)
    for card in cards:
        row = rows[card.row]
        pixels = drawn_pixels(row.image)
        assert row.question in card.html
        assert f"truth</span> {row.answers[0]}<" in card.html
        answers = eve.answer(pixels, row.question, top=3)
        assert [*card.choices] == [answer.answer for answer in answers]
        shares = [100 * answer.probability for answer in answers]
        assert [*card.choices.values()] == pytest.approx(shares, abs=0.06)
        assert (card.label == "right") == (answers[0].answer == row.answers[0])

        image, heatmap = (page.images[alt] for alt in card.alts)
        assert (image == pixels).all()
        heat = eve.explain(pixels, row.question, answer=answers[0].answer)
        assert (heatmap == heat.overlays()[0]).all()
    answer_types = {rows[card.row].answer_type for card in cards[6:]}
    assert len(answer_types) >= 3


def test_judgements_are_those_of_the_model(finetuned_runs: dict[str, Path]):
    path = finetuned_runs["nlvr2"] / "report.html"
    eve = Eve.load(finetuned_runs["nlvr2"])
    page = Page(path)
    cards = example_cards(path)
    assert [card.label for card in cards] == ["right"] * 6 + ["wrong"] * 6
    rows = SceneStatements(split="val", image_size=32)
    for card in cards:
        row = rows[card.row]
        images = [drawn_pixels(row.left), drawn_pixels(row.right)]
        overlays = eve.explain(images, row.statement).overlays()
        for alt, pixels in zip(card.alts, [*images, *overlays], strict=True):
            assert (page.images[alt] == pixels).all()

        judgement = eve.verify(*images, row.statement)
        true_share = 100 * judgement.probability
        assert row.statement in card.html
        shares = {"true": true_share, "false": 100 - true_share}
        assert card.choices == pytest.approx(shares, abs=0.06)
        assert next(iter(card.choices)) == ("true" if judgement.is_true else "false")
        assert (card.label == "right") == (judgement.is_true == row.label)


def test_numbers_stand_next_to_their_baselines(finetuned_runs: dict[str, Path]):
    page = Page(finetuned_runs["nlvr2"] / "report.html")
    rows = SceneStatements(split="val", image_size=32)
    labels = [rows[row].label for _, _, row in eval_positions([len(rows)], NUM_VAL)]
    true_share = labels.count(True) / len(labels)
    assert f"majority{percent(max(true_share, 1 - true_share))}" in page.text
    assert "Consistency" not in page.text  # the rows are not all pairs of their statements

    page = Page(finetuned_runs["vqa"] / "report.html")
    run = load_run(finetuned_runs["vqa"])
    comparison = evaluator_of(run.task).comparison(evaluated(run, NUM_VAL).numbers)
    assert "answering without the image" in comparison
    assert comparison in page.text
    assert "without a baseline" not in page.text.partition("Curves")[0]


@pytest.fixture
def own_questions(tmp_path: Path) -> list[dict]:
    """Twelve questions with several annotators, without answer types, with markup in words."""
    rows = []
    for index in range(12):
        Image.new("RGB", (40, 40), (20 * index, 90, 200)).save(tmp_path / f"{index}.png")
        answers = ["<b>red</b>", "<b>red</b>", "blue"] if index % 2 else ["green"] * 3
        row = {
            "image": f"{index}.png",
            "question": f"<script>alert(1)</script> what \"is\" 'this' </p> {index}",
            "answers": answers,
            "question_id": index,
        }
        rows.append(row)
    return rows


def test_own_questions_with_and_without_answers(
    own_questions: list[dict], pretrained: Path, tmp_path: Path
):
    source = write_jsonl(tmp_path / "questions.jsonl", own_questions)
    config = finetuned(
        pretrained,
        "vqa",
        tmp_path / "run",
        steps=1,
        data={
            "train": (str(source),),
            "val": (str(source),),
        },
        task={"min_answer_count": 1},
    )
    page = Page(trained(replace(config, recipe="vqa")))
    assert "script" not in page.tags
    assert own_questions[0]["question"] in page.text
    assert "truth <b>red</b>, blue" in page.text
    assert "by answer type" not in page.text
    assert " of 12 questions right" in page.text

    write_jsonl(source, [{key: row[key] for key in ("image", "question")} for row in own_questions])
    path = write_report(tmp_path / "run")
    page = Page(path)
    assert "Truth unknown" in page.text
    assert "✓" not in page.text
    assert "baselines without the image are missing" in page.text
    assert [card.label for card in example_cards(path)] == ["unknown"] * 12
    assert "The model gets 0 of 12 questions right, spread over the validation data." in page.text
