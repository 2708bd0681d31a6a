"""Commands that print or copy: complexity, examples."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from i2srf_kd.bin import complexity, examples
from i2srf_kd.system.errors import UserError


def test_complexity_prints_the_published_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert complexity.main(["--preset", "dpdcrn_student", "--seconds", "1"]) == 0
    assert "| `dpdcrn_student` | 64 | 1 | 595,494 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="num_mics"):
        complexity.main(["--num_mics", "0"])


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "test"
    folder.mkdir()
    tables = {"wav.scp": [], "spk1.scp": []}
    for i in range(5):
        for table in tables:
            path = folder / f"{table}_{i}.wav"
            soundfile.write(path, 0.1 * np.random.default_rng(i).standard_normal(8000), 16000)
            tables[table].append(f"utt{i} {path}\n")
    for table, lines in tables.items():
        (folder / table).write_text("".join(lines))
    return folder


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
