"""Measure how visible phantoms' findings are, and score guesses without the image.

    python benchmarks/phantoms.py [--images 400] [--image-size 64]

A threshold separates images with a finding from the same images without it, half of each:

- `known`: threshold on the projection on the finding's true change, which the classifier is given (the ceiling);
- `template`: threshold on the projection on the mean change of other images;
- `pixel`: threshold on the best single pixel of other images.

For questions: the most frequent answer per wording, and answers to `is there pneumothorax` from the
tube only.
"""

import argparse
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from eve_vl.systems.medical.phantoms import sampling
from eve_vl.systems.medical.phantoms.film import SIGMA, draw, noise, to_pixels
from eve_vl.systems.medical.phantoms.questions import sample_question
from eve_vl.systems.medical.phantoms.world import FINDINGS, SPLITS, Finding, Phantom

NUM_QUESTIONS = 20_000


def twins(split: str, kind: str, count: int) -> list[tuple[Phantom, Phantom]]:
    """Return pairs of the same patient and film, with and without a finding.

    Their variants are sampled.
    """
    pairs = []
    for index in range(count):
        rng = sampling.stream("benchmark", split, 0, index)
        found = sampling.sample_findings(rng, [Finding(kind)])
        with_it = sampling.take_view(rng, sampling.sample_anatomy(rng, split, found, 0), "pa")
        without = replace(with_it.patient, findings=())
        pairs.append((with_it, replace(with_it, patient=without, seed=with_it.seed ^ 1)))
    return pairs


def grey(phantom: Phantom, size: int) -> np.ndarray:
    """Return the image as grey levels, (pixels,)."""
    return to_pixels(draw(phantom, size) + noise(phantom, size))[:, :, 0].ravel().astype(float)


def threshold(scores: np.ndarray, is_there: np.ndarray) -> float:
    """Return the threshold with the highest accuracy."""
    order = np.argsort(scores)
    right = np.concatenate(
        [[is_there.sum()], is_there.sum() + np.cumsum(np.where(is_there[order], -1, 1))]
    )
    best = int(right.argmax())
    ends = np.concatenate([[-np.inf], scores[order], [np.inf]])
    return float((ends[best] + ends[best + 1]) / 2) if 0 < best < len(scores) else float(ends[best])


def accuracy(fit: np.ndarray, test: np.ndarray, is_there: np.ndarray) -> float:
    """Return the accuracy of a threshold and a sign that are fitted on other scores."""
    sign = 1 if fit[is_there].mean() >= fit[~is_there].mean() else -1
    return float(((sign * test > threshold(sign * fit, is_there)) == is_there).mean())


def seen(kind: str, count: int, size: int) -> str:
    """Print a line for a finding."""
    drawn = [
        (draw(one, size).ravel(), draw(two, size).ravel())
        for one, two in twins("test", kind, count)
    ]
    changes = np.array([one - two for one, two in drawn])
    fit, test = (
        np.array([[grey(each, size) for each in pair] for pair in twins(split, kind, count)])
        for split in ("train", "test")
    )
    is_there = np.tile([True, False], count)
    absent = np.array([two for _, two in drawn])
    known = ((test - absent[:, None]) * changes[:, None]).sum(axis=2) / (changes**2).sum(axis=1)[
        :, None
    ] > 0.5
    template = (fit[:, 0] - fit[:, 1]).mean(axis=0)
    pixels = (is_there[:, None] == (fit.reshape(2 * count, -1) > fit.mean(axis=(0, 1)))).mean(
        axis=0
    )
    best = int(np.abs(pixels - 0.5).argmax())
    least = int((np.abs(changes) >= 3 * SIGMA).sum(axis=1).min())
    scores = [
        (known.ravel() == is_there).mean(),
        accuracy((fit @ template).ravel(), (test @ template).ravel(), is_there),
    ]
    scores.append(accuracy(fit[:, :, best].ravel(), test[:, :, best].ravel(), is_there))
    return f"{kind:<18}{least:>8}" + "".join(f"{score:>10.3f}" for score in scores)


def guessed(split: str) -> str:
    """Print a line for the questions of a split."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(NUM_QUESTIONS):
        example = sample_question("train", 0, index)
        known[example.question][example.answer] += 1
    right, tube = defaultdict(list), []
    for index in range(NUM_QUESTIONS):
        example = sample_question(split, 0, index)
        guess = known[example.question].most_common(1)[0][0] if example.question in known else "yes"
        right[example.answer_type].append(guess == example.answer)
        if example.question in ("is there pneumothorax", "is there pleural air"):
            tube.append(("tube" in example.phantom.patient.devices) == (example.answer == "yes"))
    shown = "".join(
        f"{np.mean(right[kind]) if right[kind] else np.nan:>10.3f}" for kind in ("CLOSED", "OPEN")
    )
    return f"{split:<18}{shown}{np.mean(tube) if tube else np.nan:>10.3f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--image-size", type=int, default=64)
    args = parser.parse_args()
    print(f"{'finding':<18}{'pixels':>8}{'known':>10}{'template':>10}{'pixel':>10}")
    for kind in FINDINGS:
        print(seen(kind, args.images, args.image_size), flush=True)
    print(f"\n{'blind answers':<18}{'closed':>10}{'open':>10}{'by tube':>10}")
    for split in SPLITS[2:]:
        print(guessed(split), flush=True)


if __name__ == "__main__":
    main()
