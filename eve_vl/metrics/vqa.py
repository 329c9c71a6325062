"""VQA: official accuracy, training targets, and the list of answers.

Checked against vqaEval.py of the VQA v2 evaluation tools, oddities included, since scores must match the official server.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from eve_vl.metrics import intervals

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # the official look-behind for digits is misspelt and always holds
MAX_PERIODS = (
    32  # the official call passes re.UNICODE, which is 32, where the number of replacements belongs
)
ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}

# Words without one of their apostrophes get it back. The official entries for "I" are missing here, because words are lower
# case by then and cannot match. The two entries that map to themselves are missing too.
CONTRACTED = """
    ain't aren't can't couldn't couldn't've could've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've shouldn't shouldn't've should've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've weren't we've what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't wouldn't wouldn't've would've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in CONTRACTED.split()
    for at, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(1 << 16)  # annotators repeat few answers
def normalize(answer: str) -> str:
    """Return the normal form of an answer, compared officially if annotators disagree.

    Punctuation goes (or becomes a space, if it touches no space and no number has a comma), periods go unless a digit
    follows, then lower case, number words up to ten as digits, no articles, apostrophes put back, single spaces.
    The result can be empty ("The").
    """
    answer = _strip(answer)
    has_comma_in_number, text = COMMA_IN_NUMBER.search(answer) is not None, answer
    for mark in PUNCTUATION:
        is_dropped = has_comma_in_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if is_dropped else " ")
    text = PERIOD.sub("", text, count=MAX_PERIODS)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_targets(answers: Sequence[str]) -> dict[str, float]:
    """Return the training target of each normalised answer of a question, in (0, 1].

    1, 2, 3 and more annotators in agreement give 0.3, 0.6, 0.9 and 1.0; the answer of a single annotator gives 1.0.
    For ten annotators this equals `accuracy_of`, unless all ten agree on an answer that is not in normal form. For other
    numbers of annotators the two differ.
    """
    if len(answers) == 1:
        return {normalize(answers[0]): 1.0}
    counts = Counter(normalize(answer) for answer in answers)
    return {answer: (0.3, 0.6, 0.9, 1.0)[min(count, 4) - 1] for answer, count in counts.items()}


def build_answers(all_answers: Iterable[Sequence[str]], min_count: int) -> list[str]:
    """Return the answer vocabulary, most frequent first, ties in alphabetical order.

    all_answers: the annotators' answers of each training question. A question counts for its most frequent normalised answer,
    the first among ties. Answers with fewer than min_count questions are left out.
    """
    votes = [
        Counter(normalize(answer) for answer in answers).most_common(1) for answers in all_answers
    ]
    counts = Counter(answer for vote in votes for answer, _ in vote)
    frequent = (answer for answer in counts if answer and counts[answer] >= min_count)
    return sorted(frequent, key=lambda answer: (-counts[answer], answer))


def accuracy_of(prediction: str, answers: Sequence[str]) -> float:
    """Return the official accuracy of one question, in [0, 1].

    Each annotator in turn is left out, and the prediction earns a third, at most 1, for each of the others who agrees with it.
    The accuracy is the mean. With ten annotators, 1, 2, 3 and 4 in agreement give 0.3, 0.6, 0.9 and 1. The rule holds for any
    number from 2, so that two annotators allow at most 1/3, and three 2/3. Both sides are normalised, unless the annotators are
    unanimous, as officially. A single answer has no others: 1 if both are equal once normalised, otherwise 0.
    Raises ValueError if there is no answer.
    """
    if not answers:
        raise ValueError("a question without answers cannot be scored")
    if len(answers) == 1:
        return float(normalize(prediction) == normalize(answers[0]))
    prediction, answers = _strip(prediction), [_strip(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize(prediction), [normalize(answer) for answer in answers]
    agreeing = answers.count(prediction)
    thirds = agreeing * min(3, agreeing - 1) + (len(answers) - agreeing) * min(3, agreeing)
    return thirds / (3 * len(answers))


def summary(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    answer_types: Sequence[str],
    images: Sequence[Hashable] | None = None,
    content_types: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> dict[str, float]:
    """Return the metrics of a set of questions; all sequences run over the questions.

    vqa_acc: mean accuracy in [0, 1]; vqa_acc/<type> for each answer type that is not "", as open and closed;
    vqa_acc_about/<type> for each content type. vqa_acc_pair: share of minimal pairs (groups of two questions) with both right.
    num_questions: all questions. num_unanswered: questions without answers, which are not scored. Means over no question are
    left out. images: image of each question; it groups questions for the intervals.
    """
    scores: dict[str, list[tuple[float, Hashable]]] = {}
    pairs: dict[str, list[float]] = {}
    num = len(answers)
    columns = images or range(num), content_types or [""] * num, groups or [""] * num
    for prediction, given, kind, image, content, group in zip(
        predictions, answers, answer_types, *columns, strict=True
    ):
        if given:
            score = accuracy_of(prediction, given)
            of_types = [f"vqa_acc/{kind}"] * bool(kind) + [f"vqa_acc_about/{content}"] * bool(
                content
            )
            for name in ("vqa_acc", *of_types):
                scores.setdefault(name, []).append((score, image))
            if group:
                pairs.setdefault(group, []).append(score)
    found: dict[str, float] = {
        name: intervals.mean(*zip(*scores[name], strict=True), is_share=True)
        for name in sorted(scores)
    }
    both = [min(pair) == 1 for pair in pairs.values() if len(pair) == 2]
    found |= {"vqa_acc_pair": intervals.share(sum(both), len(both))} if both else {}
    return found | {"num_questions": num, "num_unanswered": sum(not given for given in answers)}


def answers_by_question(
    train: Iterable[tuple[str, Sequence[str]]], questions: Sequence[str]
) -> list[str]:
    """Return, without the images, the most frequent training answer to each question.

    train: question and answers of each training row; some have answers. New questions get the most frequent answer of all.
    """
    given: dict[str, list[Sequence[str]]] = {}
    for question, row in train:
        given.setdefault(question, []).append(row)
    most_frequent = build_answers((row for rows in given.values() for row in rows), 1)[0]
    best = {
        question: next(iter(build_answers(given.get(question, ()), 1)), most_frequent)
        for question in set(questions)
    }
    return [best[question] for question in questions]


def answers_by_words(
    train: Iterable[tuple[str, Sequence[str]]], questions: Sequence[str]
) -> list[str]:
    """Return, without the images, the likeliest answer to each question by its words.

    Naive Bayes over the words of a question, with one added to each count and the full prior of each answer; it answers new
    wordings too. train: question and answers of each training row, which counts for its most frequent answer.
    """
    rows = [(set(question.lower().split()), build_answers([given], 1)) for question, given in train]
    names = build_answers((best for _, best in rows if best), 1)
    answer_of = {name: index for index, name in enumerate(names)}
    word_of = {
        word: index for index, word in enumerate(sorted(set().union(*(words for words, _ in rows))))
    }
    count_AW, count_A = np.zeros((len(names), len(word_of))), np.zeros(len(names))
    for words, best in rows:
        if best:
            count_A[answer_of[best[0]]] += 1
            count_AW[answer_of[best[0]], [word_of[word] for word in words]] += 1
    log_AW, log_A = np.log((count_AW + 1) / (count_A[:, None] + 2)), np.log(count_A / count_A.sum())
    answers = {}
    for question in set(questions):
        columns = [word_of[word] for word in set(question.lower().split()) & word_of.keys()]
        answers[question] = names[int((log_A + log_AW[:, sorted(columns)].sum(1)).argmax())]
    return [answers[question] for question in questions]
