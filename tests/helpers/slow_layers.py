"""Layers that compute with the tensors of a published checkpoint, by their names in it."""

from torch import Tensor
from torch.nn import functional as F


class SlowLayers:
    """Linear layers, norms and heads; both VLMo and M3AE have these."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Apply a layer with or without a bias."""
        y = x @ self.tensors[f"{name}.weight"].T
        if f"{name}.bias" in self.tensors:
            y = y + self.tensors[f"{name}.bias"]
        return y

    def norm(
        self,
        x: Tensor,
        name: str,
        eps: float,
    ) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def token_logits(self, x: Tensor, name: str) -> Tensor:
        """Apply BERT's head for masked words."""
        hidden = F.gelu(self.linear(x, f"{name}.transform.dense"))
        hidden = self.norm(hidden, f"{name}.transform.LayerNorm", 1e-12)
        return self.linear(hidden, f"{name}.decoder") + self.tensors[f"{name}.bias"]

    def class_logits(self, x: Tensor, name: str) -> Tensor:
        hidden = self.norm(self.linear(x, f"{name}.0"), f"{name}.1", 1e-5)
        return self.linear(F.gelu(hidden), f"{name}.3")
