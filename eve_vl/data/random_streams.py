"""Random streams, each a function of a key: a purpose, a seed and the place where it is used.

The random parts of a sample or an order depend on its key only. The numbers of processes and
workers and restarts therefore change nothing.
"""

import numpy as np

# Purposes. The numbers are part of the keys: another number would change what a seed stands for.
ORDER = 1  # of the rows of an epoch
ROWS = 2  # the order of the rows of one source
SAMPLE = 3  # crops, masks, choice of a caption
PARTNER = 4  # wrong partners of pairs in evaluation
PICKS = 5  # rows to validate on
NOISE = 6  # images of noise in evaluation
BATCHES = 7  # batches that share a value of a column
SHARDS = 8  # the order of shards
WINDOWS = 9  # the order within a window of shards


def generator(*key: int) -> np.random.Generator:
    """Return the random stream of a key such as (seed, purpose, epoch, source, row)."""
    return np.random.default_rng(key)
