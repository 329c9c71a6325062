"""The first call of a converted run, before its folder gets its name.

Weights may be finite, and what they compute is not: a temperature of 0, a weight of 1e38.
"""

from pathlib import Path

import torch

from eve_vl.data.batches import normalize, padded
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.tasks.heads import heads_of
from eve_vl.utils.errors import UserError

TEXT = "a photo of a cat next to 2 dogs"


def check_run(folder: Path, where: str) -> None:
    """Load a run and call it with one image and one text.

    where: the file that it was converted from. Raises UserError.
    """
    try:
        run = load_run(folder)
    except UserError as error:
        problem = str(error).replace(str(folder), "the converted run")
        raise UserError(f"{where}: gives a run that cannot be loaded ({problem})") from None
    try:
        unusable = _outputs_without_finite_values(run)
    except (RuntimeError, IndexError) as error:
        problem = str(error).partition("\n")[0]
        raise UserError(f"{where}: gives a run that cannot be called ({problem})") from None
    if unusable:
        raise UserError(
            f"{where}: its {', '.join(unusable)} of an image and a text are NaN or infinite; "
            "download the file again"
        )


@torch.no_grad()
def _outputs_without_finite_values(run: LoadedRun) -> list[str]:
    """Return the names of outputs with NaN or infinity."""
    sizes = run.config.input
    num_values = 3 * sizes.image_size**2
    image = torch.arange(num_values).remainder(251).to(torch.uint8)
    images_BCHW = image.view(1, 3, sizes.image_size, sizes.image_size)
    ids = run.tokenizer.encode(TEXT, sizes.max_text_tokens)[0]
    ids_BT, is_padding_BT = padded([ids], run.tokenizer.pad_id, sizes.padded_text_length)
    pixels_BCHW = normalize(images_BCHW)
    inputs = {
        "pixels": pixels_BCHW,
        "right": pixels_BCHW,
        "ids": ids_BT,
        "is_padding": is_padding_BT,
    }
    outputs = {
        "image_features": run.task.image_features(images_BCHW),
        "text_features": run.task.text_features(ids_BT, is_padding_BT),
        **heads_of(run.task).outputs(inputs, None),
    }
    return [name for name, output in outputs.items() if not output.isfinite().all()]
