"""Every shipped configuration in the real training model: it learns, spares the teacher, and leaves no trace."""

import copy
from pathlib import Path
from typing import Dict

import pytest
import torch
import yaml
from places import CONF
from small_models import as_teacher, options, save_experiment

from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.inference.experiment import TRAINING_ONLY_PREFIX
from i2srf_kd.system.errors import UserError

CONFIGS = CONF / "distill"
# Those that tap a teacher of another kind have a test of their own.
FOR_DPDCRN = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith("teacher_")]
CLIPS, SAMPLES = 3, 1600
NARROW = {"middle_channels": 4, "embedding_size": 4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    args = options(separator_conf={"channels": 16, "blocks": 2})
    return as_teacher(save_experiment(tmp_path_factory.mktemp("teacher"), args))


def test_the_published_form_names_the_batches_that_it_takes(teacher: Dict[str, str]) -> None:
    distill = yaml.safe_load((CONFIGS / "i2rf_tfckd_published.yaml").read_text())
    with pytest.raises(UserError, match="batches of 8 clips of 126 frames, the training has 3 of 26"):
        DistillEnhancementTask.build_model(options(distill=distill, batch_size=CLIPS, chunk_length=SAMPLES, **teacher))


def batch(clips: int = CLIPS, samples: int = SAMPLES) -> Dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(clips, samples, generator=generator)
    noise = torch.randn(clips, samples, generator=generator)
    return {
        "speech_mix": clean + 0.5 * noise,
        "speech_ref1": clean,
        "speech_mix_lengths": torch.full((clips,), samples),
    }


@pytest.mark.parametrize("config", FOR_DPDCRN, ids=lambda path: path.stem)
def test_a_few_steps(config: Path, teacher: Dict[str, str]) -> None:
    distill = yaml.safe_load(config.read_text())
    conf = distill.get("method_conf") or {}
    distill["method_conf"] = {**conf, **{option: NARROW[option] for option in NARROW if option in conf}}
    distill.pop("kd_only_steps", None)
    if (conf.get("calibration") or {}).get("embedding") == "fixed":
        distill["method_conf"]["calibration"].update(batch_size=CLIPS, frames=SAMPLES // 64 + 1)
    torch.manual_seed(0)
    sizes = {"batch_size": CLIPS, "chunk_length": SAMPLES}
    model = DistillEnhancementTask.build_model(options(distill=distill, **sizes, **teacher)).train()
    before = copy.deepcopy(model.teacher.model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss, stats, _ = model(**batch())
        optimizer.zero_grad()
        loss.backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"DDP refuses parameters without a gradient: {missing}"
        optimizer.step()
        losses.append(float(loss.detach()))
    assert torch.isfinite(stats["kd"]) and losses[-1] < losses[0]
    for name, value in model.teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    # Without the distillation's own keys, nothing is left but the undistilled student.
    plain = DistillEnhancementTask.build_model(options()).state_dict()
    kept = {k for k in model.state_dict() if not k.startswith(TRAINING_ONLY_PREFIX)}
    assert kept == set(plain)
