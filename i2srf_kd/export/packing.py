"""An experiment as ESPnet packs one, for its model zoo: one zip that ``SeparateSpeech.from_pretrained`` takes.

``espnet2.bin.pack enh`` names members by the places that links lead to, which a reader does not find when these lie
outside of the current folder. Here they are named by the experiment.
"""

import platform
import time
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
import yaml

from i2srf_kd.inference.experiment import CONFIG, Experiment, for_use
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, atomic_path
from i2srf_kd.system.packed import CONFIG_KEY, META, WEIGHTS_KEY, is_packed
from i2srf_kd.training.checkpoint import load_weights, torch_writing

_CARD = """---
tags: [espnet, audio, audio-to-audio]
library_name: espnet
---
# Speech enhancement: {name}

Separator `{separator}`, {fs} Hz, packed for ESPnet{by}.

```python
{imports}from espnet2.bin.enh_inference import SeparateSpeech

enhance = SeparateSpeech.from_pretrained("USER/{name}")  # or the zip
enhanced = enhance(noisy[None], fs={fs})[0]  # noisy: (samples,)
```
"""


def pack_experiment(
    folder: PathLike, out: PathLike, weights: Optional[str] = None, extra: Sequence[PathLike] = ()
) -> Path:
    """Write the zip.

    Args:
        folder: experiment folder.
        out: the zip to be written.
        weights: name of a file of weights (default: :meth:`Experiment.weights`).
        extra: further files, such as a table of results; they lie beside the configuration.

    Returns:
        The file of weights that was packed.

    Raises:
        UserError: there is no such experiment, or a file cannot be read or written.
    """
    if is_packed(folder):
        raise UserError(f"{folder} is packed already")
    if Path(out).suffix != ".zip":
        raise UserError(f"{out}: the packed model is a zip, call it .zip")
    experiment = Experiment(folder)
    chosen = experiment.weights(weights)
    state = for_use(load_weights(chosen))
    name = experiment.path.absolute().name
    inside = f"exp/{name}"
    meta = _meta(f"{inside}/{CONFIG}", f"{inside}/{chosen.name}")
    with torch_writing(Path(out)), atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(META, yaml.safe_dump(meta))
        archive.writestr("README.md", _card(experiment, name))
        archive.write(experiment.config_file, f"{inside}/{CONFIG}")
        with archive.open(f"{inside}/{chosen.name}", "w", force_zip64=True) as member:
            torch.save(state, member)
        for path in _present(extra):
            archive.write(path, f"{inside}/{path.name}")
    return chosen


def _meta(config: str, weights: str) -> Dict[str, Any]:
    try:
        espnet = {"espnet": version("espnet")}
    except PackageNotFoundError:
        espnet = {}
    return {
        "files": {WEIGHTS_KEY: weights}, "yaml_files": {CONFIG_KEY: config}, "timestamp": time.time(),
        "python": platform.python_version(), "torch": str(torch.__version__), **espnet,
    }  # fmt: skip


def _card(experiment: Experiment, name: str) -> str:
    registered = experiment.separator == "dpdcrn"
    return _CARD.format(
        name=name, separator=experiment.separator, fs=experiment.fs,
        by=" with `i2srf_kd`, whose import registers the separator" if registered else "",
        imports="import i2srf_kd.espnet\n" if registered else "",
    )  # fmt: skip


def _present(paths: Sequence[PathLike]) -> List[Path]:
    absent = [str(path) for path in paths if not Path(path).is_file()]
    if absent:
        raise UserError(f"{', '.join(absent)}: no such file to pack")
    return [Path(path) for path in paths]
