"""The generator `phantoms`, as its entry point names it."""

from eve_vl.data.generated import Generator
from eve_vl.systems.medical.phantoms import layouts, rows
from eve_vl.systems.medical.phantoms.reports import class_prompts

NO_MEDICINE = (
    "Phantoms are schematic drawings: what is learnt from them proves code and protocols, "
    "and says nothing about medicine."
)

PHANTOMS = Generator(
    rows={
        "captions": rows.PhantomPairs,
        "questions": rows.PhantomQuestions,
        "images": rows.PhantomImages,
        "texts": rows.PhantomTexts,
        "labels": rows.PhantomLabels,
    },
    layouts=layouts.LAYOUTS,
    class_prompts=class_prompts,
    disclaimer=NO_MEDICINE,
    marker="PHANTOMS.txt",
)
