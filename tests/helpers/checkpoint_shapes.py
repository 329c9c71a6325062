"""Names and shapes of the tensors of published checkpoints, from which tests make one up."""


class Shapes(dict[str, tuple[int, ...]]):
    """The names and shapes of a checkpoint."""

    def linear(
        self,
        name: str,
        rows: int,
        columns: int,
    ) -> None:
        """Add a layer with a bias."""
        self.update(
            {
                f"{name}.weight": (rows, columns),
                f"{name}.bias": (rows,),
            }
        )

    def norm(self, name: str, width: int) -> None:
        """Add a LayerNorm."""
        self.update(
            {
                f"{name}.weight": (width,),
                f"{name}.bias": (width,),
            }
        )
