"""Answers to questions without their images, as baselines of VQA.

Letters: A answers, W words.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from eve_vl.metrics.vqa import build_answers


def answers_by_question(
    train: Iterable[tuple[str, Sequence[str]]], questions: Sequence[str]
) -> list[str]:
    """Return, without the images, the most frequent training answer to each question.

    train: question and answers of each training row. New questions get the most frequent answer of
    all; it is "" if no row has an answer.
    """
    answers_of_question: dict[str, list[Sequence[str]]] = {}
    for question, answers in train:
        answers_of_question.setdefault(question, []).append(answers)
    all_answers = [answers for rows in answers_of_question.values() for answers in rows]
    default = [*build_answers(all_answers, 1), ""][0]

    best = {}
    for question in set(questions):
        frequent = build_answers(answers_of_question.get(question, ()), 1)
        best[question] = frequent[0] if frequent else default
    return [best[question] for question in questions]


def answers_by_words(
    train: Iterable[tuple[str, Sequence[str]]], questions: Sequence[str]
) -> list[str]:
    """Return, without the images, the likeliest answer to each question by its words.

    Naive Bayes over the words of a question, with one added to each count and the full prior of
    each answer; it answers new wordings too. train: question and answers of each training row,
    which counts for its most frequent answer. The answer is "" if no row has one.
    """
    rows = []
    all_words = set[str]()
    for question, answers in train:
        words = _words(question)
        all_words |= words
        for answer in build_answers([answers], 1)[:1]:
            rows.append((words, answer))
    names = build_answers([[answer] for _, answer in rows], 1)
    if not names:
        return [""] * len(questions)

    answer_index = {name: index for index, name in enumerate(names)}
    word_index = {word: index for index, word in enumerate(sorted(all_words))}
    count_AW = np.zeros((len(names), len(word_index)))
    count_A = np.zeros(len(names))
    for words, answer in rows:
        count_A[answer_index[answer]] += 1
        count_AW[answer_index[answer], [word_index[word] for word in words]] += 1
    log_AW = np.log((count_AW + 1) / (count_A[:, None] + 2))
    log_A = np.log(count_A / count_A.sum())

    best = {}
    for question in set(questions):
        columns = sorted(word_index[word] for word in _words(question) & word_index.keys())
        best[question] = names[int((log_A + log_AW[:, columns].sum(1)).argmax())]
    return [best[question] for question in questions]


def _words(question: str) -> set[str]:
    return set(question.lower().split())
