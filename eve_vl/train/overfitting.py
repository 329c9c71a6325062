"""Whether a run overfits its training rows."""

OVERFITS = 0.5  # error on training rows, as a share of that on validation rows (LOG.md, 2026-11-30)


def compare_with_training_rows(
    name: str, training: float, validation: float, *, is_score: bool
) -> str:
    """Return a sentence that compares a metric on training rows with validation.

    is_score: higher is better and 1 is the best; else a loss.
    """
    sentence = f"{name} {training:.3f} on training rows, {validation:.3f} on validation rows"
    if is_score:
        training_error = 1 - training
        validation_error = 1 - validation
        is_apart = _low(training) > _high(validation)
    else:
        training_error = training
        validation_error = validation
        is_apart = _low(validation) > _high(training)
    if not is_apart or training_error >= OVERFITS * validation_error:
        return sentence
    advice = "fewer steps, more rows or augmentation help"
    return f"the run overfits its training rows: {sentence}; {advice}"


def _low(value: float) -> float:
    """Return the lower end of a value's interval, or the value."""
    return getattr(value, "low", value)


def _high(value: float) -> float:
    """Return the upper end of a value's interval, or the value."""
    return getattr(value, "high", value)
