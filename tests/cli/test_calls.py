"""The verbs that apply a run to images and texts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from eve_vl.cli.calls import call_verbs
from eve_vl.cli.verbs import VERBS
from eve_vl.eve import Eve
from eve_vl.tasks.classification.predictor import ScoredLabel
from eve_vl.tasks.contrast.prompt_scorer import ClassScore
from eve_vl.tasks.vqa.predictor import ScoredAnswer
from eve_vl.train.run_log import RunLog
from helpers.tiny_runs import TEXT, noise, tiny_run, write_run

JSON = ("--json", "numbers.json")
FEW_ROWS = ("--data", "scenes:test", "--samples", 9)
USES = ("answer", "match", "verify", "classify", "fill-mask", "reconstruct", "explain")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, and a run of every task."""
    for number in (0, 1):
        Image.fromarray(noise(number, 40, 30)).save(tmp_path / f"{number}.png")
    for name in ("masked", "retrieval", "vqa", "nlvr2"):
        write_run(tiny_run(name), tmp_path / name)
    return tmp_path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("verb", USES)
def test_help_has_an_example(eve, verb):
    assert verb in {*VERBS, *call_verbs()}
    text = eve(verb, "--help").stdout
    assert f"eve {verb} RUN " in text
    assert "usage: eve" in text


def test_answer(eve, folder):
    done = eve("answer", "vqa", "0.png", TEXT, "--top", 2, "--json", "out/answers.json")
    assert done.returncode == 0, done.stderr
    expected = Eve.load(folder / "vqa").answer(folder / "0.png", TEXT, top=2)
    written = json.loads((folder / "out/answers.json").read_text())["answers"]
    lines = done.stdout.splitlines()
    for line, row, answer in zip(lines, written, expected, strict=True):
        assert row["answer"] == answer.answer
        assert row["probability"] == pytest.approx(answer.probability)
        assert line == f"{answer.probability:7.4f}  {answer.answer}"


@pytest.mark.parametrize(
    "result",
    [
        ScoredAnswer(answer="cat\n 0.9 \x1b[31mdog\u202e", probability=0.5),
        ScoredLabel(label="cat\n 0.9 \x1b[31mdog\u202e", probability=0.5),
        ClassScore(label="cat\n 0.9 \x1b[31mdog\u202e", score=0.5),
    ],
)
def test_a_label_is_one_line_and_steers_no_terminal(result):
    assert str(result).split("  ")[-1] == r"cat\n 0.9 \x1b[31mdog\u202e"


def test_match(eve, folder):
    done = eve("match", "retrieval", "0.png", TEXT, "--json", "match.json")
    expected = Eve.load(folder / "retrieval").match(folder / "0.png", TEXT)
    assert done.stdout == f"{expected:.4f}\n", done.stderr
    assert json.loads((folder / "match.json").read_text())["probability"] == pytest.approx(expected)


def test_verify(eve, folder):
    done = eve("verify", "nlvr2", "0.png", "1.png", TEXT, "--json", "verify.json")
    expected = Eve.load(folder / "nlvr2").verify(folder / "0.png", folder / "1.png", TEXT)
    assert done.stdout.startswith(f"{'true' if expected.is_true else 'false'} "), done.stderr
    assert f"{expected.probability:.4f}" in done.stdout
    assert json.loads((folder / "verify.json").read_text())["is_true"] == expected.is_true


def test_fill_mask(eve, folder):
    done = eve(
        "fill-mask", "masked", "0.png", "a [MASK] [MASK]", "--top", 3, "--json", "filled.json"
    )
    assert done.returncode == 0, done.stderr
    expected = Eve.load(folder / "masked").fill_mask(folder / "0.png", "a [MASK] [MASK]", top=3)
    lines = done.stdout.splitlines()
    assert lines[0] == expected.text
    assert [line.partition(": ")[0] for line in lines[1:]] == ["[MASK] 1", "[MASK] 2"]
    written = json.loads((folder / "filled.json").read_text())
    for row, guesses in zip(written["guesses"], expected.guesses, strict=True):
        assert [guess["text"] for guess in row] == [guess.text for guess in guesses]


def test_reconstruct(eve, folder):
    done = eve(
        "reconstruct", "masked", "0.png", TEXT, "--out", "new/pic.png", "--share", 0.5, "--seed", 3
    )
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
    assert done.returncode == 0, done.stderr
    expected = Eve.load(folder / "vqa").explain(folder / "0.png", TEXT, word="blue", block=0)
    sheet = np.asarray(Image.open(folder / "heat.png"))
    np.testing.assert_array_equal(sheet[::5, ::5], expected.overlays()[0])
    assert f"heat.png: {expected}" in done.stdout
    written = json.loads((folder / "heat.json").read_text())
    np.testing.assert_allclose(written["grids"], expected.grids, rtol=1e-5)
    assert (written["word"], written["block"], written["score"]) == ("blue", 0, expected.score)


def test_explain_two_images(eve, folder):
    done = eve("explain", "nlvr2", "0.png", TEXT, "--right", "1.png", "--out", "both.jpg")
    assert done.returncode == 0, done.stderr
    assert size(folder / "both.jpg") == (2 * 5 * 30 + 8, 5 * 40)
    assert "both.jpg: Grad-CAM of the label " in done.stdout


def test_encode(eve, folder):
    texts = [TEXT, "a circle", "a"]
    inputs = ("1.png", "0.png", "--texts", *texts)
    done = eve("features", *inputs, "--run", "retrieval", "--out", "f.npz", "--batch-size", 2)
    assert done.returncode == 0, done.stderr
    assert "image_features (2, 8), text_features (3, 8)" in done.stdout
    run = Eve.load(folder / "retrieval")
    of_images = run.encode_image([folder / "1.png", folder / "0.png"])
    of_texts = run.encode_text(texts)
    with np.load(folder / "f.npz") as file:
        assert json.loads(file["images"].item()) == ["1.png", "0.png"]
        assert json.loads(file["texts"].item()) == texts
        np.testing.assert_allclose(file["image_features"], of_images, atol=1e-5)
        np.testing.assert_allclose(file["text_features"], of_texts, atol=1e-5)
    done = eve("features", "--run", "vqa", "--texts", "a", "--out", "t.npz")
    assert done.returncode == 0, done.stderr
    with np.load(folder / "t.npz") as file:
        assert sorted(file) == ["text_features", "texts"]


def test_a_file_of_features_is_as_large_as_what_is_in_it(eve, folder):
    """And not as if every text were as long as the longest; it is read without pickle."""
    texts = ["word " * 800 + "é", *(f"text {number}" for number in range(300))]
    table = folder / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = eve("features", "--run", "retrieval", "--texts-of", "texts.jsonl", "--out", "f.npz")
    assert done.returncode == 0, done.stderr
    with np.load(folder / "f.npz", allow_pickle=False) as file:
        assert json.loads(file["texts"].item()) == texts
        features_size = file["text_features"].nbytes
    assert (folder / "f.npz").stat().st_size < features_size + 2 * table.stat().st_size


def test_encode_a_folder_and_a_table(eve, folder):
    """What cannot be used is listed; with nothing left the exit code is 1."""
    (folder / "photos").mkdir()
    for number in range(3):
        Image.fromarray(noise(number, 20 + number, 30)).save(folder / f"photos/{number}.png")
    (folder / "photos/broken.png").write_bytes(b"not an image")
    (folder / "texts.csv").write_text(f"text\na circle\n{TEXT}\n")
    inputs = ("photos", "--texts-of", "texts.csv", "--texts", "a")
    done = eve("features", *inputs, "--run", "retrieval", "--out", "f.Safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "skipped: broken.png: not an image in a known format "
        "(JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF)",
        "f.Safetensors: image_features (3, 8), text_features (3, 8)",
        "note: 1 row could not be used; the file lists what was `skipped`",
    ]
    run = Eve.load(folder / "retrieval")
    paths = [folder / f"photos/{number}.png" for number in range(3)]
    of_images = run.encode_image(paths)
    of_texts = run.encode_text(["a", "a circle", TEXT])
    with safe_open(folder / "f.Safetensors", "numpy") as file:
        names = {name: json.loads(values) for name, values in file.metadata().items()}
        np.testing.assert_allclose(file.get_tensor("image_features"), of_images, atol=1e-5)
        np.testing.assert_allclose(file.get_tensor("text_features"), of_texts, atol=1e-5)
    assert names["images"] == list(map(str, paths))
    assert names["texts"] == ["a", "a circle", TEXT]
    assert len(names["skipped"]) == 1
    for path in paths:
        path.write_bytes(b"")
    done = eve("features", "photos", "--run", "retrieval", "--out", "none.npz")
    assert (done.returncode, done.stdout.count("skipped: ")) == (1, 4)
    assert done.stderr == "eve: none.npz: not written, because no row could be used\n"
    assert not (folder / "none.npz").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("answer", "nowhere", "0.png", "x"), "nowhere: no such run folder"),
        (("answer", "no:train:where", "0.png", "x"), "no:train:where: no such run folder"),
        (("answer", "vqa", "9.png", "x"), "image: no such file: 9.png"),
        (
            ("answer", "vqa", "vqa/state.json", "x"),
            "vqa/state.json: not an image in a known format",
        ),
        (("answer", "vqa", "0.png", " "), "text is empty"),
        (
            ("answer", "masked", "0.png", "x"),
            "to get one that allows answer: eve finetune demo_vqa --init masked",
        ),
        (
            ("match", "vqa", "0.png", "x"),
            "vqa is a run of task vqa, which allows encode_image, encode_text, answer, explain",
        ),
        (("fill-mask", "masked", "0.png", "a circle"), "write [MASK] in the text"),
        (
            ("reconstruct", "masked", "0.png", "a", "--out", "a.xyz"),
            "a.xyz: cannot write images with the ending '.xyz'",
        ),
        (("reconstruct", "masked", "0.png", "a", "--share", "2"), "share 2.0 is not in (0, 1)"),
        (("explain", "nlvr2", "0.png", "x"), "takes 2 images (1 given); give 2"),
        (
            ("explain", "vqa", "0.png", "a circle", "--word", "star"),
            '"star" is not a word of "a circle"',
        ),
        (
            ("explain", "vqa", "0.png", "a circle", "--wrd", "star"),
            "Unrecognized options: --wrd, star; did you mean '--word'?",
        ),
        (("features", "--run", "vqa"), "nothing to encode"),
        (
            ("features", "0.png", "--run", "vqa", "--out", "f.pt"),
            "f.pt: cannot write features with the ending '.pt'; name it .npz or .safetensors",
        ),
        (
            ("features", "0.png", "--run", "vqa", "--texts", "a"),
            "--texts and --texts-of have no effect on Parquet parts",
        ),
        (
            ("features", "0.png", "--run", "vqa", "--out", "f.npz", "--part-rows", 9),
            "--part-rows has no effect on a file (f.npz); leave it out",
        ),
        (
            ("features", "0.png", "--run", "vqa", "--out", "f.npz", "--format", "csv"),
            "have no effect without a folder or table; name one",
        ),
        (
            ("features", "0.png", "--run", "vqa", "--device", "cuda:77"),
            "device 'cuda:77': torch has no such device here",
        ),
        (("evaluate", "vqa", "vqa", "--rerank", 3), "Unrecognized options: --rerank, 3"),
        (
            ("evaluate", "headless", "masked"),
            "no task 'headless'; choose from classification, contrast_match, masked_signal, ",
        ),
        (
            ("evaluate", "retrieval", "retrieval", "--rerank", -1),
            "--rerank: rerank -1 is not in [0, inf)",
        ),
        (
            ("evaluate", "vqa", "vqa", "--data", "scenes:test", "--json", "vqa"),
            "vqa: is a folder; name a file to write",
        ),
        (
            ("evaluate", "vqa", "vqa", "--data", "scenes:test", "--predictions", "0.png/a"),
            "0.png/a: cannot be written",
        ),
        (
            ("evaluate", "vqa", "vqa", *FEW_ROWS, "--predictions", "a"),
            "holds all 1000 rows",
        ),
        (
            ("evaluate", "retrieval", "retrieval", "--predictions", "a"),
            "no prediction file, those that answer, verify, ",
        ),
        (
            ("features", "--run", "vqa", "--texts", "a", "--out", "f.npz", "--batch-size", 0),
            "batch_size 0 is not positive",
        ),
    ],
)
def test_mistakes_end_in_one_line(eve, folder, argv, message):
    done = eve(*argv)
    assert done.returncode == 2
    assert done.stderr.startswith("eve: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_no_text_is_taken_for_an_emoji(eve, folder, capfd):
    """rich would print a train for ":train:", as in the name of a built-in source before a
    colon."""
    done = eve("fill-mask", "masked", "0.png", "[MASK]:train:", "--top", 1)
    assert done.stdout.splitlines()[0].endswith(":train:"), done.stderr
    log = RunLog(folder, first_step=0, num_steps=1, enabled=True)
    log.note(0, "scenes:train: read")
    log.close()
    assert capfd.readouterr().out == "scenes:train: read\n"


def test_a_note_says_when_re_ranking_makes_a_search_worse(eve, folder):
    """Exactly when the numbers next to the note say so."""
    notes_by_rerank = {}
    for rerank in (0, 2, 8):
        data = ("--data", "scenes:test", "--samples", 60)
        done = eve("evaluate", "retrieval", "retrieval", *data, "--rerank", rerank, *JSON)
        assert done.returncode == 0, done.stderr
        numbers = json.loads((folder / "numbers.json").read_text())
        notes = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
        assert notes.pop() == "note: 60 of 1,000 rows were measured; --samples N takes N"
        for note in notes:
            assert note.startswith("note: re-ranking makes this search worse (r_mean ")
        assert bool(notes) == (numbers["r_mean"] < numbers.get("r_mean_itc_only", 0))
        notes_by_rerank[rerank] = notes
    assert notes_by_rerank[0] == []
    assert any(notes_by_rerank.values())


@pytest.mark.parametrize(
    ("sources", "num_compared"),
    [(["scenes:train"], "500"), (["scenes:test", "scenes:train"], "1,000"), (["scenes:test"], "")],
)
def test_a_note_says_how_many_rows_a_run_was_trained_on(eve, folder, sources, num_compared):
    done = eve("evaluate", "nlvr2", "nlvr2", "--data", *sources, "--samples", 4)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
    leak = f"note: of {num_compared} rows compared, 500 show what this run was trained on"
    assert (leak in notes) == (num_compared != "")
    assert "rows were measured" in notes[-1]
    assert len(notes) == 1 + (leak in notes)


def test_a_file_for_the_server_has_every_question_or_is_not_written(eve, folder):
    (folder / "junk.png").write_bytes(b"junk")
    rows = [
        {"image": name, "question": "what", "question_id": i}
        for i, name in enumerate(("0.png", "junk.png", "1.png"))
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "all.jsonl").write_text("".join(lines))
    (folder / "good.jsonl").write_text(lines[0] + lines[2])
    broken = ("evaluate", "vqa", "vqa", "--data", "all.jsonl", "--skip-invalid")
    (folder / "answers.json").write_text("of before")
    done = eve(*broken, "--predictions", "answers.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "all 3 rows, but 1 cannot be used, the first: all.jsonl:2: " in done.stderr
    assert (folder / "answers.json").read_text() == "of before"
    usable = ("evaluate", "vqa", "vqa", "--data", "good.jsonl", "--skip-invalid")
    done = eve(*usable, "--predictions", "answers.json")
    assert done.returncode == 0, done.stderr
    answers = json.loads((folder / "answers.json").read_text())
    assert [row["question_id"] for row in answers] == [0, 2]


def test_from_training_to_an_answer(eve, tmp_path: Path):
    """Runs as the command line makes them, not as the tests write them."""
    saves = ("--train.save-every", 2, "--train.val-every", 2)
    few = ("--train.steps", 2, *saves, "--data.val-samples", 8)
    assert eve("pretrain", "tiny", "--out", "pre", *few).returncode == 0
    Image.fromarray(noise(0, 32, 32)).save(tmp_path / "0.png")
    done = eve("fill-mask", "pre", "0.png", "a [MASK] circle")
    assert done.returncode == 0, done.stderr
    done = eve(
        "finetune", "scenes_vqa", "--init", "pre", "--out", "vqa", *few, "--train.batch-size", 8
    )
    assert done.returncode == 0, done.stderr
    done = eve("answer", "vqa", "0.png", "what color is the circle", "--top", 1)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert eve("explain", "vqa", "0.png", "what color is the circle").returncode == 0
    assert size(tmp_path / "heatmap.png") == (224, 224)
