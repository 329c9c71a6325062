"""What pages of tasks with contrast share."""

from eve_vl.pages.curves import Loss

CONTRAST_LOSSES = (
    Loss(
        "itc",
        "Contrastive loss",
        "Cross-entropy of the true partner in a batch, mean of both directions, in nats.",
    ),
    Loss(
        "itm",
        "Matching loss",
        "Cross-entropy in nats: match or no match, or an image's own caption among others.",
    ),
)
