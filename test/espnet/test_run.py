"""Programs of ESPnet with this project's classes registered: which task trains, and what is refused."""

import sys
from pathlib import Path
from typing import List

import pytest

from i2srf_kd.espnet import run, task
from i2srf_kd.system.errors import UserError


@pytest.fixture()
def trained_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> List[str]:
    """Who was asked to train."""
    from espnet2.bin import enh_train

    called: List[str] = []
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(enh_train, "main", lambda: called.append("espnet"))
    monkeypatch.setattr(task, "main", lambda: called.append("i2srf_kd"))
    return called


@pytest.mark.parametrize(
    "options, config, trainer",
    [
        ("--collect_stats true --iterator_type chunk", "separator: dpdcrn", "espnet"),
        ("--distill_config kd.yaml --teacher_exp exp/teacher", "separator: dpdcrn", "i2srf_kd"),
        ("--quality_utts=4", "separator: dpdcrn", "i2srf_kd"),
        ("", "{separator: dpdcrn, mixing: {noise: noise}}", "i2srf_kd"),
    ],
)
def test_options_of_this_project_are_trained_by_its_task(
    options: str, config: str, trainer: str, trained_by: List[str], tmp_path: Path
) -> None:
    (tmp_path / "train.yaml").write_text(config)
    words = ["espnet2.bin.enh_train", "--config", str(tmp_path / "train.yaml"), *options.split()]
    assert run.main(words) == 0 and run.main(["-m", *words]) == 0
    assert trained_by == [trainer, trainer]
    assert sys.argv[1:] == words[1:]


@pytest.mark.parametrize("words", [[], ["-m"], ["--help"], ["espnet2.bin.absent"], ["espnet2.tasks.enh"]])
def test_what_is_no_program_is_refused(words: List[str]) -> None:
    with pytest.raises(UserError, match="program"):
        run.main(words)
