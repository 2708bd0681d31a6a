"""Calibration weights on features of speech: what training them does to the loss that they scale."""

from pathlib import Path
from typing import Any, Dict, List, Mapping

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from i2srf_kd.distill import DistillMethod, Side, build_method
from i2srf_kd.distill.method import layout_of
from i2srf_kd.nets import DPDCRN
from i2srf_kd.nets.stft import STFT

FS = 16000
TRAINED_BY_THE_LOSS = {"learn_from": "loss", "temperature": 0.1}


@pytest.fixture(scope="module")
def features(audio_dir: Path) -> List[Dict[str, List[Tensor]]]:
    """Feature sets of a student and a teacher, on one second of four noisy recordings; the networks are not trained."""
    speech = [
        soundfile.read(path, dtype="float32")[0][FS // 2 :][:FS] for path in sorted(audio_dir.glob("clean/*"))[::60]
    ]
    speech = [clip / clip.std() for clip in speech if len(clip) == FS][:4]
    noise = np.random.default_rng(0).standard_normal((len(speech), FS))
    spectrum = STFT(512, 256)(torch.tensor(0.05 * np.stack(speech) + 0.02 * noise, dtype=torch.float32))
    found = []
    for seed, (channels, blocks) in enumerate([(8, 1), (16, 2)]):
        torch.manual_seed(seed)
        with torch.no_grad():
            found.append(DPDCRN(channels, blocks).eval()(spectrum, return_features=True).features)
    return found


def trained(features: List[Dict[str, List[Tensor]]], calibration: Mapping[str, Any], steps: int = 100) -> DistillMethod:
    """The method after updates of its own parameters alone: whatever falls then is not the student's doing."""
    student, teacher = features
    torch.manual_seed(0)
    method = build_method("i2srf_tfckd", layout_of(student), layout_of(teacher), inter=False, calibration=calibration)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(method(Side(student), Side(teacher)).values()).backward()
        optimizer.step()
    method(Side(student), Side(teacher))
    return method


def of_all(method: DistillMethod, suffix: str) -> List[float]:
    return [float(value) for name, value in method.diagnostics().items() if name.endswith(suffix)]


@pytest.mark.slow
def test_the_default_is_neither_one_hot_nor_the_same_for_all_frames(features: List[Any]) -> None:
    method = trained(features, {})
    assert min(of_all(method, "_entropy")) > 0.3
    assert np.mean(of_all(method, "_time_spread")) > 0.01
    weighted = sum(float(s.loss) for r in method.last.values() for s in r.streams.values())
    # Nothing that trains the weights lowers the loss much below that of uniform ones.
    assert weighted > 0.82 * sum(of_all(method, "_uniform"))


@pytest.mark.slow
def test_weights_trained_by_the_loss_that_they_scale_collapse(features: List[Any]) -> None:
    method = trained(features, TRAINED_BY_THE_LOSS)
    assert np.median(of_all(method, "_entropy")) < 0.1
    weighted = sum(float(s.loss) for r in method.last.values() for s in r.streams.values())
    assert weighted < 0.82 * sum(of_all(method, "_uniform"))
