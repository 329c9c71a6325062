"""What the page shows of visual question answering.

Letters: B batch, A answers.
"""

from collections.abc import Iterator
from typing import ClassVar

from eve_vl.data.batch import QuestionBatch
from eve_vl.metrics import vqa as metrics
from eve_vl.report.charts import bar_chart
from eve_vl.report.curves import Curves, Loss
from eve_vl.report.html import card_group, missing, percent, points, share_card
from eve_vl.report.task import NUM_CHOICES, ClassifierReport, Example, Measured, best_choices, pixels_of
from eve_vl.tasks.vqa import VQA, training_questions

MAX_TYPES = 6  # colours of lines
NAN = float("nan")


class VQAReport(ClassifierReport):
    """Accuracy beside what the words of a question give away."""

    name = "vqa"
    title = "Questions"
    rows = "questions"
    heat_for = "the first answer"
    losses: ClassVar[tuple[Loss, ...]] = (
        Loss(term="vqa", title="Answer loss", note="Binary cross-entropy of the answers, summed over the list."),
    )

    def examples(self, batch: QuestionBatch) -> Iterator[Example]:
        """Yield the questions with the best answers."""
        assert isinstance(self.run.task, VQA)
        labels, probability_BA = self.run.task.answers, self.run.task.predict(batch)[0].float().sigmoid()
        for row, given in enumerate(batch.answers):

            def is_right(index: int, given=given) -> bool:
                return bool(given) and metrics.accuracy_of(labels[index], given) > 0

            yield Example(
                where=batch.where[row],
                pictures={"picture": pixels_of(batch.images_BCHW[row])},
                text=batch.questions[row],
                choices=best_choices(probability_BA[row], NUM_CHOICES, labels.__getitem__, is_right),
                truth=", ".join(dict.fromkeys(given)),
                kind=batch.answer_types[row],
            )

    def numbers(self, measured: Measured) -> str:
        """Return accuracy, over all and by type of answer."""
        values = measured.values
        if "vqa_acc" not in values:
            return missing("The questions come without answers, so there is nothing to compare with.")
        num = int(values["num_questions"] - values["num_unanswered"])
        sentence = f"Official accuracy of the model's answers to {num:,} questions, annotators counted as in VQA v2."
        cards, verdict = [share_card("vqa_acc", values["vqa_acc"], sentence, is_main=True)], ""
        blind = self.blind(measured.num_samples)
        if blind:
            gain = points(values["vqa_acc"] - blind["vqa_acc"])
            verdict = f"Looking at the picture is worth <b>{gain} points</b> over answering from the question's words."
            sentence = "Blind: giving the most frequent training answer to the same words, without the picture."
            cards.append(share_card("vqa_acc_blind", blind["vqa_acc"], sentence))
            sentence = "Giving the most frequent training answer to everything."
            cards.append(share_card("vqa_acc_majority", blind["majority"], sentence))
        body = card_group("Answers", verdict, cards)
        if not blind:
            body += missing("The training questions cannot be read here, so blind baselines are left out.")
        names = [name for name in values if name.startswith("vqa_acc/")]
        if names:
            by_type = [("model", [values[name] for name in names])]
            if blind:
                by_type.append(("blind", [blind.get(name, NAN) for name in names]))
            types = [name.partition("/")[2] for name in names]
            chart = bar_chart("Accuracy by answer type", types, by_type, show=percent, axis="answer type")
            body += f'<div class="charts">{chart}</div>'
        return body

    def blind(self, num_samples: int) -> dict[str, float]:
        """Return what answers from the question's words alone come to, by the names of the metrics, and `majority`; empty if
        the training questions cannot be read or no answer is known."""
        train = training_questions(self.run.config)
        rows = [row for row in self.records(num_samples) if row.answers]
        if not train or not rows:
            return {}
        answers = [row.answers for row in rows]
        guesses = metrics.blind_answers(train, [row.question for row in rows])
        majority = metrics.majority_baseline((given for _, given in train), answers)
        return metrics.summary(guesses, answers, [row.answer_type for row in rows]) | {"majority": majority}

    def charts(self, curves: Curves) -> list[str]:
        """Return accuracy over the run."""
        charts = []
        if any("vqa_acc" in row for row in curves.log):
            lines = [curves.train("target_acc", "best answer's target, training"), curves.val("vqa_acc", "validation")]
            charts.append(curves.shares("Answer accuracy", lines, "Higher is better."))
        types = sorted({key for row in curves.log for key in row if key.startswith("vqa_acc/")})
        if 1 < len(types) <= MAX_TYPES:
            lines = [curves.val(key, key.partition("/")[2]) for key in types]
            charts.append(curves.shares("Answer accuracy by type", lines))
        return charts
