"""The data section of recipes that train on phantoms."""

from dataclasses import replace

from eve_vl.recipes.settings import SCENES

PHANTOMS = replace(SCENES, train=("phantoms:train",), val=("phantoms:val",))
"""Never mirrored: left and right are the patient's."""
