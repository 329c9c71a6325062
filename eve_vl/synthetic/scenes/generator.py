"""The generator `scenes`, as its entry point names it."""

from eve_vl.data.generated import Generator
from eve_vl.synthetic.scenes import layouts, rows

SCENES = Generator(
    rows={
        "captions": rows.ScenePairs,
        "questions": rows.SceneQuestions,
        "statements": rows.SceneStatements,
        "images": rows.SceneImages,
        "texts": rows.SceneTexts,
        "labels": rows.SceneLabels,
    },
    layouts={
        "captions": layouts.write_captions,
        "questions": layouts.write_questions,
        "statements": layouts.write_statements,
    },
)
