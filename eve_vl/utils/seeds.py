"""Random seeds of this process."""

import random


def seed_everything(seed: int) -> None:
    """Seed every generator of this process."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
