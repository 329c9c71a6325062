"""What the server says of itself: OpenAPI, the forms of the page, notes on synthetic data."""

from dataclasses import replace
from pathlib import Path

from eve_vl.config import HELD_OUT
from eve_vl.eve import Eve
from eve_vl.systems.medical.phantoms.generator import NO_MEDICINE
from helpers.serving import serving
from helpers.tiny_runs import tiny_run


def test_openapi_describes_errors_and_the_token(client, runs):
    with serving(runs["vqa"], token="sesame") as guarded:
        headers = {"authorization": "Bearer sesame"}
        guarded_schema = guarded.get("/openapi.json", headers=headers).json()
        assert "/openapi.json" in guarded.get("/", headers=headers).text  # it has no page
    open_schema = client.get("/openapi.json").json()
    for schema in (guarded_schema, open_schema):
        for path, methods in schema["paths"].items():
            for about in methods.values():
                statuses = {*about["responses"]}
                is_open = path == "/healthz"
                assert ({"400", "401", "413", "415", "503"} <= statuses) == (not is_open)
                assert "422" not in statuses
                assert ("security" in about) == (schema is guarded_schema and not is_open)
    responses = guarded_schema["paths"]["/metrics"]["get"]["responses"]
    assert "text/plain" in responses["200"]["content"]
    (scheme,) = guarded_schema["components"]["securitySchemes"].values()
    assert scheme["scheme"] == "bearer"


def test_page_gets_the_form_of_each_call(client):
    forms = {}
    for run in client.get("/v1/runs").json()["runs"]:
        forms |= run["forms"]
    assert {*forms} == {"answer", "verify", "same", "classify", "match", "zero_shot", "fill_mask"}
    left, right, statement = forms["verify"]["fields"]
    assert forms["verify"]["title"] == "Verify"
    assert left == {
        "name": "left",
        "label": "Left image",
        "kind": "image",
        "required": True,
        "example": "",
    }
    assert (right["name"], right["kind"]) == ("right", "image")
    assert (statement["kind"], statement["example"]) == ("text", "both images show the same thing")


def test_runs_on_phantoms_say_that_they_are_no_medicine(folder, monkeypatch):
    written = folder / "written"
    written.mkdir()
    (written / "PHANTOMS.txt").touch()
    monkeypatch.chdir(written)  # where "held-out" is no folder
    photos = str(folder / "photos")
    sources = {
        "generated": ("phantoms:train", "phantoms:val"),
        "table": (str(written / "train.json"), HELD_OUT),
        "validated": (photos, str(written / "train" / "images")),
        "photos": (photos, HELD_OUT),
    }
    runs = []
    for name, (train, val) in sources.items():
        run = tiny_run("vqa", Path(name))
        data = replace(run.config.data, train=(train,), val=(val,))
        runs.append(Eve(replace(run, config=replace(run.config, data=data))))
    with serving(*runs) as client:
        facts = client.get("/v1/runs").json()["runs"]
    notes = {run["name"]: run.get("note") for run in facts}
    expected: dict[str, str | None] = dict.fromkeys(sources, NO_MEDICINE)
    assert notes == {**expected, "photos": None}
