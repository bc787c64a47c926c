"""Models of ModelScope, by its own client, from a server on this machine."""

import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from lrsweep.config.trial_schema import FinetuneConfig, ModelConfig
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.training import modelscope
from lrsweep.training.model import load_model, load_tokenizer
from lrsweep.training.model_folder import check_path

FILES = [file for file in BASE.iterdir() if file.is_file()]


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as ModelScope does for one model, whose files are those of the embedded one, and weights in a pickle."""

    asked: list[str]

    def do_GET(self) -> None:
        url = urlparse(self.path)
        place = url.path.removeprefix("/api/v1/models/org/tiny")
        body = json.dumps({"Code": 200, "Success": True, "Data": {}}).encode()
        if place == "/repo/files":
            files = [
                {
                    "Name": file.name,
                    "Path": file.name,
                    "Type": "blob",
                    "Size": file.stat().st_size,
                    "Sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                }
                for file in FILES
            ]
            files.append({"Name": "pytorch_model.bin", "Path": "pytorch_model.bin", "Type": "blob", "Size": 9})
            listed = {"Files": files, "TotalCount": len(files)}
            body = json.dumps({"Code": 200, "Success": True, "Data": listed}).encode()
        elif place == "/repo":
            name = parse_qs(url.query)["FilePath"][0]
            self.asked.append(name)
            body = (BASE / name).read_bytes()
        known = place != url.path or "models" not in url.path
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that were asked for."""
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    modelscope._downloaded.cache_clear()
    yield asked
    server.shutdown()
    server.server_close()
    modelscope._downloaded.cache_clear()


def test_a_model_is_downloaded_once(hub: list[str], tmp_path: Path) -> None:
    model = ModelConfig(path="modelscope:org/tiny")
    check_path(model)
    loaded = load_model(model, FinetuneConfig(mode="full"))
    embedded = load_model(ModelConfig(path="embedded"), FinetuneConfig(mode="full"))
    for one, other in zip(loaded.parameters(), embedded.parameters(), strict=True):
        assert one.equal(other)
    assert load_tokenizer(model).get_vocab() == load_tokenizer(ModelConfig(path="embedded")).get_vocab()
    assert sorted(hub) == sorted(file.name for file in FILES)  # each once, and no weights that are not loaded
    assert Path(modelscope.folder(model)).is_relative_to(tmp_path)


def test_a_model_that_is_not_there_is_one_line(hub: list[str]) -> None:
    with pytest.raises(InputError, match=r"^model\.path='modelscope:org/missing': cannot be loaded: "):
        load_tokenizer(ModelConfig(path="modelscope:org/missing"))


def test_without_its_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(InputError, match=r"modelscope, .* is not installed: pip install 'lrsweep\[modelscope\]'$"):
        check_path(ModelConfig(path="modelscope:org/tiny"))
