"""Drawing of expert maps."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 336  # pixels, of the image of a block
OPACITY = 0.55  # of an expert's colour over the image
PADDING = 6
FONT_SIZE = 13
LINE_HEIGHT = FONT_SIZE + 2 * PADDING
GOLDEN_RATIO = 0.618  # step on the colour circle, so that adjacent numbers differ

Color = tuple[int, int, int]


def expert_colors(num_experts: int) -> list[Color]:
    """Return a light colour for each expert."""
    colors: list[Color] = []
    for expert in range(num_experts):
        hue = (0.6 + GOLDEN_RATIO * expert) % 1
        red, green, blue = colorsys.hls_to_rgb(hue, 0.7, 0.75)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def draw_block(
    title: str,
    colors: list[Color],
    image: np.ndarray | None,
    grid: tuple[int, int],
    experts_of_patches: list[int],
    words: list[tuple[str, int]],
) -> np.ndarray:
    """Return a drawing of one block, uint8 (H, SIDE, 3): a title, the tinted image, a line for each
    word with its expert."""
    image_height = 0 if image is None else SIDE
    first_word_y = LINE_HEIGHT + image_height
    sheet = Image.new("RGB", (SIDE, first_word_y + LINE_HEIGHT * len(words)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    draw.text((PADDING, PADDING), title, "black", font)
    if image is not None:
        sheet.paste(_tinted(image, grid, [colors[e] for e in experts_of_patches]), (0, LINE_HEIGHT))
        rows, columns = grid
        for patch, expert in enumerate(experts_of_patches):
            row, column = divmod(patch, columns)
            center = ((column + 0.5) * SIDE / columns, LINE_HEIGHT + (row + 0.5) * SIDE / rows)
            draw.text(center, str(expert), "black", font, anchor="mm")
    for number, (word, expert) in enumerate(words):
        y = first_word_y + number * LINE_HEIGHT
        draw.rectangle((0, y, SIDE, y + LINE_HEIGHT), colors[expert])
        draw.text((PADDING, y + PADDING - 1), f"{word} {expert}", "black", font)
    return np.asarray(sheet)


def _tinted(image: np.ndarray, grid: tuple[int, int], colors: list[Color]) -> Image.Image:
    """Return the image with each patch in the colour of its expert."""
    rows, columns = grid
    tints = Image.fromarray(np.array(colors, np.uint8).reshape(rows, columns, 3))
    size = (SIDE, SIDE)
    large_image = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
    large_tints = tints.resize(size, Image.Resampling.NEAREST)
    return Image.blend(large_image, large_tints, OPACITY)
