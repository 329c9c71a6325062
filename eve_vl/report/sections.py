"""Sections of the page about a pre-trained run: pictures and masked captions."""

from collections.abc import Sequence

from eve_vl.config import MaskedSignalConfig
from eve_vl.report.evidence import Guess, HiddenToken, Piece, ShownPair
from eve_vl.report.markup import esc, missing, percent, picture, section

JOINT = " This run masks both modalities in one pass (<code>task.joint_masking</code>), so the model saw neither complete."


def pictures_section(pairs: Sequence[ShownPair], task: MaskedSignalConfig) -> str:
    """Return the grid of original, masked and rebuilt pictures."""
    if not task.mim_weight:
        text = "This run does not learn to rebuild pictures (<code>task.mim_weight</code> is 0)."
        return section("pictures", "Pictures", "", missing(text))
    intro = (
        f"Validation pairs with {percent(task.image_mask_ratio)} of the patches masked. Visible patches are copied "
        "from the original; the model paints the masked ones, once with the pair's own caption and once with another's."
    )
    if task.normalize_targets:
        intro += (
            " It predicts patches normalised to mean 0 and deviation 1 (<code>task.normalize_targets</code>); for display "
            "they are scaled back with the <em>true</em> mean and deviation of each masked patch, as MAE does: judge the "
            "shapes within a patch, not its colour."
        )
    intro += JOINT * task.joint_masking
    cards = "".join(_picture_card(pair, task.joint_masking) for pair in pairs)
    return section("pictures", "Pictures", intro, f'<div class="pairs">{cards}</div>')


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


def captions_section(pairs: Sequence[ShownPair], task: MaskedSignalConfig) -> str:
    """Return the captions with what the model guesses for their masked tokens."""
    if not task.mlm_weight:
        text = "This run does not learn to guess masked tokens (<code>task.mlm_weight</code> is 0)."
        return section("captions", "Masked captions", "", missing(text))
    seen = "masked" if task.joint_masking else "complete"
    intro = (
        f"{percent(task.text_mask_ratio)} of each caption's tokens are masked (boxed here) and guessed beside the "
        f"{seen} picture: the five best guesses, ✓ where the first is right, ✗ where it is not. Below them the first guess "
        "beside another pair's picture, and what that picture does to the probability of the true token: where it falls, the "
        "model looked."
    )
    intro += JOINT * task.joint_masking
    cards = "".join(_caption_card(pair) for pair in pairs)
    return section("captions", "Masked captions", intro, f'<div class="readings">{cards}</div>')


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
