"""Options of small models of the real task, and experiments of such models with random weights."""

import argparse
import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict

import torch
import yaml
from speech_task import CRITERION

from i2srf_kd.espnet.task import DistillEnhancementTask


@lru_cache(maxsize=1)
def _defaults() -> Dict[str, Any]:
    return DistillEnhancementTask.get_default_config()


def options(hop: int = 64, n_fft: int = 128, **changes: Any) -> argparse.Namespace:
    """Options of a DPDCRN of eight channels; ``changes`` win."""
    stft = {"n_fft": n_fft, "hop_length": hop}
    network = {
        "encoder": "stft", "encoder_conf": stft, "decoder": "stft", "decoder_conf": stft, "separator": "dpdcrn",
        "separator_conf": {"channels": 8, "blocks": 1}, "criterions": [CRITERION], "init": None,
    }  # fmt: skip
    return argparse.Namespace(**copy.deepcopy({**_defaults(), **network, **changes}))


def save_experiment(folder: Path, args: argparse.Namespace, seed: int = 1) -> Path:
    """An experiment with random weights."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(DistillEnhancementTask.build_model(args).state_dict(), folder / "1epoch.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump({**vars(args), "required": []}))
    (folder / "latest.pth").symlink_to("1epoch.pth")
    return folder


def as_teacher(folder: Path) -> Dict[str, str]:
    """The options that name an experiment as the teacher."""
    return {"teacher_config": str(folder / "config.yaml"), "teacher_model_file": str(folder / "1epoch.pth")}
