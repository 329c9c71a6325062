"""The upper half of the page: header, headline numbers, curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from eve_vl.config import Config
from eve_vl.report.charts import Series, constant, line_chart
from eve_vl.report.markup import esc, number, percent, scientific


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The run's numbers, the step they were measured at, and words that say on what."""

    values: dict[str, float]
    step: int
    where: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number: `length`, 0 to 1, draws its bar; `is_main` sets off the model's own."""

    name: str
    value: str
    length: float
    sentence: str
    is_main: bool = False


def header(config: Config, *, step: int, saved: datetime, parameters: int, active_parameters: int) -> str:
    """Return the top of the page: which run this is."""
    steps = f"{step:,} of {config.train.steps:,}"
    if step < config.train.steps:
        steps += ' <span class="badge">unfinished</span>'
    size = number(parameters)
    if active_parameters < parameters:
        size += f" <small>({number(active_parameters)} used per token)</small>"
    model = config.model
    facts = {
        "step": steps,
        "checkpoint saved": f"{saved.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "parameters": size,
        "encoder": f"{model.depth} blocks × {model.embed_dim}, {model.image_size}² pixels in {model.num_patches} patches",
        "validation data": esc(", ".join(config.data.val)),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        f'<header><p class="kicker">EVE · masked signal modelling</p><h1>{esc(config.recipe)}</h1>'
        f'<dl class="facts">{rows}</dl></header>'
    )


def headline_section(headline: Headline, config: Config) -> str:
    """Return the cards: does the model use the other modality, and does it beat obvious guesses?"""
    values, groups = headline.values, []
    if "mlm_acc" in values:
        gain = values["mlm_acc"] - values["mlm_acc_wrong_image"]
        verdict = f"The right picture is worth <b>{_signed(100 * gain)} points</b> of masked-token accuracy."
        groups.append(_group("Masked tokens", verdict, token_cards(values)))
    else:
        groups.append(_left_out("Masked tokens", "task.mlm_weight"))
    if "mim_mse" in values:
        verdict = (
            "Lower is better. The error with the right caption is "
            f"<b>{_compared(values['mim_mse'], values['mim_mse_wrong_caption'])}</b> with a wrong one, and "
            f"<b>{_compared(values['mim_mse'], values['mim_mse_mean_baseline'])}</b> of the neighbours' mean."
        )
        groups.append(_group("Masked pixels", verdict, pixel_cards(values, config)))
    else:
        groups.append(_left_out("Masked pixels", "task.mim_weight"))
    intro = f"Measured on {esc(headline.where)}, step {headline.step:,}."
    return f'<section id="numbers"><h2>Numbers</h2><p class="intro">{intro}</p>{"".join(groups)}</section>'


def token_cards(values: dict[str, float]) -> list[Card]:
    """Return the cards of the text pass; bars show accuracy."""
    sentences = {
        "mlm_acc": "Share of the masked tokens that the model guesses right while it sees the caption's own picture.",
        "mlm_acc_wrong_image": "The same tokens beside another pair's picture: what the words around them give away.",
        "mlm_acc_unigram": "Always guessing the most frequent masked token, without looking at anything.",
    }
    return [
        Card(name=name, value=percent(values[name]), length=values[name], sentence=sentence, is_main=name == "mlm_acc")
        for name, sentence in sentences.items()
    ]


def pixel_cards(values: dict[str, float], config: Config) -> list[Card]:
    """Return the cards of the image pass; bars show the error, relative to the largest."""
    space = "pixels normalised per patch" if config.task.normalize_targets else "pixels from −1 to 1"
    sentences = {
        "mim_mse": f"Mean squared error of the masked patches ({space}) when the model reads the picture's own caption.",
        "mim_mse_wrong_caption": "The same patches rebuilt beside another pair's caption: what the visible patches give away.",
        "mim_mse_mean_baseline": "Painting each masked patch in the mean colour of its visible neighbours.",
        "mim_mse_image_mean": "Painting every masked patch in the mean colour of all visible ones.",
    }
    largest = max(values[name] for name in sentences) or 1
    return [
        Card(name=name, value=number(values[name]), length=values[name] / largest, sentence=text, is_main=name == "mim_mse")
        for name, text in sentences.items()
    ]


def curves_section(log: Sequence[dict], config: Config, step: int) -> str:
    """Return the charts of a run's log; `step` is that of the checkpoint shown on the page."""
    charts = [chart for chart in (*_loss_charts(log, step), *_metric_charts(log, step)) if chart]
    rate = [Series(name="lr", points=_points(log, "train", "lr"))]
    note = f"Linear warm-up, then {config.train.schedule} decay."
    charts.append(line_chart("Learning rate", rate, note=note, show=scientific, from_zero=True, mark=step))
    body = f'<div class="charts">{"".join(charts)}</div>'
    if not any(charts):
        body = '<p class="missing">The run folder holds no log, so there are no curves to draw.</p>'
    intro = "Every term of the loss and every validation number over the run. Hover over a chart to read values."
    return f'<section id="curves"><h2>Curves</h2><p class="intro">{intro}</p>{body}</section>'


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
            Series(name=f"block {block}", points=_points(log, "train", f"{key}/{number_}"))
            for number_, block in enumerate(blocks)
        ]
        charts.append(line_chart(title, [*series, constant(*level, last)], note=note, mark=step))
    return "".join(charts)


def _loss_charts(log: Sequence[dict], step: int) -> list[str]:
    last = max((row["step"] for row in log), default=0)
    terms = (
        ("mlm", "mlm_loss", "Masked-token loss", "Cross-entropy of the masked tokens, in nats."),
        ("mim", "mim_mse", "Masked-pixel loss", "Mean squared error of the masked patches."),
    )
    charts = []
    for train, val, title, note in terms:
        series = [
            Series(name=f"{train}, training", points=_points(log, "train", train)),
            Series(name=f"{val}, validation", points=_points(log, "val", val)),
        ]
        charts.append(line_chart(title, series, note=note, mark=step))
    balance = [Series(name="balance", points=_points(log, "train", "balance")), constant("even load", 1, last)]
    charts.append(line_chart("Balance loss", balance, note="Before its weight model.balance_weight; 1 is even.", mark=step))
    return charts


def _metric_charts(log: Sequence[dict], step: int) -> list[str]:
    accuracy = [
        Series(name="right picture", points=_points(log, "val", "mlm_acc")),
        Series(name="wrong picture", points=_points(log, "val", "mlm_acc_wrong_image")),
        Series(name="most frequent token", points=_points(log, "val", "mlm_acc_unigram"), is_reference=True),
    ]
    error = [
        Series(name="right caption", points=_points(log, "val", "mim_mse")),
        Series(name="wrong caption", points=_points(log, "val", "mim_mse_wrong_caption")),
        Series(name="mean of neighbours", points=_points(log, "val", "mim_mse_mean_baseline"), is_reference=True),
        Series(name="mean of picture", points=_points(log, "val", "mim_mse_image_mean"), is_reference=True),
    ]
    return [
        line_chart(
            "Masked-token accuracy", accuracy, note="Validation; higher is better.", show=percent, from_zero=True, mark=step
        ),
        line_chart("Masked-pixel error", error, note="Validation, mean squared; lower is better.", mark=step),
    ]


def _points(log: Sequence[dict], kind: str, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in log if row["kind"] == kind and name in row]


def _group(title: str, verdict: str, cards: Sequence[Card]) -> str:
    items = "".join(
        f'<li class="card number{" main" if card.is_main else ""}"><code>{card.name}</code><strong>{card.value}</strong>'
        f'<span class="bar" style="--length:{100 * card.length:.1f}%"></span><p>{card.sentence}</p></li>'
        for card in cards
    )
    return f'<h3>{title}</h3><p class="verdict">{verdict}</p><ul class="cards">{items}</ul>'


def _left_out(title: str, weight: str) -> str:
    return f'<h3>{title}</h3><p class="missing">This run does not train them (<code>{weight}</code> is 0).</p>'


def _compared(value: float, other: float) -> str:
    """Return how much smaller or larger an error is than another, ending in `than that`."""
    change = value / other - 1 if other else 0.0
    return f"{abs(100 * change):.1f} % {'larger' if change > 0 else 'smaller'} than that"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
