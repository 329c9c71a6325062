"""The files of the page and its command; tests/serve/page tests them in a browser."""

import queue
import re
import webbrowser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from eve_vl.eve import Eve
from eve_vl.serve import server
from eve_vl.serve.application import application
from eve_vl.serve.page_files import page_files
from helpers.tiny_runs import tiny_run, write_run

FILES = page_files()
TEXTS = {path: file.read_text() for path, file in FILES.items() if path != "/report.css"}


@pytest.fixture
def client() -> TestClient:
    app = application([Eve(tiny_run("vqa"))], token="secret", with_page=True)
    return TestClient(app, base_url="http://localhost")


def test_the_page_is_there_without_the_token_and_nothing_else(client):
    kinds = {"/": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in FILES:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
        policy = answer.headers["content-security-policy"]
        assert (
            policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            and "unsafe" not in policy
        )
    for path in ("/v1/runs", "/service.py", "/page/app.js", "/..%2fservice.py", "/%2e%2e/web.py"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer secret"}).status_code == (
            200 if path == "/v1/runs" else 404
        )


def test_the_page_names_only_its_own_files():
    named = re.findall(r'(?:src|href)="([^"]+)"', TEXTS["/"])
    imported = re.findall(r'from "\./([^"]+)"', "".join(TEXTS.values()))
    assert {f"/{name}" for name in (*named, *imported) if not name.startswith("data:")} == set(
        FILES
    ) - {"/"}
    for path, text in TEXTS.items():
        outside = [
            address
            for address in re.findall(r"https?://[^'\"\s]+", text)
            if address != "http://www.w3.org/2000/svg"
        ]
        assert not outside, f"{path} would not work without the network"


@pytest.mark.parametrize("path", TEXTS)
def test_texts_never_become_html(path):
    """The policy refuses scripts in texts; that no text is read as HTML is the page's own care."""
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|\son\w+=\"",
        TEXTS[path],
    )


def test_eve_serve_prints_its_address_and_opens_the_browser(eve, tmp_path: Path, monkeypatch):
    write_run(tiny_run("vqa"), tmp_path / "run")
    opened: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(webbrowser, "open", opened.put)
    monkeypatch.setattr(server.Server, "run", lambda *_, **__: None)
    monkeypatch.setenv("DISPLAY", ":0")
    done = eve("serve", "run", "--port", 0)
    assert done.returncode == 0, done.stderr
    (address,) = re.findall(
        r"^serving on (http://127\.0\.0\.1:\d+) \(Ctrl-C stops\)$", done.stdout, re.MULTILINE
    )
    assert opened.get(timeout=30) == address
    eve("serve", "run", "--port", 0, "--no-browser")
    eve("serve", "run", "--port", 0, "--no-page")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    eve("serve", "run", "--port", 0)
    assert opened.empty(), "not where nobody would see it"
