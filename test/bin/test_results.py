"""The result file: rows, differences, messages."""

import json
import re

import numpy as np
import pytest

from i2srf_kd.bin.results import main
from i2srf_kd.metrics.bootstrap import CrossedBootstrap
from i2srf_kd.metrics.table import METRICS as KNOWN
from i2srf_kd.metrics.table import SCORES
from i2srf_kd.results.scores import write_scores
from i2srf_kd.system.errors import UserError

METRICS = ("pesq_wb", "stoi")


def _scored(folder, gain, utterances=30, ref_channel=0, nan=()):
    generator = np.random.default_rng(0)
    rows = [
        {"utt": f"u{i:03d}", "seconds": 2.0, "pesq_wb": 2.0 + gain + 0.3 * generator.standard_normal(), "stoi": 0.9}
        for i in range(utterances)
    ]
    for index in nan:
        rows[index]["pesq_wb"] = float("nan")
    write_scores(folder, rows, METRICS, ref_channel=ref_channel, fs=16000)
    return rows


@pytest.fixture
def exp(tmp_path):
    _scored(tmp_path / "noisy", 0.0)
    _scored(tmp_path / "teacher" / "scored", 1.0)
    _scored(tmp_path / "student-kd" / "scored", 0.8)
    _scored(tmp_path / "student" / "scored", 0.6)
    complexity = {"parameters": 3218118, "gmacs_per_second": 9.5, "gmacs_per_second_with_recurrent": 13.25}
    (tmp_path / "teacher" / "complexity.json").write_text(json.dumps(complexity))
    return tmp_path


def _systems(exp):
    return [
        f"--system=teacher={exp}/teacher/scored:{exp}/teacher",
        f"--system=student-kd={exp}/student-kd/scored:{exp}/student-kd",
        f"--system=student={exp}/student/scored",
        f"--system=noisy={exp}/noisy",
    ]


def _run(exp, *options):
    assert main(["--out", str(exp / "RESULTS.md"), *options]) == 0
    return (exp / "RESULTS.md").read_text(), json.loads((exp / "results.json").read_text())


def _rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_noisy_comes_first_and_values_are_those_of_the_summary(exp):
    text, content = _run(exp, *_systems(exp), "--title", "Corpus")
    header, rule, *rows = _rows(text)
    assert "# Corpus" in text.splitlines()
    assert [row[0] for row in rows] == ["noisy", "teacher", "student-kd", "student"]
    assert [system["name"] for system in content["systems"]] == ["noisy", "teacher", "student-kd", "student"]
    assert header[1:3] == ["WB-PESQ ↑", "STOI [%] ↑"] and {len(row) for row in rows} == {len(header)} == {len(rule)}
    summary = json.loads((exp / "teacher" / "scored" / "summary.json").read_text())["metrics"]["pesq_wb"]
    assert rows[1][1] == f"{summary['mean']:.3f} [{summary['low']:.3f}, {summary['high']:.3f}]"
    assert rows[1][2] == "90.00 [90.00, 90.00]"
    assert rows[1][3:] == ["3,218,118", "9.50", "13.25"] and rows[2][3:] == ["–"] * 3
    assert content["systems"][1]["complexity"]["parameters"] == 3218118


def test_differences(exp):
    text, content = _run(exp, *_systems(exp), "--baseline", "student", "--compare", "student-kd-student")
    assert [row[0] for row in _rows(text)[-2:]] == ["teacher - student", "student-kd - student"]
    generator = np.random.default_rng(0)
    base = 0.3 * generator.standard_normal(30)
    expected = CrossedBootstrap(1, 30).mean([(2.8 + base) - (2.6 + base)])
    measured = content["differences"][1]["metrics"]["pesq_wb"]
    assert measured["mean"] == pytest.approx(expected.mean) and measured["share_positive"] == 1.0
    assert _rows(text)[-1][1] == "+0.200 [+0.200, +0.200]"


def test_only_the_date_changes(exp):
    texts = [_run(exp, *_systems(exp))[0] for _ in range(2)]
    assert len({re.sub(r"- date: .*", "", text) for text in texts}) == 1


def test_environment_notes_commands_and_media(exp):
    (exp / "pictures" / "teacher").mkdir(parents=True)
    for name in ("teacher/a b.png", "a.flac", "readme.txt"):
        (exp / "pictures" / name).write_bytes(b"x")
    options = ("--note", "valid = p226, p287", "--command", "./run.sh --stage 1", "--pictures", f"{exp}/pictures")
    text, content = _run(exp, *_systems(exp), *options)
    for line in ("- valid = p226, p287", "./run.sh --stage 1", "- [a.flac](pictures/a.flac)"):
        assert line in text.splitlines()
    assert "![a b](pictures/teacher/a%20b.png)" in text and "readme" not in text
    for key in ("date", "python", "espnet", "torch", "platform", "git_hash", "git_dirty"):
        assert key in content["environment"]
    assert content["notes"] == ["valid = p226, p287"] and content["commands"] == ["./run.sh --stage 1"]


def test_undefined_scores_show(exp):
    _scored(exp / "holes", 0.5, nan=(1, 2))
    _scored(exp / "empty", 0.5, nan=range(30))
    text, _ = _run(exp, *_systems(exp), f"--system=holes={exp}/holes", f"--system=empty={exp}/empty")
    assert _rows(text)[-2][1].endswith("(2 undefined)") and _rows(text)[-1][1] == "–"


def test_every_default_metric_has_a_column():
    from i2srf_kd.metrics import asr, dnsmos

    assert set(KNOWN) == {*SCORES, *dnsmos.METRICS, *asr.METRICS}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--compare", "student-other"], "--compare student-other: does not name two systems"),
        (["--baseline", "other"], "--baseline other: not among"),
        (["--system", "x"], "--system x: expected NAME=SCORED_DIR"),
        (["--system", "x=absent"], "absent/summary.json: no such file"),
        (["--system", "x={exp}/noisy:absent"], "absent is no folder"),
        (["--system", "noisy={exp}/noisy"], "system noisy is given twice"),
        (["--pictures", "absent"], "--pictures absent: no such folder"),
        (["--system", "x={exp}/short"], "system x was scored on other utterances than noisy .5 differ, such as u025"),
        (["--system", "x={exp}/mean"], "scored with another ref_channel"),
    ],
)
def test_messages(exp, options, message):
    _scored(exp / "short", 0.0, utterances=25)
    _scored(exp / "mean", 0.0, ref_channel=1)
    with pytest.raises(UserError, match=message):
        main(["--out", str(exp / "RESULTS.md"), *_systems(exp), *[text.format(exp=exp) for text in options]])
    assert not (exp / "RESULTS.md").exists()


def test_mixture_row_is_required(exp):
    with pytest.raises(UserError, match="no system called noisy"):
        main(["--out", str(exp / "RESULTS.md"), f"--system=teacher={exp}/teacher/scored"])


def test_ambiguous_comparison_is_refused(exp):
    extra = [f"--system={name}={exp}/student/scored" for name in ("a", "a-b", "b-c", "c")]
    with pytest.raises(UserError, match="--compare a-b-c: can be read in several ways"):
        main(["--out", str(exp / "RESULTS.md"), *_systems(exp), *extra, "--compare", "a-b-c"])


def test_folders_may_have_colons_and_marks_in_their_names(exp):
    root = exp / "a:b"
    for name, gain in (("noisy", 0.0), ("teacher/scored", 1.0)):
        _scored(root / name, gain)
    (root / "teacher/complexity.json").write_text(json.dumps({"parameters": 12345}))
    (root / "what #1 (50%).png").write_bytes(b"")
    systems = [f"--system=noisy={root}/noisy", f"--system=teacher={root}/teacher/scored:{root}/teacher"]
    text, content = _run(root, *systems, "--pictures", str(root))
    assert content["systems"][1]["complexity"]["parameters"] == 12345
    assert "](what%20%231%20%2850%25%29.png)" in text


def test_wildcards_stand_for_the_seeds_of_a_system(exp):
    """Mean over seeds and utterances; pairs of equal seeds; the interval is wider than that of one seed."""
    gains = {"kd": (0.9, 0.8, 0.7), "plain": (0.55, 0.6, 0.65)}
    for name, values in gains.items():
        for seed, gain in enumerate(values):
            _scored(exp / "grid" / name / f"seed{seed}" / "scored", gain)
    systems = [f"--system={name}={exp}/grid/{name}/seed*/scored:{exp}/teacher" for name in gains]
    comparisons = ["--compare", "kd-plain", "--compare", "teacher-plain"]
    text, content = _run(exp, *_systems(exp), *systems, *comparisons)
    by_name = {system["name"]: system for system in content["systems"]}
    kd, one = by_name["kd"]["metrics"]["pesq_wb"], by_name["teacher"]["metrics"]["pesq_wb"]
    assert by_name["kd"]["seeds"] == 3 and "seeds" not in by_name["teacher"]
    assert kd["mean"] == pytest.approx(one["mean"] - 0.2) and kd["seed_std"] == pytest.approx(0.1)
    assert kd["high"] - kd["low"] > one["high"] - one["low"]
    difference, gap = (entry["metrics"]["pesq_wb"] for entry in content["differences"])
    assert difference["mean"] == pytest.approx(0.2) and difference["n_seeds"] == 3
    assert difference["seed_std"] == pytest.approx(np.std([0.35, 0.2, 0.05], ddof=1))
    assert gap["mean"] == pytest.approx(0.4) and gap["seed_std"] == pytest.approx(0.05)
    names = [row[0] for row in _rows(text)]
    assert names[0] == "system (seeds)" and "kd (3)" in names and "teacher (1)" in names
    assert "utterances and seeds resampled as pairs" in text


def test_seeds_that_cannot_be_compared_are_refused(exp):
    for seed, more in enumerate([{}, {"utterances": 25}]):
        _scored(exp / "a" / f"seed{seed}", 0.1, **more)
    for seed, more in enumerate([{}, {"ref_channel": 1}]):
        _scored(exp / "b" / f"seed{seed}", 0.1, **more)
    for name, seeds in (("c", 2), ("d", 3)):
        for seed in range(seeds):
            _scored(exp / name / f"seed{seed}", 0.1)
    for options, message in [
        ([f"--system=a={exp}/a/seed*"], "a/seed1 was scored on other utterances than .*a/seed0"),
        ([f"--system=b={exp}/b/seed*"], "b/seed1 was scored otherwise than .*b/seed0"),
        ([f"--system=x={exp}/x/seed*"], "no folder matches .*x/seed"),
        ([f"--system=c={exp}/c/seed*", f"--system=d={exp}/d/seed*", "--compare", "c-d"], "c has 2 seeds, d 3"),
    ]:
        with pytest.raises(UserError, match=message):
            main(["--out", str(exp / "RESULTS.md"), *_systems(exp), *options])


def test_scores_of_an_older_version_tell_no_rate(exp):
    """They are in the table as ever, and nothing is said of scores that are not in it."""
    for path in exp.glob("**/summary.json"):
        summary = json.loads(path.read_text())
        del summary["fs"]
        path.write_text(json.dumps(summary))
    text, _ = _run(exp, *_systems(exp))
    assert len(_rows(text)) > 4
    assert not re.search("CSIG|SI-SDR|NB-PESQ", text)
