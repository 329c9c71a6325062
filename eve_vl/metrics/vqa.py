"""VQA: official accuracy, training targets, and the list of answers.

Checked against vqaEval.py of the VQA v2 evaluation tools, oddities included, since scores must
match the official server.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from eve_vl.metrics import intervals
from eve_vl.metrics.answer_form import normalize, strip

SCORE_OF_VOTES = (0.3, 0.6, 0.9, 1.0)
"""Training target of an answer of 1, 2, 3, and 4 or more annotators."""


def accuracy_of(prediction: str, answers: Sequence[str]) -> float:
    """Return the official accuracy of one question, in [0, 1].

    Each annotator in turn is left out, and the prediction earns a third, at most 1, for each of the
    others who agrees with it. The accuracy is the mean. With ten annotators, 1, 2, 3 and 4 in
    agreement give 0.3, 0.6, 0.9 and 1. The rule holds for any number from 2, so that two annotators
    allow at most 1/3, and three 2/3. Both sides are normalised, unless the annotators are
    unanimous, as officially. A single answer has no others: 1 if both are equal once normalised,
    otherwise 0. Raises ValueError if there is no answer.
    """
    if not answers:
        raise ValueError("a question without answers cannot be scored")
    if len(answers) == 1:
        return float(normalize(prediction) == normalize(answers[0]))

    prediction = strip(prediction)
    answers = [strip(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction = normalize(prediction)
        answers = [normalize(answer) for answer in answers]
    num_agreeing = answers.count(prediction)
    num_disagreeing = len(answers) - num_agreeing
    thirds = num_agreeing * min(3, num_agreeing - 1) + num_disagreeing * min(3, num_agreeing)
    return thirds / (3 * len(answers))


def soft_targets(answers: Sequence[str]) -> dict[str, float]:
    """Return the training target of each normalised answer of a question, in (0, 1].

    1, 2, 3 and more annotators in agreement give 0.3, 0.6, 0.9 and 1.0; the answer of a single
    annotator gives 1.0. For ten annotators this equals `accuracy_of`, unless all ten agree on an
    answer that is not in normal form. For other numbers of annotators the two differ.
    """
    if len(answers) == 1:
        return {normalize(answers[0]): 1.0}
    votes = Counter(normalize(answer) for answer in answers)
    return {answer: SCORE_OF_VOTES[min(count, 4) - 1] for answer, count in votes.items()}


def build_answers(all_answers: Iterable[Sequence[str]], min_count: int) -> list[str]:
    """Return the answer vocabulary, most frequent first, ties in alphabetical order.

    all_answers: the annotators' answers of each training question. A question counts for its most
    frequent normalised answer, the first among ties. Answers with fewer than min_count questions
    are left out.
    """
    counts = Counter[str]()
    for answers in all_answers:
        votes = Counter(normalize(answer) for answer in answers)
        for answer, _ in votes.most_common(1):
            counts[answer] += 1
    frequent = [answer for answer in counts if answer and counts[answer] >= min_count]
    return sorted(frequent, key=lambda answer: (-counts[answer], answer))


def summary(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    answer_types: Sequence[str],
    images: Sequence[Hashable] | None = None,
    content_types: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> dict[str, float]:
    """Return the metrics of a set of questions; all sequences run over the questions.

    vqa_acc: mean accuracy in [0, 1]; vqa_acc/<type> for each answer type that is not "", as open
    and closed; vqa_acc_about/<type> for each content type. vqa_acc_pair: share of minimal pairs
    (groups of two questions) with both right. num_questions: all questions. num_unanswered:
    questions without answers, which are not scored. Means over no question are left out. images:
    image of each question; it groups questions for the intervals.
    """
    num_questions = len(answers)
    images = images or range(num_questions)
    content_types = content_types or [""] * num_questions
    groups = groups or [""] * num_questions
    rows = zip(predictions, answers, answer_types, images, content_types, groups, strict=True)

    scores: dict[str, list[float]] = {}
    scored_images: dict[str, list[Hashable]] = {}
    group_scores: dict[str, list[float]] = {}
    for prediction, question_answers, answer_type, image, content_type, group in rows:
        if not question_answers:
            continue
        names = ["vqa_acc"]
        if answer_type:
            names.append(f"vqa_acc/{answer_type}")
        if content_type:
            names.append(f"vqa_acc_about/{content_type}")
        score = accuracy_of(prediction, question_answers)
        for name in names:
            scores.setdefault(name, []).append(score)
            scored_images.setdefault(name, []).append(image)
        if group:
            group_scores.setdefault(group, []).append(score)

    numbers: dict[str, float] = {}
    for name in sorted(scores):
        numbers[name] = intervals.mean(scores[name], scored_images[name], is_share=True)
    is_pair_right = [min(pair) == 1 for pair in group_scores.values() if len(pair) == 2]
    if is_pair_right:
        numbers["vqa_acc_pair"] = intervals.share(sum(is_pair_right), len(is_pair_right))
    numbers["num_questions"] = num_questions
    numbers["num_unanswered"] = num_questions - len(scores.get("vqa_acc", ()))
    return numbers
