"""The table of an ablation against numbers computed here from the scores that were written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from i2srf_kd.ablation import collect
from i2srf_kd.ablation.cost import training_cost
from i2srf_kd.ablation.grid import Cell, Grid
from i2srf_kd.ablation.runs import check_cells, runs_of, write_cells
from i2srf_kd.metrics import table as score_table
from i2srf_kd.results.scores import write_scores as write_score_files
from i2srf_kd.system.errors import UserError

UTTERANCES = [f"u{i:02d}" for i in range(12)]
METRICS = ("pesq_wb", "stoi", "si_sdr")
SEEDS = (0, 1, 5)
DIFFICULTY = np.random.default_rng(0).normal(0, 0.5, len(UTTERANCES))


def scores_of(offset: float, seed: int = 0) -> dict:
    """``{metric: (U,)}`` of a system that is better than the mixture by ``offset``."""
    generator = np.random.default_rng([seed, round(1000 * abs(offset))])
    noise = generator.normal(0, 0.02, (len(METRICS), len(UTTERANCES))) + 0.02 * seed
    return {metric: 2.0 + DIFFICULTY + offset + noise[i] for i, metric in enumerate(METRICS)}


def write_scores(folder: Path, scores: dict) -> None:
    rows = [
        {"utt": utt, "seconds": 2.0, **{m: float(scores[m][i]) for m in METRICS}} for i, utt in enumerate(UTTERANCES)
    ]
    write_score_files(folder, rows, METRICS)


OFFSETS = {"plain": 0.3, "response": 0.45, "full": 0.6}
TEACHER, NOISY = scores_of(0.9), scores_of(0.0)
TEACHER["stoi"] = scores_of(0.3)["stoi"] + np.resize([0.02, -0.02], len(UTTERANCES))  # no gap to close


class Study:
    """A grid whose runs have left scores behind."""

    def __init__(self, root: Path) -> None:
        cells = [
            Cell(name, None if name == "plain" else {"method": name, "weight": 1.0}, None, "", SEEDS)
            for name in OFFSETS
        ]
        self.grid = Grid(root / "g.yaml", "A title", {}, cells, "plain", ["response"])
        self.root = root / "exp" / "ablation" / "g"
        self.runs = runs_of(self.grid, self.root)
        self.places = collect.Places(
            self.root, root / "dump", root / "exp" / "noisy", root / "exp" / "teacher", root / "elsewhere"
        )
        write_scores(root / "exp" / "noisy" / "scored_test", NOISY)
        write_scores(root / "exp" / "teacher" / "scored_test", TEACHER)
        for run in self.runs:
            self.finish(run)

    def finish(self, run) -> None:
        write_scores(run.scored("test"), scores_of(OFFSETS[run.cell.name], run.seed))
        for name in (".done_train", ".done_test"):
            (run.folder / name).touch()
        seconds = 0.2 if run.cell.name == "plain" else 0.3
        lines = [
            {"epoch": e, "phase": p, "total_count": 10 * e, "train_time": seconds, "seconds": 10 * seconds}
            for e in (1, 2)
            for p in ("train", "valid")
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def unfinish(self, cell: str, seed: int, code: int) -> None:
        (run,) = [run for run in self.runs if (run.cell.name, run.seed) == (cell, seed)]
        (run.folder / "state.json").write_text(json.dumps({"exit_code": code}))
        (run.folder / ".done_test").unlink()

    def build(self) -> dict:
        return collect.build(self.grid, self.runs, self.places, "test", "./ablate.sh --grid g.yaml")

    def cells(self) -> dict:
        return {cell["name"]: cell for cell in self.build()["cells"]}


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path)


def matrix(cell: str, metric: str, seeds=SEEDS) -> np.ndarray:
    return np.array([scores_of(OFFSETS[cell], seed)[metric] for seed in seeds])


def test_means_deviations_and_paired_differences(study):
    cells = study.cells()
    for name in OFFSETS:
        for metric in METRICS:
            ours, values = cells[name]["metrics"][metric], matrix(name, metric)
            assert ours["mean"] == pytest.approx(values.mean())
            assert ours["seed_std"] == pytest.approx(stats.tstd(values.mean(axis=1)))
            assert (ours["n_seeds"], ours["n"]) == (3, 36) and ours["low"] < ours["mean"] < ours["high"]
            assert cells[name]["seeds"][2]["metrics"][metric] == pytest.approx(values[2].mean())
    assert set(cells["full"]["differences"]) == {"plain", "response"}
    assert set(cells["plain"]["differences"]) == {"response"}
    difference = cells["full"]["differences"]["plain"]["pesq_wb"]
    expected = matrix("full", "pesq_wb") - matrix("plain", "pesq_wb")
    assert difference["mean"] == pytest.approx(expected.mean()) and difference["share_positive"] == 1.0
    # utterances and seeds cancel in the pairs: far narrower than the score's own interval
    score = cells["full"]["metrics"]["pesq_wb"]
    assert difference["high"] - difference["low"] < 0.2 * (score["high"] - score["low"])


def test_share_of_the_gap(study):
    gap = study.cells()["full"]["gap_closed"]
    student, cell = matrix("plain", "pesq_wb"), matrix("full", "pesq_wb")
    share = (cell - student).mean() / (TEACHER["pesq_wb"] - student).mean()
    assert gap["pesq_wb"]["share"] == pytest.approx(share) and gap["pesq_wb"]["low"] < share < gap["pesq_wb"]["high"]
    assert gap["stoi"]["share"] is None and gap["stoi"]["gap"]["low"] < 0 < gap["stoi"]["gap"]["high"]
    assert study.cells()["plain"]["gap_closed"] is None


def test_no_share_of_a_gap_to_a_teacher_that_is_worse(tmp_path, monkeypatch):
    monkeypatch.setitem(TEACHER, "si_sdr", scores_of(-0.5)["si_sdr"])
    gap = Study(tmp_path).cells()["full"]["gap_closed"]["si_sdr"]
    assert gap["share"] is None and gap["low"] is None and gap["gap"]["high"] < 0


def test_share_of_the_gap_where_lower_is_better(tmp_path, monkeypatch):
    """The teacher's error is above the students': no gap to close; below: a share."""
    monkeypatch.setitem(score_table.METRICS, "si_sdr", score_table.METRICS["wer"])
    monkeypatch.setitem(TEACHER, "stoi", scores_of(-0.5)["stoi"])
    monkeypatch.setitem(score_table.METRICS, "stoi", score_table.METRICS["wer"])
    gap = Study(tmp_path).cells()["full"]["gap_closed"]
    assert gap["si_sdr"]["share"] is None and gap["si_sdr"]["gap"]["high"] < 0
    student, cell = matrix("plain", "stoi"), matrix("full", "stoi")
    share = (cell - student).mean() / (TEACHER["stoi"] - student).mean()
    assert gap["stoi"]["share"] == pytest.approx(share) and share < 0 < gap["stoi"]["gap"]["low"]


def test_cost_is_relative_to_the_baseline(study):
    cells = study.cells()
    assert cells["full"]["training"]["steps"] == 20
    assert cells["full"]["training"]["seconds_per_step"] == pytest.approx(0.3)
    assert cells["full"]["training"]["hours"] == pytest.approx(4 * 3.0 / 3600)
    assert cells["full"]["relative_cost"] == pytest.approx(1.5) and cells["plain"]["relative_cost"] == 1.0


def test_only_common_seeds_are_compared(study):
    study.unfinish("plain", 1, 0)
    study.unfinish("response", 5, 3)
    results = study.build()
    cells = {cell["name"]: cell for cell in results["cells"]}
    assert cells["full"]["metrics"]["stoi"]["n_seeds"] == 3
    for other, seeds in (("plain", (0, 5)), ("response", (0, 1))):
        difference = cells["full"]["differences"][other]["si_sdr"]
        expected = matrix("full", "si_sdr", seeds) - matrix(other, "si_sdr", seeds)
        assert difference["n_seeds"] == 2 and difference["mean"] == pytest.approx(expected.mean())
    states = [seed["state"] for seed in cells["response"]["seeds"]]
    assert states == ["finished", "finished", "failed"]
    text = collect.write(results, study.root).read_text()
    assert "| plain | 2 of 3 |" in text and "- response, seed 5: failed (`response/seed5/logs/run.log`)" in text


def test_nothing_finished_in_a_cell(study):
    for seed in SEEDS:
        study.unfinish("plain", seed, 0)
    cells = study.cells()
    assert cells["plain"]["metrics"] is None and cells["full"]["differences"]["plain"] is None
    assert cells["full"]["gap_closed"] is None and cells["full"]["relative_cost"] is None
    collect.write(study.build(), study.root)


def test_files_and_relative_paths(study):
    table = collect.write(study.build(), study.root)
    assert sorted(path.name for path in study.root.glob("results_*")) == [
        "results_test.csv", "results_test.json", "results_test.md", "results_test.png"
    ]  # fmt: skip
    results = json.loads((study.root / "results_test.json").read_text())
    for cell in results["cells"]:
        for seed in cell["seeds"]:
            assert (study.root / seed["experiment"] / "metrics.jsonl").is_file()
            assert (study.root / seed["scored"] / "scores.csv").is_file()
    assert (study.root / results["noisy"]["scored"] / "scores.csv").is_file()
    assert (study.root / results["teacher"]["scored"] / "scores.csv").is_file()
    assert results["teacher"]["experiment"] == "../../../elsewhere" and results["pictures"] == ["results_test.png"]
    with (study.root / "results_test.csv").open() as file:
        rows = {(row["system"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == 5 * len(METRICS)
    assert float(rows["full", "stoi"]["minus_plain"]) == results["cells"][2]["differences"]["plain"]["stoi"]["mean"]
    assert rows["noisy", "stoi"]["minus_plain"] == rows["full", "stoi"]["gap_closed"] == ""
    lines = table.read_text().splitlines()
    first = [line for line in lines if line.startswith(("| noisy", "| teacher", "| plain", "| full"))][:4]
    assert [line.split(" | ")[0] for line in first] == ["| noisy", "| teacher", "| plain", "| full"]
    pesq = results["cells"][0]["metrics"]["pesq_wb"]
    assert f"{pesq['mean']:.3f} [{pesq['low']:.3f}, {pesq['high']:.3f}]" in first[2]
    assert any(line.startswith("| full |") and "undefined" in line for line in lines)
    assert "./ablate.sh --grid g.yaml" in lines


def test_other_utterances_are_refused(study):
    scored = study.runs[0].scored("test")
    (scored / "scores.csv").write_text((scored / "scores.csv").read_text().replace("u03", "u99"))
    with pytest.raises(UserError, match="plain, seed 0 was scored on other utterances of test"):
        study.build()


def test_the_order_of_utterances_does_not_matter(study):
    before = study.build()
    scored = study.runs[0].scored("test") / "scores.csv"
    header, *lines = scored.read_text().splitlines()
    scored.write_text("\n".join([header, *reversed(lines)]) + "\n")
    assert study.build()["cells"] == before["cells"]


def test_a_changed_cell_is_not_mixed_with_what_was_trained(study):
    write = Grid(**{**vars(study.grid)})
    for run in study.runs:
        (run.folder / ".done_train").unlink()
    write_cells(write, study.root)
    for run in study.runs:
        (run.folder / ".done_train").touch()
    check_cells(write, study.root)
    write.cells[2] = Cell("full", {"method": "full", "weight": 0.5}, None, "", SEEDS)
    with pytest.raises(UserError, match="cell full has changed since it was trained"):
        write_cells(write, study.root)
    assert "weight: 1.0" in (study.root / "full" / "distill.yaml").read_text()


def test_cost_of_a_folder_without_a_log(tmp_path):
    assert training_cost(tmp_path) is None


def test_parameters_of_student_and_distillation(tmp_path):
    import torch

    (tmp_path / "config.yaml").write_text("separator: dpdcrn\n")
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "phase": "train", "total_count": 4, "train_time": 0.5}\n')
    weights = {
        "separator.net.a": torch.zeros(3, 2),
        "distillation.b": torch.zeros(7),
        "distillation.steps": torch.tensor(1),
    }
    torch.save(weights, tmp_path / "latest.pth")
    cost = training_cost(tmp_path)
    assert (cost["parameters"], cost["distillation_parameters"]) == (6, 7)


def test_commands_add_up_and_trainings_say_where_they_ran(study):
    """A table that is collected later keeps the command that trained, and each system the commit it was trained at."""

    def record(folder: Path, commit: str) -> None:
        start = {"git_hash": commit, "python": "3.11", "versions": {"torch": "2.11", "espnet": "202511"}}
        starts = [{**start, "cpu": "a CPU", "torch_threads": 1, "gpus": []}] * 2
        (folder / "environment.json").write_text(json.dumps({"starts": starts}))

    study.places.teacher_experiment.mkdir()
    record(study.places.teacher_experiment, "aaaa")
    for run in study.runs:
        record(run.folder, "bbbb" if run.cell.name == "full" else "aaaa")
    for command in ("./ablate.sh --grid g.yaml", "./ablate.sh --grid g.yaml", "./ablate.sh --action collect"):
        results = study.build()
        results["command"] = command
        text = collect.write(results, study.places.root).read_text()
    assert "\n./ablate.sh --grid g.yaml\n./ablate.sh --action collect\n```" in text
    trained = [line for line in text.splitlines() if line.startswith("- trained at")]
    plain = ", ".join(name for name in OFFSETS if name != "full")
    assert trained == [
        f"- trained at `aaaa` (espnet 202511, pytorch 2.11, a CPU, 1 thread(s)): teacher, {plain}",
        "- trained at `bbbb` (espnet 202511, pytorch 2.11, a CPU, 1 thread(s)): full",
    ]
    (study.places.teacher_experiment / "environment.json").write_text("{")
    assert study.build()["trainings"][0]["systems"] == [name for name in OFFSETS if name != "full"]
