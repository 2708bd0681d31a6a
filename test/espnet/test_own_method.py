"""A method from outside the package: the example in the documentation, trained, resumed, used without its file."""

import re
import shutil
from pathlib import Path
from typing import Any, Dict

import pytest
import speech_task
import torch
import toy
import yaml
from places import REPOSITORY

from i2srf_kd import load_enhancer
from i2srf_kd.bin import enhance, export
from i2srf_kd.bin import train as train_command

DOCUMENT = REPOSITORY / "docs" / "distillation.md"


def documented_example() -> Dict[str, str]:
    """The worked example's file and configuration, by language."""
    section = DOCUMENT.read_text().split("## A method of your own")[1]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL))


def command(speech: Path, teacher: Path, config: Path, exp: Path, *more: str) -> list:
    files = ("--distill_config", str(config), "--teacher_exp", str(teacher), "--num_iters_per_epoch", "4")
    return speech_task.arguments(speech, exp, *files, *more)


def run(arguments: list) -> int:
    def work() -> None:
        torch.set_num_threads(1)
        train_command.main(arguments)

    return speech_task.in_child(work)


@pytest.fixture()
def example(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    blocks = documented_example()
    (folder / "my_method.py").write_text(blocks["python"])
    (folder / "my_method.yaml").write_text(blocks["yaml"])
    return folder / "my_method.yaml"


def test_the_documented_example(speech: Path, speech_teacher: Path, example: Path, tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    assert run(command(speech, speech_teacher, example, exp, "--max_epoch", "1")) == 0
    assert run(command(speech, speech_teacher, example, exp, "--max_epoch", "2")) == 0  # goes on
    config = yaml.safe_load((exp / "config.yaml").read_text())
    assert config["distill"]["import"] == [str((example.parent / "my_method.py").resolve())]
    trained = toy.weights(exp, "checkpoint.pth")
    assert trained["distillation.criterion.distiller.methods.0.adapt.weight"].shape == (12, 8, 1, 1)
    assert "distillation.criterion.distiller.methods.0.adapt.bias" not in trained
    assert int(trained["distillation.criterion.distiller.steps"]) == 8
    assert '"kd_mse"' in (exp / "metrics.jsonl").read_text()

    shutil.rmtree(example.parent)  # a trained model needs none of it
    noisy = next((speech / "valid").glob("*.wav.wav"))
    assert enhance.main([str(exp), str(noisy), "-o", str(tmp_path / "enhanced")]) == 0
    assert export.main([str(exp), "-o", str(tmp_path / "export"), "--onnx", "false"]) == 0
    mixture = 0.1 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_enhancer(tmp_path / "export")(mixture, 16000), load_enhancer(exp)(mixture, 16000))


@pytest.mark.parametrize(
    "content, changes, message",
    [
        (None, {"import": "absent.py"}, "import: absent.py does not exist"),
        (None, {"import": "no_such_package.method"}, "no_such_package.method cannot be imported"),
        (None, {"method": "bottleneck_mae"}, "my_method.py registers bottleneck_mse"),
        ("x = 1\n", {}, "my_method.py registers none"),
        ("x = 1\ny = x / 0\n", {}, r"ZeroDivisionError: division by zero \(.*my_method.py:2\)"),
        ("x = (\n", {}, "SyntaxError"),
    ],
)
def test_what_is_wrong_is_named(
    content: Any,
    changes: Dict[str, Any],
    message: str,
    speech: Path,
    speech_teacher: Path,
    example: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (example.parent / "my_method.py").write_text(content)
    example.write_text(yaml.safe_dump({**yaml.safe_load(example.read_text()), **changes}))
    assert run(command(speech, speech_teacher, example, tmp_path / "exp")) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: distill")]
    assert errors and re.search(message, errors[-1])
