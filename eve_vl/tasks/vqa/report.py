"""The page of a run that answers questions."""

from collections.abc import Iterator, Mapping, Sequence
from math import nan

from markupsafe import Markup

from eve_vl.data.kinds.questions import QuestionBatch
from eve_vl.metrics.vqa import accuracy_of
from eve_vl.pages.charts import NUM_COLORS, Bars, bar_chart
from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.number_formats import percent
from eve_vl.pages.numbers import Card, NumberGroup, draw_numbers, missing_numbers
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.examples import Example, best_choices
from eve_vl.tasks.report import Measured
from eve_vl.utils.console import pluralize

NUM_CHOICES = 3
WUPS = {
    "wups_0.9": "WUPS at 0.9: credit for words that mean almost the same, by WordNet.",
    "wups_0.0": "WUPS at 0.0: credit for words by their similarity in WordNet.",
}
BASELINES = {
    "vqa_acc_blind": "Without the image: the most frequent training answer to the same question.",
    "vqa_acc_majority": "Baseline: the most frequent training answer to every question.",
    "vqa_acc_words": "Without the image: naive Bayes on the words of the question.",
    "vqa_acc_noise": "The model with noise of the same histogram as the image.",
    "vqa_acc_wrong_image": "The model with another image of the same group or the same question.",
    "vqa_acc_image_only": "The model without the question.",
    "vqa_acc_pair": "Share of minimal pairs (two questions with different answers) with both "
    "answers right.",
}


class VQAReport(ClassifierReport):
    """Accuracy next to guesses from the question without the image."""

    name = "vqa"
    title = "Questions"
    row = "question"
    heat_for = "the first answer"
    has_baselines = True
    losses = (
        Loss("vqa", "Answer loss", "Binary cross-entropy of the answers, summed over the list."),
    )

    def examples(self, batch: QuestionBatch) -> Iterator[Example]:
        """Yield the questions with the best answers."""
        answer_list = self.task.answers
        probability_BA = self.task.predict(batch)[0].float().sigmoid()
        for row, answers in enumerate(batch.answers):
            choices = best_choices(
                probability_BA[row],
                NUM_CHOICES,
                text=answer_list.__getitem__,
                is_right=lambda index, answers=answers: is_right(answer_list[index], answers),
            )
            yield self.example(
                batch,
                row,
                choices,
                text=batch.questions[row],
                truth=", ".join(dict.fromkeys(answers)),
                kind=batch.answer_types[row],
            )

    def numbers(self, measured: Measured) -> Markup:
        """Return the accuracy next to baselines, and by type of answer and content, as HTML."""
        values = measured.values
        if "vqa_acc" not in values:
            return missing_numbers("There are no numbers: the questions have no answers.")
        num_questions = pluralize(values["num_questions"] - values["num_unanswered"], "question")
        sentence = f"VQA v2 accuracy of the model's answers to {num_questions}."
        cards = [Card("vqa_acc", values["vqa_acc"], sentence, is_main=True)]
        for name, sentence in (WUPS | BASELINES).items():
            if name in values:
                is_main = name == "vqa_acc_pair"
                cards.append(Card(name, values[name], sentence, is_main=is_main))

        missing = ""
        if "vqa_acc_blind" not in values:
            missing = (
                "The training questions cannot be read, so baselines without the image are missing."
            )
        charts = [
            accuracy_bars("Accuracy by answer type", "vqa_acc/", "answer type", values),
            accuracy_bars("Accuracy by content type", "vqa_acc_about/", "content type", values),
        ]
        charts = [chart for chart in charts if chart]
        return draw_numbers([NumberGroup("Answers", cards, missing=missing)], charts=charts)

    def charts(self, curves: Curves) -> list[Markup]:
        """Return charts of the accuracy, also by type of answer."""
        charts = []
        if "vqa_acc" in curves.names():
            lines = [
                curves.train("target_acc", "best answer's target, training"),
                curves.val("vqa_acc", "validation"),
            ]
            charts.append(curves.shares("Answer accuracy", lines, "Higher is better."))
        names = sorted(curves.names("vqa_acc/"))
        if 1 < len(names) <= NUM_COLORS:
            lines = [curves.val(name, name.removeprefix("vqa_acc/")) for name in names]
            charts.append(curves.shares("Answer accuracy by type", lines))
        return charts


def is_right(answer: str, answers: Sequence[str]) -> bool:
    """Return whether an annotator gave an answer."""
    return bool(answers) and accuracy_of(answer, answers) > 0


def accuracy_bars(title: str, prefix: str, axis: str, values: Mapping[str, float]) -> Markup:
    """Return a chart of the accuracies whose names start with a prefix; "" if there are none."""
    names = [name for name in values if name.startswith(prefix)]
    if not names:
        return Markup("")
    labels = [name.removeprefix(prefix) for name in names]
    bars = [Bars("model", [values[name] for name in names])]
    if "vqa_acc_blind" in values:
        baseline_names = [name.replace("vqa_acc", "vqa_acc_blind") for name in names]
        bars.append(Bars("without the image", [values.get(name, nan) for name in baseline_names]))
    return bar_chart(title, labels, bars, show=percent, axis=axis)
