"""The table of distillation methods."""

import json
from pathlib import Path

import pytest

from i2srf_kd.bin import methods
from i2srf_kd.distill import method_class, method_names
from i2srf_kd.nets import DPDCRN
from i2srf_kd.system.errors import UserError

PAIR = ["--student_preset", "dpdcrn_tiny", "--teacher_preset", "dpdcrn_small"]


def rows(text: str) -> dict:
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_method_is_listed_with_its_source_without_a_forward_pass(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*args: object, **options: object) -> None:
        raise AssertionError("a network ran")

    monkeypatch.setattr(DPDCRN, "forward", forward)
    assert methods.main(PAIR) == 0
    table = rows(capsys.readouterr().out)
    assert set(table) == set(method_names())
    assert all(len(row) == 3 and row[0] and row[1] == method_class(name).source for name, row in table.items())
    # Regressors: encoder (3 layers), the dual-path block, decoder (2) onto 32 channels, and mask onto mask.
    regressors = 6 * (16 * 32 + 32) + (2 * 2 + 2)
    own = {name: int(row[2].replace(",", "")) for name, row in table.items()}
    assert own["spkd"] == 0 and own["i2srf_tfckd"] == own["i2rf_tfckd"] > 0  # they differ in arithmetic alone
    assert own["fitnets"] == regressors


def test_cost_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--method", "spkd", "--method", "dispatch", "--seconds", "0.2", "--batch", "2", "--repeats", "1"]
    assert methods.main([*PAIR, "--cost", *chosen]) == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert set(table) == {"spkd", "dispatch"}
    assert all(0 <= float(row[3]) < 50 for row in table.values())
    assert "2 x 0.2 s on cpu" in out


@pytest.mark.parametrize(
    "options, word",
    [
        (["--seconds", "0"], "--seconds"),
        (["--repeats", "0"], "--repeats"),
        (["--device", "x"], "cuda"),
        (["--data_dir", "x"], "add --cost"),
    ],
)
def test_bad_options_are_named(options: list, word: str) -> None:
    with pytest.raises(UserError, match=word):
        methods.main(options)


def test_json_and_a_method_of_your_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gradient of a method that is the task loss, scaled, is that scale."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from i2srf_kd.distill import DistillMethod, register_method\n"
        "from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss\n"
        "from i2srf_kd.nets import STFT\n"
        "@register_method('listed_mine')\n"
        "class Mine(DistillMethod):\n"
        '    """Three times the task loss."""\n'
        "    def forward(self, student, teacher, reference=None):\n"
        "        planes = student.spectrum, STFT()(reference)\n"
        "        estimate, target = (torch.complex(x[:, 0], x[:, 1]) for x in planes)\n"
        "        return {'task': 3 * compressed_spectrum_loss(estimate, target).mean()}\n"
    )
    chosen = ["--import", str(tmp_path / "mine.py"), "--method", "listed_mine", "--seconds", "0.2", "--repeats", "1"]
    assert methods.main([*PAIR, "--cost", *chosen, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["methods"]["listed_mine"]
    assert row["gradient"] == pytest.approx(3, rel=1e-3) and row["parameters"] == 0
    assert row["summary"] == "Three times the task loss."
    with pytest.raises(UserError, match="no distillation method 'nothing'"):
        methods.main([*PAIR, "--method", "nothing"])
