"""The list of what can be tapped."""

from pathlib import Path

import pytest
import torch
from places import CONF

from i2srf_kd.bin import taps
from i2srf_kd.espnet.tap_listing import guess_layout
from i2srf_kd.system.errors import UserError


@pytest.mark.parametrize(
    "small, large, is_complex, layout",
    [
        ((1, 8, 63, 33), (2, 8, 94, 33), False, "BCTF"),
        ((63, 1, 16), (94, 2, 16), False, "TBC"),
        ((1, 63, 257), (2, 94, 257), True, "BTF"),
        ((1, 16000), (2, 24000), False, "BT"),
        ((63, 33, 8), (188, 33, 8), False, None),  # batch and time in one axis
        ((1, 2, 63, 33, 4), (2, 2, 94, 33, 4), False, None),
        ((1, 4, 63, 63), (2, 4, 94, 94), False, None),  # attention
    ],
)
def test_layouts_are_found(small, large, is_complex: bool, layout) -> None:
    assert guess_layout(small, large, is_complex) == layout


def test_a_listed_tap_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(CONF / "small" / "train_teacher_bsrnn.yaml")
    assert taps.main([teacher, "--match", "mask_decoder", "--depth", "3", "--inputs"]) == 0
    said = capsys.readouterr().out
    assert "`{module: separator.bsrnn.mask_decoder, input: 0}`" in said
    assert "- module: separator.bsrnn.norm_time.3" in said and "decoder: 2 x 63 x 257" in said  # by default
    (tmp_path / "kd.yaml").write_text("teacher_taps: {late: [{module: separator.bsrnn.mask_decoder, input: 0}]}\n")
    assert taps.main([teacher, "--check", str(tmp_path / "kd.yaml")]) == 0
    assert "late: 32 x 63 x 29" in capsys.readouterr().out
    assert torch.is_grad_enabled()


def test_networks_that_announce_their_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert taps.main([str(CONF / "mini" / "train_student.yaml"), "--match", "exit"]) == 0
    assert "dual_path: 8 x 63 x 64" in capsys.readouterr().out


def test_bad_calls_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no separator"):
        taps.main([str(CONF / "distill" / "spkd.yaml")])
    with pytest.raises(UserError, match="teacher_taps: tap 'nothing'"):
        (tmp_path / "kd.yaml").write_text("teacher_taps: {a: [nothing]}\n")
        taps.main([str(CONF / "mini" / "train_student.yaml"), "--check", str(tmp_path / "kd.yaml")])
    with pytest.raises(UserError, match="--match"):
        taps.main([str(CONF / "mini" / "train_student.yaml"), "--match", "absent"])
