"""What the page shows of visual question answering.

Letters: B batch, A answers.
"""

from collections.abc import Iterator

from markupsafe import Markup

from eve_vl.data.kinds.questions import QuestionBatch
from eve_vl.metrics import vqa as metrics
from eve_vl.report.charts import bar_chart
from eve_vl.report.curves import Loss
from eve_vl.report.task import NUM_CHOICES, ClassifierReport, Example, Measured, best_choices, pixels_of
from eve_vl.tasks.vqa import VQA


class VQAReport(ClassifierReport):
    """Accuracy beside what the words of a question give away."""

    task: VQA
    name = "vqa"
    title, template = "Questions", "vqa.html"
    row = "question"
    heat_for = "the first answer"
    has_baselines = True
    losses = (Loss("vqa", "Answer loss", "Binary cross-entropy of the answers, summed over the list."),)

    def examples(self, batch: QuestionBatch) -> Iterator[Example]:
        """Yield the questions with the best answers."""
        labels, probability_BA = self.task.answers, self.task.predict(batch)[0].float().sigmoid()
        for row, given in enumerate(batch.answers):

            def is_right(index: int, given=given) -> bool:
                return bool(given) and metrics.accuracy_of(labels[index], given) > 0

            yield Example(
                where=batch.where[row],
                images={"image": pixels_of(batch.images_BCHW[row])},
                text=batch.questions[row],
                choices=best_choices(probability_BA[row], NUM_CHOICES, labels.__getitem__, is_right),
                truth=", ".join(dict.fromkeys(given)),
                kind=batch.answer_types[row],
            )

    def numbers(self, measured: Measured) -> Markup:
        """Return accuracy, over all and by type of answer."""
        return self.draw("numbers", values=measured.values, bar_chart=bar_chart)
