"""The verbs that apply a run to images and texts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from eve_vl.eve import Eve
from eve_vl.tasks.classification.predictor import ScoredLabel
from eve_vl.tasks.contrast.prompt_scorer import ClassScore
from eve_vl.tasks.vqa.predictor import ScoredAnswer
from helpers.tiny_runs import TEXT, noise, tiny_run, write_run

USES = ("answer", "match", "verify", "classify", "fill-mask", "reconstruct", "explain")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two images, and a run of every task."""
    folder = tmp_path_factory.mktemp("calls")
    for number in (0, 1):
        Image.fromarray(noise(number, 40, 30)).save(folder / f"{number}.png")
    for name in ("masked", "retrieval", "vqa", "nlvr2"):
        write_run(tiny_run(name), folder / name)
    return folder


@pytest.fixture
def folder(eve, written: Path, monkeypatch) -> Path:
    """The folder of the runs, in which `eve` runs too."""
    monkeypatch.chdir(written)
    return written


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_help_of_each_call_has_an_example(eve):
    for verb in USES:
        text = eve(verb, "--help").stdout
        assert "usage: eve" in text
        assert f"eve {verb} RUN " in text


def test_answer(eve, folder):
    done = eve("answer", "vqa", "0.png", TEXT, "--top", 2, "--json", "out/answers.json")
    expected = Eve.load(folder / "vqa").answer(folder / "0.png", TEXT, top=2)
    written = json.loads((folder / "out/answers.json").read_text())["answers"]
    lines = done.stdout.splitlines()
    for line, row, answer in zip(lines, written, expected, strict=True):
        assert row["answer"] == answer.answer
        assert row["probability"] == pytest.approx(answer.probability)
        assert line == f"{answer.probability:7.4f}  {answer.answer}"


def test_label_is_one_line_and_steers_no_terminal():
    label = "cat\n 0.9 \x1b[31mdog\u202e"
    for result in (
        ScoredAnswer(answer=label, probability=0.5),
        ScoredLabel(label=label, probability=0.5),
        ClassScore(label=label, score=0.5),
    ):
        assert str(result).split("  ")[-1] == r"cat\n 0.9 \x1b[31mdog\u202e"


def test_match(eve, folder):
    done = eve("match", "retrieval", "0.png", TEXT, "--json", "match.json")
    expected = Eve.load(folder / "retrieval").match(folder / "0.png", TEXT)
    assert done.stdout == f"{expected:.4f}\n", done.stderr
    assert json.loads((folder / "match.json").read_text())["probability"] == pytest.approx(expected)


def test_verify(eve, folder):
    done = eve("verify", "nlvr2", "0.png", "1.png", TEXT, "--json", "verify.json")
    expected = Eve.load(folder / "nlvr2").verify(folder / "0.png", folder / "1.png", TEXT)
    assert done.stdout.startswith(f"{str(expected.is_true).lower()} "), done.stderr
    assert f"{expected.probability:.4f}" in done.stdout
    assert json.loads((folder / "verify.json").read_text())["is_true"] == expected.is_true


def test_fill_mask(eve, folder):
    """rich would print a train for ":train:"."""
    text = "a [MASK] [MASK] :train:"
    done = eve("fill-mask", "masked", "0.png", text, "--top", 3, "--json", "filled.json")
    expected = Eve.load(folder / "masked").fill_mask(folder / "0.png", text, top=3)
    lines = done.stdout.splitlines()
    assert lines[0] == expected.text, done.stderr
    assert lines[0].endswith(" :train:")
    assert [line.partition(": ")[0] for line in lines[1:]] == ["[MASK] 1", "[MASK] 2"]
    written = json.loads((folder / "filled.json").read_text())
    for row, guesses in zip(written["guesses"], expected.guesses, strict=True):
        assert [guess["text"] for guess in row] == [guess.text for guess in guesses]


def test_reconstruct(eve, folder):
    options = ("--out", "new/pic.png", "--share", 0.5, "--seed", 3)
    done = eve("reconstruct", "masked", "0.png", TEXT, *options)
    assert done.returncode == 0, done.stderr
    expected = Eve.load(folder / "masked").reconstruct(folder / "0.png", TEXT, share=0.5, seed=3)
    sheet = np.asarray(Image.open(folder / "new/pic.png"))
    side = 14 * 16  # enlarged by a whole number
    assert sheet.shape == (side, 3 * side + 16, 3)
    for number, image in enumerate((expected.original, expected.masked, expected.reconstructed)):
        first_column = number * (side + 8)
        columns = slice(first_column, first_column + side, 14)
        np.testing.assert_array_equal(sheet[::14, columns], image)
    assert (sheet[:, side : side + 8] == 255).all()


def test_explain(eve, folder):
    outputs = ("--out", "heat.png", "--json", "heat.json")
    done = eve("explain", "vqa", "0.png", TEXT, "--word", "blue", "--block", 0, *outputs)
    expected = Eve.load(folder / "vqa").explain(folder / "0.png", TEXT, word="blue", block=0)
    assert f"heat.png: {expected}" in done.stdout, done.stderr
    sheet = np.asarray(Image.open(folder / "heat.png"))
    np.testing.assert_array_equal(sheet[::5, ::5], expected.overlays()[0])
    written = json.loads((folder / "heat.json").read_text())
    np.testing.assert_allclose(written["grids"], expected.grids, rtol=1e-5)
    assert (written["word"], written["block"], written["score"]) == ("blue", 0, expected.score)

    done = eve("explain", "nlvr2", "0.png", TEXT, "--right", "1.png", "--out", "both.jpg")
    assert "both.jpg: Grad-CAM of the label " in done.stdout, done.stderr
    assert size(folder / "both.jpg") == (2 * 5 * 30 + 8, 5 * 40)


def test_features_of_images_and_texts_are_written_to_a_file(eve, folder):
    texts = [TEXT, "a circle", "a"]
    inputs = ("1.png", "0.png", "--texts", *texts)
    done = eve("features", "retrieval", *inputs, "--out", "f.npz", "--batch-size", 2)
    assert "image_features (2, 8), text_features (3, 8)" in done.stdout, done.stderr
    run = Eve.load(folder / "retrieval")
    with np.load(folder / "f.npz") as file:
        assert json.loads(file["images"].item()) == ["1.png", "0.png"]
        assert json.loads(file["texts"].item()) == texts
        of_images = run.encode_image([folder / "1.png", folder / "0.png"])
        np.testing.assert_allclose(file["image_features"], of_images, atol=1e-5)
        np.testing.assert_allclose(file["text_features"], run.encode_text(texts), atol=1e-5)


def test_file_of_texts_is_as_large_as_its_content(eve, folder):
    """And not as if every text were as long as the longest; it is read without pickle."""
    texts = ["word " * 800 + "é", *(f"text {number}" for number in range(100))]
    table = folder / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = eve("features", "retrieval", "--texts-of", "texts.jsonl", "--out", "t.npz")
    assert done.returncode == 0, done.stderr
    with np.load(folder / "t.npz", allow_pickle=False) as file:
        assert sorted(file) == ["text_features", "texts"]
        assert json.loads(file["texts"].item()) == texts
        features_size = file["text_features"].nbytes
    assert (folder / "t.npz").stat().st_size < features_size + 2 * table.stat().st_size


def test_features_of_a_folder_and_a_table(eve, folder, tmp_path: Path):
    """Unusable images are listed; if there are no others, the exit status is 1."""
    photos = tmp_path / "photos"
    photos.mkdir()
    paths = [photos / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.fromarray(noise(number, 20 + number, 30)).save(path)
    (photos / "broken.png").write_bytes(b"not an image")
    (tmp_path / "texts.csv").write_text(f"text\na circle\n{TEXT}\n")
    inputs = (photos, "--texts-of", tmp_path / "texts.csv", "--texts", "a")
    done = eve("features", "retrieval", *inputs, "--out", "f.Safetensors")
    assert done.stdout.splitlines() == [
        "skipped: broken.png: not an image in a known format "
        "(JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF)",
        "f.Safetensors: image_features (3, 8), text_features (3, 8)",
        "note: 1 row could not be used; the file lists what was `skipped`",
    ]
    with safe_open(folder / "f.Safetensors", "numpy") as file:
        names = {name: json.loads(values) for name, values in file.metadata().items()}
        image_features = file.get_tensor("image_features")
    of_images = Eve.load(folder / "retrieval").encode_image(paths)
    np.testing.assert_allclose(image_features, of_images, atol=1e-5)
    assert names["images"] == list(map(str, paths))
    assert names["texts"] == ["a", "a circle", TEXT]
    assert len(names["skipped"]) == 1

    for path in paths:
        path.write_bytes(b"")
    done = eve("features", "retrieval", photos, "--out", "none.npz")
    assert (done.returncode, done.stdout.count("skipped: ")) == (1, 4)
    assert done.stderr == "eve: none.npz: not written, because no row could be used\n"
    assert not (folder / "none.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("answer no:train:where 0.png x", "no:train:where: no such run folder"),
        ("answer vqa vqa/state.json x", "vqa/state.json: not an image in a known format"),
        (
            "answer masked 0.png x",
            "to get one that allows answer: eve finetune demo_vqa --init masked",
        ),
        (
            "match vqa 0.png x",
            "vqa is a run of task vqa, which allows encode_image, encode_text, answer, explain",
        ),
        (
            "reconstruct masked 0.png a --out a.xyz",
            "a.xyz: cannot write images with the ending '.xyz'",
        ),
        ("explain vqa 0.png x --wrd star", "Unrecognized options: --wrd, star; did you mean"),
        ("features vqa", "nothing to encode"),
        (
            "features vqa 0.png --out f.pt",
            "f.pt: cannot write features with the ending '.pt'; name it .npz or .safetensors",
        ),
        (
            "features vqa 0.png --texts a",
            "--texts and --texts-of have no effect on Parquet parts",
        ),
        (
            "features vqa 0.png --out f.npz --part-rows 9",
            "--part-rows has no effect on a file (f.npz); leave it out",
        ),
        (
            "features vqa 0.png --out f.npz --format csv",
            "have no effect without a folder or table; name one",
        ),
        ("evaluate headless masked", "no task 'headless'; choose from classification, "),
        ("evaluate retrieval retrieval --rerank -1", "--rerank: rerank -1 is not in [0, inf)"),
        (
            "evaluate vqa vqa --data scenes:test --json vqa",
            "vqa: is a folder; name a file to write",
        ),
        (
            "evaluate vqa vqa --data scenes:test --predictions 0.png/a",
            "0.png/a: cannot be written",
        ),
        (
            "evaluate vqa vqa --data scenes:test --samples 9 --predictions a",
            "holds all 1000 rows",
        ),
        (
            "evaluate retrieval retrieval --predictions a",
            "no prediction file, those that answer, verify, ",
        ),
    ],
)
def test_mistake_is_one_line(eve, folder, words, message):
    done = eve(*words.split())
    assert done.returncode == 2
    assert done.stderr.startswith("eve: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def notes_of(done) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("note: ")]


def test_note_says_when_re_ranking_makes_a_search_worse(eve, folder):
    """Exactly when the numbers next to the note say so."""
    command = ("evaluate", "retrieval", "retrieval", "--data", "scenes:test", "--samples", 60)
    is_worse = []
    for rerank in (0, 2, 8):
        done = eve(*command, "--rerank", rerank, "--json", "numbers.json")
        numbers = json.loads((folder / "numbers.json").read_text())
        is_worse.append(numbers["r_mean"] < numbers.get("r_mean_itc_only", 0))
        *notes, last = notes_of(done)
        assert len(notes) == is_worse[-1]
        for note in notes:
            assert note.startswith("note: re-ranking makes this search worse (r_mean ")
        assert last == "note: 60 of 1,000 rows were measured; --samples N takes N"
    assert is_worse[0] is False
    assert any(is_worse)


def test_note_says_how_many_rows_a_run_was_trained_on(eve, folder):
    command = ("evaluate", "nlvr2", "nlvr2", "--samples", 4, "--data", "scenes:test")
    (about_samples,) = notes_of(eve(*command))
    assert "rows were measured" in about_samples
    leak, about_samples = notes_of(eve(*command, "scenes:train"))
    assert leak == "note: of 1,000 rows compared, 500 show what this run was trained on"


def test_file_of_predictions_has_every_question_or_is_not_written(eve, folder, tmp_path: Path):
    (folder / "junk.png").write_bytes(b"junk")
    lines = []
    for number, name in enumerate(("0.png", "junk.png", "1.png")):
        row = {
            "image": str(folder / name),
            "question": "what",
            "question_id": number,
        }
        lines.append(json.dumps(row) + "\n")
    (folder / "all.jsonl").write_text("".join(lines))
    (folder / "good.jsonl").write_text(lines[0] + lines[2])
    answers = tmp_path / "answers.json"
    answers.write_text("of before")
    command = ("evaluate", "vqa", "vqa", "--skip-invalid", "--predictions", answers, "--data")
    done = eve(*command, "all.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert "all 3 rows, but 1 cannot be used, the first: all.jsonl:2: " in done.stderr
    assert answers.read_text() == "of before"
    done = eve(*command, "good.jsonl")
    assert done.returncode == 0, done.stderr
    assert [row["question_id"] for row in json.loads(answers.read_text())] == [0, 2]


def test_from_training_to_an_answer(eve, no_report, pretrained, tmp_path: Path):
    """Runs as the command line makes them, not as the tests write them."""
    Image.fromarray(noise(0, 32, 32)).save(tmp_path / "0.png")
    done = eve("fill-mask", pretrained, "0.png", "a [MASK] circle")
    assert done.returncode == 0, done.stderr
    few = ("--train.steps", 2, "--train.batch-size", 8, "--data.val-samples", 8)
    done = eve("finetune", "scenes_vqa", "--init", pretrained, "--out", "vqa", *few)
    assert done.returncode == 0, done.stderr
    question = "what color is the circle"
    done = eve("answer", "vqa", "0.png", question, "--top", 1)
    assert len(done.stdout.splitlines()) == 1, done.stderr
    assert eve("explain", "vqa", "0.png", question).returncode == 0
    assert size(tmp_path / "heatmap.png") == (224, 224)
