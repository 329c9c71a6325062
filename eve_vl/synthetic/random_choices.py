"""Random choices that are the same on every machine and in every version of Python.

They use only `Random.random()`, the one method whose sequence Python guarantees.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def stream(*names: object) -> Random:
    """Return the random stream of one row, given everything that it may depend on."""
    return Random("/".join(map(str, names)))


def pick(rng: Random, options: Sequence[T]) -> T:
    """Return one of the options, each equally likely."""
    return options[int(rng.random() * len(options))]


def pick_distinct(rng: Random, options: Sequence[T], count: int) -> list[T]:
    """Return `count` distinct options in random order."""
    pool = list(options)
    for i in range(count):
        j = i + int(rng.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return pool[:count]


def pick_weighted(rng: Random, weights: Sequence[float]) -> int:
    """Return an index, each as likely as its weight; the weights sum to 1."""
    remaining = rng.random()
    for index, weight in enumerate(weights):
        remaining -= weight
        if remaining < 0:
            return index
    return len(weights) - 1
