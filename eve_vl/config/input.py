"""What pictures and texts are made into before a model sees them; the data room needs to know no more of the model."""

from dataclasses import dataclass

from eve_vl.config.checks import WIDEST, not_positive


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Sizes of pictures and texts."""

    image_size: int = 224
    """Side of the square input picture, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels: pictures are embedded and hidden by whole patches."""
    text_length: int = 40
    """Longest caption in tokens, the text [CLS] included; longer ones are cut."""
    padded_text_length: int = 0
    """Tokens that every text is cut and padded to; 0: cut at text_length, padded to the longest of its batch."""

    @property
    def max_text_tokens(self) -> int:
        """Tokens that longer texts are cut to."""
        return self.padded_text_length or self.text_length

    @property
    def num_patches(self) -> int:
        """Patches of a picture of image_size."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Values in one RGB patch."""
        return 3 * self.patch_size**2

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = not_positive(self, "image_size patch_size text_length", WIDEST)
        if problems:
            return problems
        if self.image_size < self.patch_size:
            problems.append(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        elif self.image_size % self.patch_size:
            size = self.patch_size * max(1, round(self.image_size / self.patch_size))
            problems.append(f"image_size {self.image_size} is not divisible by patch_size {self.patch_size} (nearest: {size})")
        elif self.num_patches == 1:
            problems.append(
                f"image_size {self.image_size} is a single patch (patch_size {self.patch_size}); masking needs more"
            )
        if self.text_length < 2:
            problems.append(f"text_length {self.text_length} leaves no room for a word after the [CLS]")
        if not 0 <= self.padded_text_length <= self.text_length:
            problems.append(f"padded_text_length {self.padded_text_length} is not between 0 and text_length {self.text_length}")
        return problems
