"""Commands that print or copy: complexity, examples."""

from pathlib import Path

import pytest
from waves import noise, write_table

from i2srf_kd.bin import complexity, examples
from i2srf_kd.system.errors import UserError


def test_complexity_prints_the_published_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert complexity.main(["--preset", "dpdcrn_student", "--seconds", "1"]) == 0
    assert "| `dpdcrn_student` | 64 | 1 | 595,494 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="num_mics"):
        complexity.main(["--num_mics", "0"])


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    for table in ("wav", "spk1"):
        write_table(tmp_path / "test", table, {f"utt{i}": noise(8000, seed=i) for i in range(5)})
    return tmp_path / "test"


def test_examples_show_every_system(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    examples.main([str(data), "-o", str(out), "--system", f"student={data / 'spk1.scp'}", "--num", "2"])
    names = {path.name for path in out.iterdir()}
    assert names == {f"utt{i}{end}" for i in (0, 4) for end in (".png", "_noisy.wav", "_student.wav", "_clean.wav")}


def test_examples_name_what_is_missing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "few.scp").write_text("utt1 /nowhere.wav\n")
    with pytest.raises(UserError, match="student has no utterance utt0"):
        examples.main([str(data), "-o", str(tmp_path / "out"), "--system", f"student={tmp_path / 'few.scp'}"])
    with pytest.raises(UserError, match="NAME=SCP"):
        examples.main([str(data), "-o", str(tmp_path / "out"), "--system", "student"])
