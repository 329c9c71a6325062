"""The files of the page and its command; tests/serve/page tests them in a browser."""

import queue
import re
import webbrowser
from pathlib import Path

from fastapi.testclient import TestClient

from eve_vl.eve import Eve
from eve_vl.serve import server
from eve_vl.serve.application import application
from eve_vl.serve.page_files import page_files
from helpers.tiny_runs import tiny_run, write_run

FILES = page_files()
READ_AS_HTML = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|\son\w+=\""
TEXTS = {path: file.read_text() for path, file in FILES.items() if path != "/report.css"}


def test_only_the_page_is_there_without_the_token():
    app = application([Eve(tiny_run("vqa"))], token="secret", with_page=True)
    client = TestClient(app, base_url="http://localhost")
    kinds = {
        "/": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
    }
    for path in FILES:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
    with_token = {"authorization": "Bearer secret"}
    for path in ("/service.py", "/page/app.js", "/..%2fservice.py", "/%2e%2e/web.py"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=with_token).status_code == 404


def test_page_names_only_its_own_files_and_never_reads_texts_as_html():
    names = {"/"}
    for name in re.findall(r'(?:src|href)="([^"]+)"', TEXTS["/"]):
        if not name.startswith("data:"):
            names.add(f"/{name}")
    for path, text in TEXTS.items():
        names.update(f"/{name}" for name in re.findall(r'from "\./([^"]+)"', text))
        addresses = set(re.findall(r"https?://[^'\"\s]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path
        assert not re.search(READ_AS_HTML, text), path
    assert names == set(FILES)


def test_eve_serve_prints_its_address_and_opens_a_browser_that_can_be_seen(
    eve, tmp_path: Path, monkeypatch
):
    write_run(tiny_run("vqa"), tmp_path / "run")
    opened: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(webbrowser, "open", opened.put)
    monkeypatch.setattr(server.Server, "run", lambda *_, **__: None)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    command = ("serve", "run", "--port", 0)
    output = eve(*command).stdout
    line = r"^serving on (http://127\.0\.0\.1:\d+) \(Ctrl-C stops\)$"
    (address,) = re.findall(line, output, re.MULTILINE)
    assert opened.get(timeout=30) == address
    eve(*command, "--no-browser")
    eve(*command, "--no-page")
    monkeypatch.delenv("DISPLAY")
    eve(*command)
    assert opened.empty()
