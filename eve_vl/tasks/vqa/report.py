"""The page of a run that answers questions."""

from collections.abc import Iterator

from eve_vl.data.kinds.questions import QuestionBatch
from eve_vl.metrics.vqa import accuracy_of
from eve_vl.pages.drawing import Loss
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.report import Example, best_choices

NUM_CHOICES = 3


class VQAReport(ClassifierReport):
    """Accuracy next to guesses from the question without the image."""

    name = "vqa"
    title, template = "Questions", "vqa.html"
    row = "question"
    heat_for = "the first answer"
    has_baselines = True
    losses = (
        Loss("vqa", "Answer loss", "Binary cross-entropy of the answers, summed over the list."),
    )

    def examples(self, batch: QuestionBatch) -> Iterator[Example]:
        """Yield the questions with the best answers."""
        labels, probability_BA = self.task.answers, self.task.predict(batch)[0].float().sigmoid()
        for row, given in enumerate(batch.answers):
            is_right = lambda c, given=given: bool(given) and accuracy_of(labels[c], given) > 0  # noqa: E731
            choices, truth = (
                best_choices(probability_BA[row], NUM_CHOICES, labels.__getitem__, is_right),
                dict.fromkeys(given),
            )
            yield self.example(
                batch, row, choices, batch.questions[row], ", ".join(truth), batch.answer_types[row]
            )
