"""Numbers of masked signal modelling: does the model use the other modality, and does it beat obvious guesses?

Letters: B batch, P patches, K kept patches, M hidden patches or masked tokens, X values in a patch, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

TOKEN_PASSES = ("mlm", "mlm_wrong_image")
PIXEL_GUESSES = ("mim", "mim_wrong_caption", "mim_mean_baseline", "mim_image_mean")


class Sums:
    """Running sums, so that batch size, order and number of processes do not change a number."""

    def __init__(self, *, vocab_size: int, with_tokens: bool, with_pixels: bool):
        names = [f"{name}_{what}" for name in TOKEN_PASSES for what in ("right", "loss", "count")] if with_tokens else []
        names += [f"{name}_{what}" for name in PIXEL_GUESSES for what in ("error", "count")] if with_pixels else []
        self.sums = {name: torch.zeros((), dtype=torch.float64) for name in names}
        self.target_counts_V = torch.zeros(vocab_size, dtype=torch.float64)

    def add_tokens(self, name: str, logits_MV: Tensor, targets_M: Tensor) -> None:
        """Count right first guesses and add up the cross-entropy."""
        if name == "mlm":
            self.target_counts_V += targets_M.bincount(minlength=logits_MV.shape[1]).double().cpu()
        loss = F.cross_entropy(logits_MV.float(), targets_M, reduction="sum")
        self._add(f"{name}_right", (logits_MV.argmax(-1) == targets_M).sum())
        self._add(f"{name}_loss", loss)
        self._add(f"{name}_count", torch.tensor(len(targets_M)))

    def add_pixels(self, name: str, predicted_BMX: Tensor, target_BMX: Tensor) -> None:
        """Add up the squared error."""
        self._add(f"{name}_error", (predicted_BMX.double() - target_BMX.double()).square().sum())
        self._add(f"{name}_count", torch.tensor(target_BMX.numel()))

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value.detach().double().cpu()

    def result(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the metrics; over_processes adds a tensor up over all processes.

        mlm_acc, mlm_acc_wrong_image: share of masked tokens guessed right, with the right and, of pairs, with another
        picture.
        mlm_acc_unigram: the same for always guessing the most frequent of these tokens. mlm_loss: cross-entropy in nats.
        mim_mse, mim_mse_wrong_caption: mean squared error of hidden patches, with the right and with another caption.
        mim_mse_mean_baseline, mim_mse_image_mean: the same for the mean of each patch's visible neighbours, and of all
        visible patches. Errors are in the space of the model's targets: pixels in [-1, 1], or normalised per patch, where
        the two guesses are the patch's own mean, since any other colour would be blown up where a patch is nearly flat.
        """
        total = {name: over_processes(value).item() for name, value in sorted(self.sums.items())}
        numbers: dict[str, float] = {}
        if total.get("mlm_count"):
            counts_V = over_processes(self.target_counts_V)
            numbers["mlm_acc"] = total["mlm_right"] / total["mlm_count"]
            if total["mlm_wrong_image_count"]:
                numbers["mlm_acc_wrong_image"] = total["mlm_wrong_image_right"] / total["mlm_wrong_image_count"]
            numbers["mlm_acc_unigram"] = (counts_V.max() / counts_V.sum()).item()
            numbers["mlm_loss"] = total["mlm_loss"] / total["mlm_count"]
        for name in PIXEL_GUESSES:
            if total.get(f"{name}_count"):
                numbers[name.replace("mim", "mim_mse", 1)] = total[f"{name}_error"] / total[f"{name}_count"]
        return numbers


def visible_means(patches_BPX: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Guess hidden patches without a model: (B, M, X) from the visible patches nearby, and from all visible patches.

    Each hidden patch is given one RGB colour: the mean over the visible patches among its eight neighbours, or, if there
    is none, over all visible patches.
    """
    B, P, X = patches_BPX.shape
    side = round(P**0.5)
    color_BPC = patches_BPX.unflatten(2, (3, X // 3)).mean(3)
    is_visible_BP1 = torch.zeros(B, P, 1, device=patches_BPX.device).scatter_(1, keep_BK[:, :, None], 1.0)
    planes = torch.cat([color_BPC * is_visible_BP1, is_visible_BP1], dim=2)
    image_B1C = planes[:, :, :3].sum(1, keepdim=True) / planes[:, :, 3:].sum(1, keepdim=True)
    window = torch.ones(4, 1, 3, 3, device=patches_BPX.device)
    grid = planes.transpose(1, 2).reshape(B, 4, side, side)
    near_BP4 = F.conv2d(grid, window, padding=1, groups=4).flatten(2).transpose(1, 2)
    near_BPC = torch.where(near_BP4[:, :, 3:] > 0.5, near_BP4[:, :, :3] / near_BP4[:, :, 3:].clamp(min=1), image_B1C)
    near_BMC = near_BPC.gather(1, hidden_BM[:, :, None].expand(-1, -1, 3))
    spread = (B, hidden_BM.shape[1], 3, X // 3)
    return (
        near_BMC[..., None].expand(spread).flatten(2),
        image_B1C.expand(near_BMC.shape)[..., None].expand(spread).flatten(2),
    )
