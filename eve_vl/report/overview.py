"""The top of the page: which run this is, and the headline numbers of pre-training."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from eve_vl.config import Config, MaskedSignalConfig
from eve_vl.report.markup import esc, missing, number, percent, points, section

TASK_NAMES = {
    "masked_signal": "masked signal modelling",
    "retrieval": "image–text retrieval",
    "vqa": "visual question answering",
    "nlvr2": "statements about two pictures (NLVR2)",
}


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The run's numbers, the step they were measured at, and words that say on what."""

    values: dict[str, float]
    step: int
    where: str
    num_samples: int
    """Rows of validation data that they were measured on, at most."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number: `length`, 0 to 1, draws its bar; `is_main` sets off the model's own."""

    name: str
    value: str
    length: float
    sentence: str
    is_main: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: the step of the weights shown, whether they were chosen on validation, the last step trained."""

    step: int
    is_best: bool
    last_step: int
    saved: datetime


def header(config: Config, progress: Progress, *, parameters: int, active_parameters: int, log: Sequence[dict]) -> str:
    """Return the top of the page: which run this is."""
    steps = f"{progress.step:,} of {config.train.steps:,}"
    if progress.is_best:
        steps += ' <span class="badge">best on validation</span>'
    if progress.last_step < config.train.steps:
        steps += ' <span class="badge">unfinished</span>'
    size = number(parameters)
    if active_parameters < parameters:
        size += f" <small>({number(active_parameters)} used per token)</small>"
    model = config.model
    facts = {
        "step": steps,
        "checkpoint saved": f"{progress.saved.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "parameters": size,
        "encoder": f"{model.depth} blocks × {model.embed_dim}, {model.image_size}² pixels in {model.num_patches} patches",
        "validation data": esc(", ".join(config.data.val)),
    }
    if config.scratch:
        facts["started from"] = f"random weights <small>(shape and tokenizer of {esc(config.init)})</small>"
    elif config.init is not None:
        facts["started from"] = esc(config.init)
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    notes = "".join(f"<li>{esc(row['text'])}</li>" for row in log if row["kind"] == "note")
    notes = f'<ul class="notes">{notes}</ul>' if notes else ""
    return (
        f'<header><p class="kicker">EVE · {TASK_NAMES[config.task.name]}</p><h1>{esc(config.recipe)}</h1>'
        f'<dl class="facts">{rows}</dl>{notes}</header>'
    )


def numbers_section(headline: Headline, body: str) -> str:
    """Return the section of headline numbers."""
    return section("numbers", "Numbers", f"Measured on {esc(headline.where)}, step {headline.step:,}.", body)


def pretraining_numbers(headline: Headline, task: MaskedSignalConfig) -> str:
    """Return the cards: does the model use the other modality, and does it beat obvious guesses?"""
    values, groups = headline.values, []
    if "mlm_acc" in values:
        gain = values["mlm_acc"] - values["mlm_acc_wrong_image"]
        verdict = f"The right picture is worth <b>{points(gain)} points</b> of masked-token accuracy."
        groups.append(card_group("Masked tokens", verdict, token_cards(values)))
    else:
        groups.append(_left_out("Masked tokens", "task.mlm_weight"))
    if "mim_mse" in values:
        verdict = (
            "Lower is better. The error with the right caption is "
            f"<b>{_compared(values['mim_mse'], values['mim_mse_wrong_caption'])}</b> with a wrong one, and "
            f"<b>{_compared(values['mim_mse'], values['mim_mse_mean_baseline'])}</b> of the neighbours' mean."
        )
        groups.append(card_group("Masked pixels", verdict, pixel_cards(values, task)))
    else:
        groups.append(_left_out("Masked pixels", "task.mim_weight"))
    return numbers_section(headline, "".join(groups))


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


def pixel_cards(values: dict[str, float], task: MaskedSignalConfig) -> list[Card]:
    """Return the cards of the image pass; bars show the error, relative to the largest."""
    space = "pixels normalised per patch" if task.normalize_targets else "pixels from −1 to 1"
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


def card_group(title: str, verdict: str, cards: Sequence[Card]) -> str:
    """Return cards under a heading and a sentence that says what they mean."""
    items = "".join(
        f'<li class="card number{" main" if card.is_main else ""}"><code>{card.name}</code><strong>{card.value}</strong>'
        f'<span class="bar" style="--length:{100 * card.length:.1f}%"></span><p>{card.sentence}</p></li>'
        for card in cards
    )
    return f'<h3>{title}</h3><p class="verdict">{verdict}</p><ul class="cards">{items}</ul>'


def _left_out(title: str, weight: str) -> str:
    return f"<h3>{title}</h3>" + missing(f"This run does not train them (<code>{weight}</code> is 0).")


def _compared(value: float, other: float) -> str:
    """Return how much smaller or larger an error is than another, ending in `than that`."""
    change = value / other - 1 if other else 0.0
    return f"{abs(100 * change):.1f} % {'larger' if change > 0 else 'smaller'} than that"
