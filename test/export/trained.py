"""Experiment folders as training leaves them, around small networks with random weights."""

from pathlib import Path
from typing import Any, Dict

import torch
import yaml

from i2srf_kd.nets.dpdcrn import DPDCRN

SMALL = {"channels": 8, "blocks": 1, "heads": 2}


def make_network(seed: int = 0, num_mics: int = 1, n_fft: int = 512, **options: Any) -> DPDCRN:
    torch.manual_seed(seed)
    return DPDCRN(**{**SMALL, **options}, input_channels=2 * num_mics, n_fft=n_fft).eval()


def make_config(num_mics: int = 1, n_fft: int = 512, hop_length: int = 256, **more: Any) -> Dict[str, Any]:
    stft = {"n_fft": n_fft, "hop_length": hop_length}
    return {
        "encoder": "stft",
        "encoder_conf": stft,
        "decoder": "stft",
        "decoder_conf": stft,
        "separator": "dpdcrn",
        "separator_conf": {**SMALL, "num_mics": num_mics},
        "best_model_criterion": [["valid", "compressed_spectrum", "min"], ["valid", "loss", "min"]],
        **more,
    }


def save_weights(network: DPDCRN, path: Path, **more: torch.Tensor) -> None:
    state = {f"separator.net.{key}": value for key, value in network.state_dict().items()}
    torch.save({**state, **more}, path)


def make_experiment(folder: Path, network: DPDCRN, name: str = "latest.pth", **config: Any) -> Path:
    """Write an experiment with one file of weights; distillation's parameters are in it, as after a distillation."""
    folder.mkdir(parents=True, exist_ok=True)
    num_mics = network.input_channels // 2
    options = make_config(num_mics, n_fft=2 * (network.bins - 1), **config)
    (folder / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    save_weights(network, folder / name, **{"distillation.criterion.weight": torch.ones(3)})
    return folder
