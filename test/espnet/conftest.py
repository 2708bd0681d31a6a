"""Noise and real speech, and teachers trained on them."""

from pathlib import Path
from typing import Any, List

import pytest
import toy
import yaml

from i2srf_kd.espnet.task import DistillEnhancementTask


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with noise, tenths of a second long."""
    return toy.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiment of a DPDCRN of twelve channels, trained on the noise."""
    folder = tmp_path_factory.mktemp("teacher") / "exp"
    assert toy.in_child(toy.dpdcrn_command(data, folder, 12), task=DistillEnhancementTask) == 0
    return folder


@pytest.fixture()
def distilled(data: Path, teacher: Path, tmp_path: Path) -> Any:
    """Makes the options of a training with that teacher."""

    def arguments(name: str, *more: str, **calibration: Any) -> List[str]:
        config = {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 4, "calibration": calibration}}
        path = tmp_path / "distill.yaml"
        path.write_text(yaml.safe_dump(config))
        taught = ("--distill_config", str(path), "--teacher_exp", str(teacher))
        return toy.dpdcrn_command(data, tmp_path / name, 8, *taught, *more)

    return arguments


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cut of the mini corpus."""
    from speech_task import write_speech

    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="session")
def speech_teacher(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiment of a DPDCRN of twelve channels, trained for 15 steps on that cut."""
    import speech_task

    folder = tmp_path_factory.mktemp("speech_teacher") / "exp"
    command = speech_task.arguments(speech, folder, "--num_iters_per_epoch", "5", separator=speech_task.TEACHER)
    assert speech_task.train(command) == 0
    return folder
