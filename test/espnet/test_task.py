"""What the task refuses, records and passes on; building models is tested in test_model.py."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
import yaml
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
from export.trained import SMALL, make_experiment, make_network
from small_models import options

from i2srf_kd.espnet import task
from i2srf_kd.espnet.task import DistillEnhancementTask, initial_weights
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.system.errors import UserError


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"model_conf": {"normalise": True}}, "normalise"),
        ({"criterions": [{"wrapper": "fixed_order"}]}, "a criterion has name"),
        ({"criterions": []}, "criterions is empty"),
        ({"separator": "tcn_nomask"}, "tcn_nomask"),
    ],
)
def test_models_that_cannot_be_built_are_named(changes: Dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        DistillEnhancementTask.build_model(options(**changes))


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"optim": "adamw", "optim_conf": {"learning_rate": 1}}, "--optim adamw.*learning_rate"),
        ({"optim": "adamw", "optim_conf": {"lr": "fast"}}, "--optim adamw"),
        (
            {"optim": "adamw", "optim_conf": {}, "scheduler": "steplr", "scheduler_conf": {"steps": 1}},
            "--scheduler steplr.*steps",
        ),
    ],
)
def test_optimisers_that_cannot_be_built_are_named(changes: Dict[str, Any], word: str) -> None:
    args = options(**changes)
    with pytest.raises(UserError, match=word):
        DistillEnhancementTask.build_optimizers(args, torch.nn.Linear(2, 2))


def test_init_is_carried_out() -> None:
    torch.manual_seed(0)
    plain = DistillEnhancementTask.build_model(options())
    torch.manual_seed(0)
    other = DistillEnhancementTask.build_model(options(init="xavier_uniform"))
    name = "separator.net.encoder.down1.conv.weight"
    assert not torch.equal(plain.state_dict()[name], other.state_dict()[name])


def test_initial_weights_must_cover_the_model(tmp_path: Path) -> None:
    state = DistillEnhancementTask.build_model(options()).state_dict()
    torch.save(state, tmp_path / "all.pth")
    torch.save(dict(list(state.items())[:3]), tmp_path / "few.pth")
    DistillEnhancementTask.build_model(options(init_param=[str(tmp_path / "all.pth")]))
    with pytest.raises(UserError, match="few.pth"):
        DistillEnhancementTask.build_model(options(init_param=[str(tmp_path / "few.pth")]))


def test_training_begins_with_a_model_in_any_form(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make_network()
    experiment = make_experiment(tmp_path / "exp", network)
    export_bundle(experiment, tmp_path / "exported", onnx=False)
    for name in ("exp", "exported"):
        text = initial_weights(str(tmp_path / name))
        model = DistillEnhancementTask.build_model(options(separator_conf=SMALL, init_param=[text]))
        load_pretrained_model(text, model, ignore_init_mismatch=False)
        for key, value in network.state_dict().items():
            assert torch.equal(model.state_dict()[f"separator.net.{key}"], value)
        with pytest.raises(UserError, match=r"separator.net.\S+ is .*, the model to be trained has"):
            DistillEnhancementTask.build_model(options(separator_conf={**SMALL, "channels": 12}, init_param=[text]))
    assert initial_weights("some.pth:a:b") == "some.pth:a:b"


def test_a_gpu_in_the_configuration_and_absent_is_named() -> None:
    if torch.cuda.device_count() > 6:
        pytest.skip("this machine has more GPUs than are asked for")
    with pytest.raises(UserError, match="--ngpu 7 but this machine shows"):
        DistillEnhancementTask.main_worker(options(ngpu=7))


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"teacher_exp": "exp/teacher"}, "--teacher_exp without"),
        ({"distill": {"method": "i2srf_tfckd", "weight": "much"}}, "weight must be a number"),
    ],
)
def test_contradicting_distillation_options_are_named(changes: Dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        DistillEnhancementTask.resolve_distillation(options(**changes))


def test_exit_codes_of_the_processes_of_each_gpu_reach_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: Any, **__: Any) -> None:
        raise torch.multiprocessing.ProcessExitedException("gone", error_index=0, error_pid=1, exit_code=75)

    monkeypatch.setattr(task.EnhancementTask, "main", ended)
    with pytest.raises(SystemExit) as stop:
        DistillEnhancementTask.main(options())
    assert stop.value.code == 75


def test_distill_file_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kd.yaml"
    for text, word in (("[1, 2]", "must hold options"), ("a: [", "no valid YAML")):
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            DistillEnhancementTask.resolve_distillation(options(distill_config=str(path)))
    path.write_text(yaml.safe_dump({"method": "i2srf_tfckd", "weight": 0}))
    args = options(distill_config=str(path), teacher_exp="exp/teacher")
    DistillEnhancementTask.resolve_distillation(args)
    assert args.distill == {} and args.teacher_exp is None


def test_a_configuration_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(UserError, match="bad.yaml"):
        DistillEnhancementTask.main(cmd=["--config", str(tmp_path / "bad.yaml"), "--output_dir", str(tmp_path)])


def test_hours_of_audio_set_epochs_and_schedule() -> None:
    given = {"chunk_length": "32000", "batch_size": 4, "num_iters_per_epoch": 100, "scheduler": "onecyclelr"}
    args = options(**given, scheduler_conf={"max_lr": 0.01, "total_steps": 7}, train_hours=6.2, accum_grad=2)
    task.plan_hours(args)
    assert args.max_epoch == 28 and args.scheduler_conf == {"max_lr": 0.01, "total_steps": 1400}
    args = options(**{**given, "scheduler": "cosineannealinglr"}, train_hours=0.001)
    task.plan_hours(args)
    assert args.max_epoch == 1 and args.scheduler_conf == {"T_max": 1}
    for changes in ({"train_hours": 0.0}, {"train_hours": 1.0, "num_iters_per_epoch": None}):
        with pytest.raises(UserError, match="--train_hours .* needs --num_iters_per_epoch"):
            task.plan_hours(options(**{**given, **changes}))


def test_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(distributed=False, dist_rank=None, dist_launcher=None)
    assert task.is_first_process(args)
    args.distributed = True
    for rank, first in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert task.is_first_process(args) is first
    args.dist_rank = 0
    assert task.is_first_process(args)


WITHOUT_NETWORK = """
import os, sys
def refuse(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        os.write(2, f"{event} {details}".encode())  # on a network that swallows packets it would never return
        os._exit(1)
sys.addaudithook(refuse)
import i2srf_kd.espnet.task
"""


@pytest.mark.slow
def test_importing_the_task_asks_the_network_for_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "NLTK_DATA": str(tmp_path)}  # no data sets of NLTK
    done = subprocess.run([sys.executable, "-c", WITHOUT_NETWORK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
