"""Charts of a run's log: losses, validation numbers, learning rate, router."""

import math
from collections.abc import Sequence

from eve_vl.config import Config
from eve_vl.report.charts import Series, constant, line_chart
from eve_vl.report.markup import missing, percent, scientific, section

MAX_TYPES = 6  # colours of lines
LOSSES = (  # term in training, number in validation, title, note
    ("mlm", "mlm_loss", "Masked-token loss", "Cross-entropy of the masked tokens, in nats."),
    ("mim", "mim_mse", "Masked-pixel loss", "Mean squared error of the masked patches."),
    ("itc", "", "Contrast loss", "Cross-entropy of the true partner within a batch, mean of both ways, in nats."),
    ("itm", "", "Matching loss", "Cross-entropy of match or no match, on true pairs and hard negatives, in nats."),
    ("vqa", "", "Answer loss", "Binary cross-entropy of the answers, summed over the list."),
    ("nlvr2", "", "Verdict loss", "Cross-entropy of true or false, in nats."),
)


def curves_section(log: Sequence[dict], config: Config, step: int) -> str:
    """Return the charts of a run's log; `step` is that of the checkpoint shown on the page."""
    charts = [chart for chart in (*_loss_charts(log, step), *_metric_charts(log, step)) if chart]
    rate = [Series(name="lr", points=points_of(log, "train", "lr"))]
    note = f"Linear warm-up, then {config.train.schedule} decay."
    charts.append(line_chart("Learning rate", rate, note=note, show=scientific, from_zero=True, mark=step))
    body = f'<div class="charts">{"".join(charts)}</div>'
    if not any(charts):
        body = missing("The run folder holds no log, so there are no curves to draw.")
    intro = "Every term of the loss and every validation number over the run. Hover over a chart to read values."
    return section("curves", "Curves", intro, body)


def routing_curves(log: Sequence[dict], config: Config, step: int) -> str:
    """Return the charts of the router over the run: load of the busiest expert and entropy of the gate."""
    blocks = [index for index, policy in enumerate(config.model.ffn_policies, start=1) if policy == "moe"]
    last, E = max((row["step"] for row in log), default=0), config.model.num_experts
    charts = []
    for key, title, note, level in (
        ("max_load", "Load of the busiest expert", "Share of tokens whose first choice it is.", ("even load, 1/E", 1 / E)),
        ("entropy", "Entropy of the gate", "In nats; low means that the router is sure.", ("uniform gate, ln E", math.log(E))),
    ):
        series = [
            Series(name=f"block {block}", points=points_of(log, "train", f"{key}/{number_}"))
            for number_, block in enumerate(blocks)
        ]
        charts.append(line_chart(title, [*series, constant(*level, last)], note=note, mark=step))
    return "".join(charts)


def points_of(log: Sequence[dict], kind: str, name: str) -> list[tuple[float, float]]:
    """Return (step, value) of one number in the rows of a kind."""
    return [(row["step"], row[name]) for row in log if row["kind"] == kind and name in row]


def _loss_charts(log: Sequence[dict], step: int) -> list[str]:
    last = max((row["step"] for row in log), default=0)
    charts = []
    for train, val, title, note in LOSSES:
        series = [
            Series(name=f"{train}, training", points=points_of(log, "train", train)),
            Series(name=f"{val}, validation", points=points_of(log, "val", val)),
        ]
        charts.append(line_chart(title, series, note=note, mark=step))
    balance = [Series(name="balance", points=points_of(log, "train", "balance")), constant("even load", 1, last)]
    charts.append(line_chart("Balance loss", balance, note="Before its weight model.balance_weight; 1 is even.", mark=step))
    return charts


def _metric_charts(log: Sequence[dict], step: int) -> list[str]:
    def val(name: str, key: str, *, is_reference: bool = False) -> Series:
        return Series(name=name, points=points_of(log, "val", key), is_reference=is_reference)

    def shares(title: str, series: Sequence[Series], note: str = "Validation; higher is better.") -> str:
        return line_chart(title, series, note=note, show=percent, from_zero=True, mark=step)

    types = sorted({key for row in log for key in row if key.startswith("vqa_acc/")})
    last = max((row["step"] for row in log), default=0)
    accuracy = [
        val("right picture", "mlm_acc"),
        val("wrong picture", "mlm_acc_wrong_image"),
        val("most frequent token", "mlm_acc_unigram", is_reference=True),
    ]
    error = [
        val("right caption", "mim_mse"),
        val("wrong caption", "mim_mse_wrong_caption"),
        val("mean of neighbours", "mim_mse_mean_baseline", is_reference=True),
        val("mean of picture", "mim_mse_image_mean", is_reference=True),
    ]
    answers = [Series(name="best answer's target, training", points=points_of(log, "train", "target_acc"))]
    verdicts = [Series(name="training", points=points_of(log, "train", "acc"))]
    charts = [
        shares("Masked-token accuracy", accuracy),
        line_chart("Masked-pixel error", error, note="Validation, mean squared; lower is better.", mark=step),
        shares("Matching accuracy", [Series(name="itm_acc, training", points=points_of(log, "train", "itm_acc"))], ""),
    ]
    if any("vqa_acc" in row for row in log):
        charts.append(shares("Answer accuracy", [*answers, val("validation", "vqa_acc")], "Higher is better."))
    if 1 < len(types) <= MAX_TYPES:
        charts.append(shares("Answer accuracy by type", [val(key.partition("/")[2], key) for key in types]))
    if any("nlvr2_acc" in row for row in log):
        consistency = [val("validation", "nlvr2_acc"), val("consistency, validation", "nlvr2_consistency")]
        charts.append(shares("Verdict accuracy", [*verdicts, *consistency, constant("chance", 0.5, last)], "Higher is better."))
    ways = (("picture → text", "tr"), ("text → picture", "ir"))
    recalls = [val(f"{way}, first {k}", f"{key}{k}") for k in (1, 5) for way, key in ways]
    charts.append(shares("Recall", recalls, "Validation: a match is the first one found, or among the first five."))
    return charts
