"""The section of model inputs: sizes of images and texts."""

from typing import Annotated, Literal

from eve_vl.config.sections import Values, Width


class InputConfig(Values):
    """Sizes of model inputs."""

    image_size: Width = 224
    """Side of the square input image, in pixels."""
    patch_size: Width = 16
    """Side of a patch, in pixels; images are embedded and masked by whole patches."""
    resize: Literal["squash", "crop"] = "squash"
    """From a whole image to the square, where training takes no random crop. squash: the image
    becomes a square. crop: its shorter side gets image_size, and the middle is cut out (CLIP)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation of resized images."""
    text_length: Annotated[int, "[2, 65536]"] = 40
    """Tokens of the longest text with its [CLS]; longer ones are cut."""
    padded_text_length: int = 0
    """Tokens to cut and pad every text to; 0: cut at text_length, pad to the longest of the
    batch."""

    @property
    def max_text_tokens(self) -> int:
        """Tokens to cut longer texts to."""
        return self.padded_text_length or self.text_length

    @property
    def num_patches(self) -> int:
        """Patches of an image of image_size."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Values in one RGB patch."""
        return 3 * self.patch_size**2

    def problems(self) -> list[str]:
        """Return the problems of sizes that do not go together, one sentence each."""
        size = self.image_size
        patch = self.patch_size
        problems = []
        if size < patch:
            problems.append(f"image_size {size} is smaller than patch_size {patch}")
        elif size == patch:
            problems.append(
                f"image_size {size} is a single patch (patch_size {patch}); masking needs more"
            )
        elif size % patch:
            nearest = patch * max(1, round(size / patch))
            problems.append(
                f"image_size {size} is not divisible by patch_size {patch} (nearest: {nearest})"
            )
        if not 0 <= self.padded_text_length <= self.text_length:
            problems.append(
                f"padded_text_length {self.padded_text_length} is not between 0 and text_length "
                f"{self.text_length}"
            )
        return problems
