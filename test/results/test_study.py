"""What a report reads: ablations, experiments, and what is missing from either."""

import json
import shutil
from pathlib import Path
from typing import Dict, Sequence

import numpy as np
import pytest
import yaml
from results import synthetic

from i2srf_kd.results.files import read_audio_paths
from i2srf_kd.results.study import read_study
from i2srf_kd.system.errors import UserError


@pytest.fixture(scope="module")
def experiments(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_experiments(tmp_path_factory.mktemp("recipe") / "exp", data)


def test_an_ablation_is_read_with_its_unfinished_runs(ablation: Path) -> None:
    for path in (ablation, ablation / "results_test.json"):
        study = read_study([path])
        assert [system.name for system in study.systems] == ["noisy", "teacher", "undistilled", "response", "i2srf"]
        cell = study.systems[-1]
        assert [len(cell.runs), len(cell.trained), len(cell.scored)] == [4, 3, 3]
        assert cell.distilled and not study.systems[2].distilled
        assert cell.differences["undistilled"]["pesq_wb"]["mean"] == pytest.approx(0.3)
        assert len(cell.runs[0].diagnostics) == synthetic.EPOCHS + 1
        assert sorted(cell.runs[0].audio()) == sorted(synthetic.UTTERANCES)
        assert study.baseline == "undistilled" and study.metrics == ["pesq_wb", "stoi", "si_sdr"]


def test_the_table_of_a_newer_version_is_refused(ablation: Path, tmp_path: Path) -> None:
    content = json.loads((ablation / "results_test.json").read_text())
    (tmp_path / "results_test.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(UserError, match="collect it again"):
        read_study([tmp_path])
    del content["noisy"]
    (tmp_path / "results_test.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a complete table"):
        read_study([tmp_path])


def test_experiments_are_compared_as_the_pipeline_does(experiments: Path, data: Path) -> None:
    study = read_study([experiments])
    assert [system.name for system in study.systems] == ["noisy", "teacher", "student", "student_kd"]
    assert study.baseline == "student" and study.test_set == "test"
    student, distilled = study.systems[2:]
    expected = np.mean([r["pesq_wb"] for r in student.runs[0].scores.values()])
    assert student.metrics["pesq_wb"]["mean"] == pytest.approx(expected)
    difference = distilled.differences["student"]["pesq_wb"]
    assert difference["mean"] == pytest.approx(0.2) and difference["low"] <= difference["mean"] <= difference["high"]
    assert study.mixture_scp == data / "wav.scp" and study.reference_scp == data / "spk1.scp"


def test_a_student_alone_brings_teacher_and_mixtures(experiments: Path) -> None:
    study = read_study([experiments / "student_kd"])
    assert [system.name for system in study.systems] == ["noisy", "teacher", "student_kd"]
    assert study.baseline is None


@pytest.mark.parametrize("keep", [True, False])
def test_experiments_that_were_copied_or_moved_bring_their_own_teacher(tmp_path: Path, keep: bool) -> None:
    synthetic.write_experiments(tmp_path / "exp", synthetic.write_data(tmp_path / "data" / "test"))
    there = tmp_path / "elsewhere" / "exp"
    (shutil.copytree if keep else shutil.move)(tmp_path / "exp", there)
    for paths in ([there], [there / "student", there / "student_kd"], [there, there / "student"]):
        study = read_study(paths)
        assert [system.name for system in study.systems] == ["noisy", "teacher", "student", "student_kd"]
        assert [len(system.runs) for system in study.systems] == [1, 1, 1, 1]
        assert all(Path(file).is_file() for system in study.systems for file in system.runs[0].audio().values())


def write_seeds(folder: Path, seeds: Dict[str, Sequence[int]]) -> None:
    """Two systems, better by 0.1 times the seed; the distilled one by 0.05 more."""
    for name, numbers in seeds.items():
        for seed in numbers:
            distill = synthetic.DISTILL if name == "kd" else None
            run = synthetic.write_training(folder / f"{name}_seed{seed}", 2.0, seed, distill)
            synthetic.write_scores(run / "scored_test", 2.0 + 0.1 * seed + (0.05 if distill else 0.0), seed)


def test_folders_of_seeds_are_one_system(tmp_path: Path) -> None:
    write_seeds(tmp_path, {"student": (0, 1), "kd": (0, 1)})
    study = read_study([tmp_path])
    assert [(system.name, len(system.runs)) for system in study.systems] == [("student", 2), ("kd", 2)]
    difference = study.systems[1].differences["student"]["pesq_wb"]
    assert difference["mean"] == pytest.approx(0.05) and difference["n_seeds"] == 2


@pytest.mark.parametrize("seeds", [(1, 2), (1, 2, 3)])
def test_seeds_are_paired_by_their_number(tmp_path: Path, seeds: Sequence[int]) -> None:
    write_seeds(tmp_path, {"student": (0, 1), "kd": seeds})
    difference = read_study([tmp_path]).systems[1].differences["student"]["pesq_wb"]
    assert difference["mean"] == pytest.approx(0.05) and difference["n_seeds"] == 1


def test_no_difference_without_common_seeds(tmp_path: Path) -> None:
    write_seeds(tmp_path, {"student": (0,), "kd": (1, 2)})
    system = read_study([tmp_path]).systems[1]
    assert system.differences == {} and system.metrics["pesq_wb"]["n_seeds"] == 2


def test_what_cannot_be_read_is_named(experiments: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_study([tmp_path / "absent"])
    with pytest.raises(UserError, match="neither an ablation nor an experiment"):
        read_study([tmp_path])
    with pytest.raises(UserError, match="no test set dev"):
        read_study([experiments], "dev")


def test_relative_audio_is_found_beside_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "recipe" / "dump" / "raw" / "test"
    folder.mkdir(parents=True)
    (folder / "a.wav").write_bytes(b"")
    (folder / "wav.scp").write_text("a dump/raw/test/a.wav\nb dump/raw/test/b.wav\n")
    paths = read_audio_paths(folder / "wav.scp")
    assert paths == {"a": str(folder / "a.wav"), "b": "dump/raw/test/b.wav"}
    assert read_audio_paths(tmp_path / "absent.scp") == {} == read_audio_paths(None)


def test_an_experiment_that_has_just_begun(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "phase": "train", "loss": 1.0}\n')
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 3}))
    (system,) = read_study([folder]).systems
    assert system.runs[0].seed == 3 and system.scored == [] and system.metrics == {}
