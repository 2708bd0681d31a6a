"""Exported models on a hub: a stand-in for it keeps what is uploaded and gives it back."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest
import yaml
from waves import noise

from i2srf_kd import load_enhancer
from i2srf_kd.bin import publish
from i2srf_kd.models import folder_of
from i2srf_kd.system.errors import UserError

pytest.importorskip("huggingface_hub")
COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """The few requests that creating, committing to and downloading a repository make."""

    files: Dict[str, bytes]
    asked: List[str]

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def answer(self, content: Any, code: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/{json.loads(body).get('organization')}/m"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        elif "/commit/" not in self.path:
            self.answer({"errors": [], "warnings": []})  # of the card
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"https://huggingface.co/me/m/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "pullRequestUrl": None,
                }
            )

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.split("?")[0].rpartition("/")[2]
        if "/nobody/" in self.path:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in self.path:
            there = {**self.files, "evil.py": b""}
            self.answer([{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in there.items()])
        elif self.path.startswith("/api/models/"):
            self.answer({"id": "me/m", "sha": COMMIT, "siblings": [], "private": False, "tags": []})
        elif name not in self.files:
            self.answer({}, 404)
        else:
            self.answer(self.files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture()
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    Hub.files, Hub.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture()
def scored(tmp_path: Path) -> Path:
    (tmp_path / "scored_voicebank").mkdir()
    metrics = {"pesq_wb": {"mean": 2.5}, "stoi": {"mean": 0.935}}
    (tmp_path / "scored_voicebank/summary.json").write_text(json.dumps({"metrics": metrics}))
    return tmp_path / "scored_voicebank"


def words(*more: str) -> List[str]:
    return [str(folder_of("dpdcrn_tiny")), "--repo", "me/m", "--licence", "cc-by-4.0", *more]


def front_matter(card: str) -> Dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_what_is_published_can_be_loaded(hub: Any, scored: Path) -> None:
    assert publish.main(words("--scored", str(scored))) == 0
    assert {"config.yaml", "weights.pth", "model.onnx", "README.md"} <= set(hub.files)
    for name in ("weights.pth", "config.yaml"):
        assert hub.files[name] == (folder_of("dpdcrn_tiny") / name).read_bytes()
    card = hub.files["README.md"].decode()
    facts = front_matter(card)
    assert facts["license"] == "cc-by-4.0" and facts["pipeline_tag"] == "audio-to-audio"
    (result,) = facts["model-index"][0]["results"]
    assert result["dataset"]["name"] == "voicebank"
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("pesq_wb", 2.5), ("stoi", 93.5)]
    assert card.endswith((folder_of("dpdcrn_tiny") / "README.md").read_text())
    wave = noise(8000)
    np.testing.assert_array_equal(load_enhancer("hf://me/m")(wave, 16000), load_enhancer()(wave, 16000))
    assert not any("evil.py" in path for path in hub.asked)


def test_a_dry_run_asks_for_nothing(hub: Any, capsys: Any) -> None:
    assert publish.main(words("--dry_run")) == 0
    printed = capsys.readouterr().out
    assert front_matter(printed)["library_name"] == "i2srf_kd" and "weights.pth" in printed
    assert not hub.asked


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "config.yaml").unlink(), "is no exported model"),
        (lambda folder: None, "must be owner/name"),
    ],
)
def test_what_cannot_be_published(tmp_path: Path, change: Any, message: str) -> None:
    shutil.copytree(folder_of("dpdcrn_tiny"), tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        publish.main([str(tmp_path / "model"), "--repo", "name", "--licence", "mit", "--dry_run"])


def test_a_model_that_is_not_there(hub: Any) -> None:
    with pytest.raises(UserError, match="hf://nobody/m cannot be downloaded"):
        load_enhancer("hf://nobody/m")


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="hf://me/other cannot be downloaded"):
        load_enhancer("hf://me/other")
    with pytest.raises(UserError, match="me/m: the hub refuses"):
        publish.main(words())
