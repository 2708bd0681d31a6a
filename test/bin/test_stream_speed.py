"""The command that measures streams."""

import pytest

from i2srf_kd.bin.stream_speed import main
from i2srf_kd.errors import UserError
from i2srf_kd.export.onnx import missing_packages


def test_a_row_for_each_runtime_and_block(capsys):
    assert main(["--preset", "dpdcrn_tiny_causal", "--seconds", "0.1", "--runs", "1", "--block_samples", "256"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    runtimes = ["torch"] if missing_packages() else ["torch", "onnxruntime"]
    assert [row[:3] for row in rows] == [["`dpdcrn_tiny_causal`", runtime, "256"] for runtime in runtimes]
    assert all(float(cell) > 0 for row in rows for cell in row[3:])


def test_wrong_options():
    with pytest.raises(UserError, match="--runs"):
        main(["--runs", "0"])
