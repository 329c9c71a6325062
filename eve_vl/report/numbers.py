"""The headline numbers of fine-tuned runs, beside what can be had without the model."""

from collections.abc import Sequence

from eve_vl.report.baselines import AnswerBaselines, VerdictBaselines, chance_recall
from eve_vl.report.charts import bar_chart
from eve_vl.report.markup import missing, number, percent, points
from eve_vl.report.overview import Card, Headline, card_group, numbers_section

RECALLS = (1, 5, 10)


def vqa_numbers(headline: Headline, baselines: AnswerBaselines | None) -> str:
    """Return accuracy, over all and by type of answer."""
    values = headline.values
    if "vqa_acc" not in values:
        return numbers_section(headline, missing("The questions come without answers, so there is nothing to compare with."))
    num = int(values["num_questions"] - values["num_unanswered"])
    sentence = f"Official accuracy of the model's answers to {num:,} questions, annotators counted as in VQA v2."
    cards = [_share("vqa_acc", values["vqa_acc"], sentence, is_main=True)]
    verdict = ""
    if baselines is not None:
        gain = values["vqa_acc"] - baselines.blind
        verdict = f"Looking at the picture is worth <b>{points(gain)} points</b> over answering from the question's words."
        blind = "Blind: giving the most frequent training answer to the same words, without the picture."
        cards.append(_share("vqa_acc_blind", baselines.blind, blind))
        cards.append(_share("vqa_acc_majority", baselines.majority, "Giving the most frequent training answer to everything."))
    body = card_group("Answers", verdict, cards)
    if baselines is None:
        body += missing("The training questions cannot be read here, so blind baselines are left out.")
    types = [name.partition("/")[2] for name in values if name.startswith("vqa_acc/")]
    if types:
        by_type = [("model", [values[f"vqa_acc/{each}"] for each in types])]
        if baselines is not None:
            by_type.append(("blind", [baselines.blind_by_type.get(each, float("nan")) for each in types]))
        chart = bar_chart("Accuracy by answer type", types, by_type, show=percent, axis="answer type")
        body += f'<div class="charts">{chart}</div>'
    return numbers_section(headline, body)


def nlvr2_numbers(headline: Headline, baselines: VerdictBaselines | None) -> str:
    """Return accuracy and consistency."""
    values = headline.values
    if "nlvr2_acc" not in values:
        return numbers_section(headline, missing("The statements come without labels, so there is nothing to compare with."))
    num = int(values["num_pairs"] - values["num_unlabelled"])
    verdict = f"The pictures are worth <b>{points(values['nlvr2_acc'] - 0.5)} points</b> over tossing a coin."
    cards = [
        _share("nlvr2_acc", values["nlvr2_acc"], f"Share of {num:,} pairs of pictures judged right.", is_main=True),
        _share("chance", 0.5, "Tossing a coin."),
    ]
    if baselines is not None:
        cards.append(_share("majority", baselines.majority, "Always giving the more frequent verdict of these statements."))
    body = card_group("Verdicts", verdict, cards)
    if "nlvr2_consistency" not in values:  # known where all statements were gone through
        return numbers_section(headline, body)
    sentence = "Share of statements of which every pair of pictures is judged right."
    consistency = [_share("nlvr2_consistency", values["nlvr2_consistency"], sentence, is_main=True)]
    if baselines is not None:
        sentence = "Tossing a coin: the more pairs a statement has, the less often all are right by luck."
        consistency.append(_share("chance", baselines.chance_consistency, sentence))
    return numbers_section(headline, body + card_group("Consistency", "", consistency))


def retrieval_numbers(headline: Headline, rerank: int) -> str:
    """Return recalls both ways, with and without re-ranking."""
    values = headline.values
    pictures, texts = int(values["num_images"]), int(values["num_texts"])
    ways = (
        ("Picture → text", "tr", "texts", texts, values["texts_per_image"]),
        ("Text → picture", "ir", "pictures", pictures, values["images_per_text"]),
    )
    body, charts = "", ""
    for title, key, others, num, matches in ways:
        first, chance = values[f"{key}1"], chance_recall(1, matches, num)
        verdict = (
            f"Each query has {number(matches)} matches on average among {num:,} {others}; the first {others[:-1]} found is one "
            f"<b>{first / chance:.0f} times</b> as often as by chance."
        )
        cards = [
            _share(f"{key}1", first, f"Share of queries whose first {others[:-1]} is a match.", is_main=True),
            _share("chance", chance, f"The same for {others} in random order."),
        ]
        if rerank:
            sentence = f"By contrast alone: without the matching head, which puts the best {rerank} in order."
            cards.insert(1, _share(f"{key}1_itc_only", values[f"{key}1_itc_only"], sentence))
        body += card_group(title, verdict, cards)
        bars = _recalls(values, key, num, matches, rerank)
        axis = "a match among the first k"
        charts += bar_chart(f"{title}: recall", [f"R@{k}" for k in RECALLS], bars, show=percent, axis=axis)
    return numbers_section(headline, f'{body}<div class="charts">{charts}</div>')


def _recalls(values: dict[str, float], key: str, num: int, matches: float, rerank: int) -> list[tuple[str, Sequence[float]]]:
    alone = [("contrast alone", [values[f"{key}{k}_itc_only"] for k in RECALLS])] if rerank else []
    return [
        ("re-ranked" if rerank else "contrast", [values[f"{key}{k}"] for k in RECALLS]),
        *alone,
        ("chance", [chance_recall(k, matches, num) for k in RECALLS]),
    ]


def _share(name: str, value: float, sentence: str, *, is_main: bool = False) -> Card:
    return Card(name=name, value=percent(value), length=value, sentence=sentence, is_main=is_main)
