"""Exported models on the Hugging Face hub: ``hf://owner/name`` is downloaded, a folder is uploaded with its card.

Needs the package huggingface_hub. The hub's address is that of ``HF_ENDPOINT``, as for all of its programs.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import yaml

from i2srf_kd.metrics.table import METRICS
from i2srf_kd.models import HUB
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

# All that using a model reads: programs in a folder from elsewhere are neither run nor wanted.
PATTERNS = ["config.yaml", "*.pth", "*.onnx", "README.md", "complexity.json"]
TAGS = ["audio", "speech-enhancement", "noise-suppression", "dpdcrn", "i2srf_kd"]


class Publication(NamedTuple):
    """What is on the hub, or would be."""

    repo: str
    files: List[str]
    card: str
    """README.md with its front matter."""
    address: Optional[str]
    """Where it is; None after a dry run."""


def download(model: str) -> Path:
    """The folder of a model ``hf://owner/name`` or ``hf://owner/name@revision``, downloaded unless it is there.

    Raises:
        UserError: there is no such model, or no network.
    """
    repo, _, revision = model.removeprefix(HUB).partition("@")
    hub = _hub()
    try:
        return Path(
            hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=PATTERNS, endpoint=os.environ.get("HF_ENDPOINT")
            )
        )
    except _failures() as error:
        raise UserError(f"{model} cannot be downloaded: {_first_line(error)}") from None


def publish(
    folder: PathLike,
    repo: str,
    licence: str,
    scores: Optional[Mapping[str, Any]] = None,
    data_set: str = "test",
    private: bool = False,
    dry_run: bool = False,
) -> Publication:
    """Upload an exported folder.

    Args:
        folder: as ``i2srf_kd.bin.export`` wrote it.
        repo: ``owner/name``; made where it is absent.
        licence: the hub's identifier, such as ``cc-by-4.0``.
        scores: ``summary.json`` of a scored folder, for the card's front matter.
        data_set: what the scores were measured on.
        private: whether a new repository is seen by its owner alone.
        dry_run: upload nothing, and ask the network for nothing.

    Raises:
        UserError: the folder is no exported model, or the hub refuses.
    """
    from i2srf_kd.export.bundle import is_bundle

    folder = Path(folder)
    if not is_bundle(folder):
        raise UserError(f"{folder} is no exported model: make one with python -m i2srf_kd.bin.export")
    if repo.count("/") != 1:
        raise UserError(f"--repo {repo}: must be owner/name")
    card = _front_matter(repo, licence, scores, data_set) + (folder / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if dry_run:
        return Publication(repo, files, card, None)
    hub = _hub()
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "README.md").write_text(card, encoding="utf-8")
        paths = {name: Path(temporary) / name if name == "README.md" else folder / name for name in files}
        operations = [hub.CommitOperationAdd(name, str(path)) for name, path in paths.items()]
        try:
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            api.create_commit(repo, operations, commit_message="Model exported by i2srf_kd")
        except _failures() as error:
            raise UserError(f"{repo}: the hub refuses: {_first_line(error)}; hf auth login says who you are") from None
    return Publication(repo, files, card, address)


def _front_matter(repo: str, licence: str, scores: Optional[Mapping[str, Any]], data_set: str) -> str:
    """What the hub reads of a card: licence, tags, and scores as it shows them."""
    facts: Dict[str, Any] = {
        "license": licence, "library_name": "i2srf_kd", "pipeline_tag": "audio-to-audio", "tags": TAGS
    }  # fmt: skip
    if scores is not None:
        metrics = [
            {"type": name, "name": METRICS[name].name, "value": round(float(entry["mean"]) * METRICS[name].scale, 4)}
            for name, entry in scores["metrics"].items()
            if name in METRICS
        ]
        task = {"type": "audio-to-audio", "name": "Speech enhancement"}
        result = {"task": task, "dataset": {"type": data_set, "name": data_set}, "metrics": metrics}
        facts["model-index"] = [{"name": repo.partition("/")[2], "results": [result]}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n\n"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("models on the hub need the package huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


def _failures() -> Any:
    from huggingface_hub import errors

    # Its releases differ in the library that they ask with; all derive their error from that library's.
    return (errors.HFValidationError, *errors.HfHubHTTPError.__bases__, OSError)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
