"""Configs that earlier versions wrote, brought to the present form, so that old run folders load for as long as the package
lives. `FORMAT` counts the forms; each step here leads from one to the next."""

from collections.abc import Callable
from reprlib import repr as shown
from typing import Any

from eve_vl.errors import UserError

FORMAT = 2
INPUT = ("image_size", "patch_size", "text_length", "padded_text_length")
CONTRAST = ("itc_weight", "itm_weight", "projection_dim")


def migrate(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values of a config.json in the present form. Raises UserError for a form that only a later version knows."""
    form = values.get("format", 1)
    if type(form) is not int or not 1 <= form <= FORMAT:
        raise UserError(f"{where}: has format {shown(form)}, but this version knows 1 to {FORMAT}; update the package")
    for name in ("model", "task"):
        if not isinstance(values.get(name, {}), dict):
            raise UserError(f"{where}: {name} is not a section, but {shown(values[name])}")
    for step in STEPS[form - 1 :]:
        values = step(values)
    return {key: value for key, value in values.items() if key != "format"}


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """Give the sizes of pictures and texts a section of their own, the model a kind, and rivals and bare encoders tasks of
    their own: they were masked_signal with other weights."""
    model, task = dict(values.get("model", {})), dict(values.get("task", {}))
    sizes = {key: model.pop(key) for key in INPUT if key in model}
    if task.get("name") == "masked_signal":
        if task.get("itc_weight"):
            task = {"mim_weight": 1.0, "itm_weight": 0.0} | task | {"name": "contrast_match"}  # its defaults at that time
        else:
            task = {key: value for key, value in task.items() if key not in CONTRAST}
            if not (task.get("mim_weight", 1) or task.get("mlm_weight", 1)):
                task = {"name": "encoder"}
    return values | {"input": sizes, "model": {"name": "eve"} | model, "task": task}


STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (_from_1,)
