"""ESPnet3 takes the task by its dotted path, where the installed ESPnet has it (202611 on Python 3.12)."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
import yaml
from small_models import options, save_experiment

from i2srf_kd.espnet.model import DistillEnhancementModel
from i2srf_kd.espnet.separator import DPDCRNSeparator

task_utils = pytest.importorskip("espnet3.utils.task_utils", reason="this ESPnet has no ESPnet3")
TASK = "i2srf_kd.espnet.task.DistillEnhancementTask"


def model_section(**more: Any) -> Dict[str, Any]:
    wanted = ("encoder", "encoder_conf", "decoder", "decoder_conf", "separator", "separator_conf", "criterions")
    return {**{name: getattr(options(), name) for name in wanted}, **more}


def test_a_model_by_the_path_of_the_task(tmp_path: Path) -> None:
    model = task_utils.get_espnet_model(TASK, model_section())
    assert isinstance(model.separator, DPDCRNSeparator)
    task_utils.save_espnet_config(TASK, {"model": model_section()}, str(tmp_path))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["separator"] == "dpdcrn" and config["distill"] == {}


def test_a_student_with_its_teacher(tmp_path: Path) -> None:
    teacher = save_experiment(tmp_path / "teacher", options(separator_conf={"channels": 12, "heads": 2}))
    (tmp_path / "kd.yaml").write_text("{method: i2srf_tfckd, method_conf: {middle_channels: 4}}")
    section = model_section(distill_config=str(tmp_path / "kd.yaml"), teacher_exp=str(teacher), chunk_length=4000)
    model = task_utils.get_espnet_model(TASK, section)
    assert isinstance(model, DistillEnhancementModel)
    speech = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    loss, stats, _ = model(speech, torch.full((2,), 4000), speech_ref1=speech)
    loss.backward()
    assert {"kd", "kd_inter"} <= set(stats)
