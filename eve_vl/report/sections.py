"""The lower half of the page: pictures, captions, routing, config."""

import shlex
from collections.abc import Sequence

from eve_vl.config import Config, to_dict
from eve_vl.errors import UserError
from eve_vl.recipes import get_recipe
from eve_vl.report.charts import bar_chart
from eve_vl.report.evidence import Evidence, Guess, HiddenToken, Piece, ShownPair
from eve_vl.report.markup import esc, percent, picture
from eve_vl.report.overview import routing_curves

JOINT = " This run masks both modalities in one pass (<code>task.joint_masking</code>), so the model saw neither complete."


def pictures_section(pairs: Sequence[ShownPair], config: Config) -> str:
    """Return the grid of original, masked and rebuilt pictures."""
    if not config.task.mim_weight:
        text = "This run does not learn to rebuild pictures (<code>task.mim_weight</code> is 0)."
        return _section("pictures", "Pictures", "", f'<p class="missing">{text}</p>')
    intro = (
        f"Validation pairs with {percent(config.task.image_mask_ratio)} of the patches masked. Visible patches are copied "
        "from the original; the model paints the masked ones, once with the pair's own caption and once with another's."
    )
    if config.task.normalize_targets:
        intro += (
            " It predicts patches normalised to mean 0 and deviation 1 (<code>task.normalize_targets</code>); for display "
            "they are scaled back with the <em>true</em> mean and deviation of each masked patch, as MAE does: judge the "
            "shapes within a patch, not its colour."
        )
    intro += JOINT * config.task.joint_masking
    cards = "".join(_picture_card(pair, config.task.joint_masking) for pair in pairs)
    return _section("pictures", "Pictures", intro, f'<div class="pairs">{cards}</div>')


def _picture_card(pair: ShownPair, is_joint: bool) -> str:
    assert pair.rebuilt is not None
    assert pair.rebuilt_wrong_caption is not None
    shown = (
        ("original", pair.original),
        ("masked", pair.masked),
        ("rebuilt", pair.rebuilt),
        ("wrong caption", pair.rebuilt_wrong_caption),
    )
    strip = "".join(
        f"<figure>{picture(pixels, f'{pair.where}: {name}')}<figcaption>{name}</figcaption></figure>" for name, pixels in shown
    )
    caption = _caption(pair.pieces, ()) if is_joint else _plain(pair.pieces)
    return (
        f'<article class="card"><div class="strip">{strip}</div><p class="caption">{caption}</p>'
        f'<p class="caption wrong"><span class="label">wrong caption</span> {esc(pair.wrong_caption)}</p></article>'
    )


def captions_section(pairs: Sequence[ShownPair], config: Config) -> str:
    """Return the captions with what the model guesses for their masked tokens."""
    if not config.task.mlm_weight:
        text = "This run does not learn to guess masked tokens (<code>task.mlm_weight</code> is 0)."
        return _section("captions", "Masked captions", "", f'<p class="missing">{text}</p>')
    seen = "masked" if config.task.joint_masking else "complete"
    intro = (
        f"{percent(config.task.text_mask_ratio)} of each caption's tokens are masked (boxed here) and guessed beside the "
        f"{seen} picture: the five best guesses, ✓ where the first is right, ✗ where it is not. Below them the first guess "
        "beside another pair's picture, and what that picture does to the probability of the true token: where it falls, the "
        "model looked."
    )
    intro += JOINT * config.task.joint_masking
    cards = "".join(_caption_card(pair) for pair in pairs)
    return _section("captions", "Masked captions", intro, f'<div class="readings">{cards}</div>')


def _caption_card(pair: ShownPair) -> str:
    thumbs = "".join(
        f"<figure>{picture(pixels, f'{pair.where}: {name}')}<figcaption>{name}</figcaption></figure>"
        for name, pixels in (("picture", pair.right_picture), ("wrong picture", pair.wrong_picture))
    )
    words = "".join(_word_card(token) for token in pair.hidden)
    right = sum(token.guesses[0].is_right for token in pair.hidden)
    right_wrong = sum(token.wrong_picture[0].is_right for token in pair.hidden)
    score = f"{right} of {len(pair.hidden)} right; beside the wrong picture {right_wrong}"
    return (
        f'<article class="card reading"><div class="thumbs">{thumbs}</div><div>'
        f'<p class="caption">{_caption(pair.pieces, pair.hidden)}</p><p class="score">{score}</p>'
        f'<ul class="words">{words}</ul></div></article>'
    )


def _word_card(token: HiddenToken) -> str:
    best, wrong = token.guesses[0], token.wrong_picture[0]
    rows = "".join(
        f'<li class="{_verdict(guess)}" style="--length:{100 * guess.probability:.1f}%">'
        f"<span>{esc(guess.text)}</span><span>{_probability(guess)}</span></li>"
        for guess in token.guesses
    )
    change = f"{100 * token.truth_probability:.0f}→{100 * token.truth_probability_wrong_picture:.0f} %"
    return (
        f'<li class="word"><h4>{esc(token.truth)} {_mark(best)}</h4><ol>{rows}</ol>'
        f'<p class="label">wrong picture</p><ol><li class="{_verdict(wrong)}"><span>{esc(wrong.text)} {_mark(wrong)}</span>'
        f"<span>{_probability(wrong)}</span></li><li><span>truth</span><span>{change}</span></li></ol></li>"
    )


def _caption(pieces: Sequence[Piece], hidden: Sequence[HiddenToken]) -> str:
    """Return a caption whose hidden tokens are boxes, marked right or wrong where there are guesses."""
    guesses = iter(hidden)
    parts = []
    for piece in pieces:
        space = " " if piece.starts_word and parts else ""
        if piece.is_hidden:
            token = next(guesses, None)
            verdict = "" if token is None else f" {_verdict(token.guesses[0])}"
            mark = "" if token is None else _mark(token.guesses[0])
            parts.append(f'{space}<span class="box{verdict}">{esc(piece.text)}{mark}</span>')
        else:
            parts.append(space + esc(piece.text))
    return "".join(parts)


def _plain(pieces: Sequence[Piece]) -> str:
    return esc("".join(" " * piece.starts_word + piece.text for piece in pieces).strip())


def _verdict(guess: Guess) -> str:
    return "right" if guess.is_right else "wrong"


def _mark(guess: Guess) -> str:
    sign = "✓" if guess.is_right else "✗"
    return f'<span class="mark {_verdict(guess)}" role="img" aria-label="{_verdict(guess)}">{sign}</span>'


def _probability(guess: Guess) -> str:
    return f"{100 * guess.probability:.0f} %"


def routing_section(evidence: Evidence, log: Sequence[dict], config: Config, step: int) -> str:
    """Return which experts serve which modality, now and over the run."""
    if not evidence.shares_ME:
        text = "This run has no <code>moe</code> block, so nothing is routed by choice."
        return _section("routing", "Routing", "", f'<p class="missing">{text}</p>')
    model = config.model
    blocks = [index for index, policy in enumerate(model.ffn_policies, start=1) if policy == "moe"]
    intro = (
        f"Each token goes to its {model.top_k} best of {model.num_experts} experts. Bars: how the choices of all image tokens, "
        f"and of all text tokens, of {evidence.num_routed} validation pairs spread over the experts (masked as in "
        "validation; each modality sums to 100 %). Experts that serve one modality alone show up as single bars."
    )
    charts = "".join(
        bar_chart(
            f"Experts by modality, block {block} of {model.depth}",
            [str(expert) for expert in range(model.num_experts)],
            [("image tokens", shares_ME[0].tolist()), ("text tokens", shares_ME[1].tolist())],
            level=("even load, 1/E", 1 / model.num_experts),
            show=percent,
            axis="expert",
        )
        for block, shares_ME in zip(blocks, evidence.shares_ME, strict=True)
    )
    curves = routing_curves(log, config, step)
    return _section("routing", "Routing", intro, f'<div class="charts">{charts}</div><div class="charts">{curves}</div>')


def config_section(config: Config) -> str:
    """Return the command that makes this run, and every value, collapsed."""
    values = to_dict(config)
    try:
        defaults = to_dict(get_recipe(config.recipe))
        command = f"<pre><code>{esc(command_line(config))}</code></pre>"
        intro = "The same command, with another --out, makes this run again. Values that differ from the recipe's are set off."
    except UserError:  # the recipe of another version
        defaults, intro = values, ""
        command = f'<p class="missing">No recipe is called {esc(config.recipe)} here, so there is no command to give.</p>'
    sections = "".join(
        _config_table(name, section, defaults[name]) for name, section in values.items() if isinstance(section, dict)
    )
    return _section("config", "Config", intro, f'{command}<div class="configs">{sections}</div>')


def _config_table(name: str, section: dict, defaults: dict) -> str:
    rows = ""
    for key, value in section.items():
        changed = ' class="changed"' if value != defaults[key] else ""
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows += f"<tr{changed}><th>{esc(key)}</th><td>{esc(shown)}</td></tr>"
    count = sum(value != defaults[key] for key, value in section.items())
    hint = f' <span class="badge">{count} changed</span>' if count else ""
    return f'<details class="card"><summary>{esc(name)}{hint}</summary><table><tbody>{rows}</tbody></table></details>'


def command_line(config: Config) -> str:
    """Return `eve pretrain RECIPE` with every flag that differs from the recipe. Raises UserError for an unknown recipe."""
    words = ["eve", "pretrain", config.recipe, *_flags(to_dict(config), to_dict(get_recipe(config.recipe)))]
    return shlex.join(words)


def _flags(values: dict, defaults: dict, prefix: str = "") -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        flag = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, dict):
            words += _flags(value, defaults[key], f"{prefix}{key}.")
        elif value == defaults[key]:
            continue
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--{prefix}no-{key}".replace("_", "-"))
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _section(name: str, title: str, intro: str, body: str) -> str:
    intro = f'<p class="intro">{intro}</p>' if intro else ""
    return f'<section id="{name}"><h2>{title}</h2>{intro}{body}</section>'
