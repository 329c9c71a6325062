"""Scenes written as a user's own folder: captions, questions or statements."""

from typing import Any

from eve_vl.data.image_refs import ImageDrawing, ImageRef
from eve_vl.synthetic.scenes.rows import ScenePairs, SceneQuestions, SceneStatements
from eve_vl.synthetic.write import IMAGE_SIZE, OutputFolder, TableRow


def write_captions(output: OutputFolder) -> None:
    """Write images, each with a text file of its captions."""
    scenes = ScenePairs(**_settings(output))
    for index in range(len(scenes)):
        row = scenes[index]
        _write_drawing(output, f"{index:05d}.png", row.image)
        output.write_lines(f"{index:05d}.txt", row.captions)


def write_questions(output: OutputFolder) -> None:
    """Write images and a table of a question about each."""
    scenes = SceneQuestions(**_settings(output))
    table: list[TableRow] = []
    for index in range(len(scenes)):
        row = scenes[index]
        image = f"{index:05d}.png"
        _write_drawing(output, image, row.image)
        table.append({"image": image, "question": row.question, "answer": row.answers[0]})
    output.write_jsonl("questions.jsonl", table)


def write_statements(output: OutputFolder) -> None:
    """Write pairs of images and a table of a statement about each pair."""
    scenes = SceneStatements(**_settings(output))
    table: list[TableRow] = []
    for index in range(len(scenes)):
        row = scenes[index]
        left = f"{index:05d}-left.png"
        right = f"{index:05d}-right.png"
        _write_drawing(output, left, row.left)
        _write_drawing(output, right, row.right)
        table.append({"images": [left, right], "statement": row.statement, "label": row.label})
    output.write_jsonl("statements.jsonl", table)


def _write_drawing(output: OutputFolder, file: str, image: ImageRef) -> None:
    assert isinstance(image, ImageDrawing)
    output.write_image(file, image.pixels)


def _settings(output: OutputFolder) -> dict[str, Any]:
    return {
        "split": "test",
        "image_size": IMAGE_SIZE,
        "seed": output.seed,
        "num_rows": output.num_rows,
    }
