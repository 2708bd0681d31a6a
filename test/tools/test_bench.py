"""The benchmark as a user runs it, at sizes that take a moment, and what it measures with."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from export.trained import make_experiment, make_network
from reference.loader import whole_file_batches

from bench import curve, infer, loss, measure, quality, scale
from bench.command import get_parser, main
from bench.pair import BenchPair
from bench.report import Column, Report
from i2srf_kd.audio.io import write_audio
from i2srf_kd.distill.catalogue import network_layout
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.export.onnx import missing_packages
from i2srf_kd.system.errors import UserError

PAIR = (
    "--student_preset dpdcrn_tiny --teacher_preset dpdcrn_tiny --batch 2 --seconds 0.1 --repeats 1 --no_memory".split()
)


def rows_of(arguments, tmp_path):
    assert main([*arguments, "--json", str(tmp_path / "report.json")]) == 0
    return json.loads((tmp_path / "report.json").read_text())["rows"]


def test_loss(tmp_path, capsys):
    rows = {row["name"]: row for row in rows_of(["loss", *PAIR], tmp_path)}
    assert rows[loss.OUR_LOSS]["faster"] > 0 and rows[loss.OUR_CALIBRATION]["times_floor"] > 0
    assert 0 < rows[loss.OUR_LOSS]["share"] < 1
    assert len(capsys.readouterr().out.split("| whole loss")) == 5


def test_flops_of_the_calibration_are_those_of_its_gram_products():
    args = get_parser().parse_args(["loss", *PAIR])
    pair = BenchPair(args)
    batch, frames = pair.spectrum.shape[0], pair.frames
    student, teacher = (
        sum(layer.channels * layer.width for layers in layout.values() for layer in layers)
        for layout in map(network_layout, (pair.student, pair.teacher))
    )
    fused = 3 * 16 * 64
    # One product forward for every layer, one backward where a gradient flows: not into the teacher's own layers.
    products = 2 * (student + 2 * fused) + teacher
    grams = 2 * batch * frames * products * (frames + batch)
    counted = loss.floors(pair, loss.candidates(args))[loss.OUR_CALIBRATION].flops
    assert grams < counted < 1.05 * grams  # and the embeddings


@pytest.mark.slow
def test_curve(tmp_path):
    rows = {row["name"]: row for row in rows_of(["curve", *PAIR, "--steps", "3"], tmp_path)}
    plain = rows[curve.PLAIN]
    assert len(plain["losses"]) == 3 and plain["losses"][2] < plain["losses"][0] and plain["apart"] == 0
    assert rows["all together"]["losses"] != plain["losses"] and rows["all together"]["apart"] < 0.1
    assert rows[curve.MOVED]["apart"] < 0.01 and "dense_buffer" in rows


@pytest.mark.slow
def test_step(tmp_path):
    rows = {row["name"]: row for row in rows_of(["step", *PAIR], tmp_path)}
    parts = ("student forward and backward", "teacher, no_grad", "distillation loss", "AdamW, foreach")
    assert sum(rows[name]["share"] for name in parts) == pytest.approx(1)
    assert rows["whole step"]["faster_whole"] == 1 and rows["whole step, all together"]["faster_whole"] > 0
    assert rows["**step**"]["audio"] == pytest.approx(0.2 / rows["**step**"]["seconds"])


def test_loader_and_its_reference(tmp_path):
    arguments = "loader --utterances 3 --utterance_seconds 1 --seconds 0.5 --batch 2 --repeats 1".split()
    rows = rows_of(arguments, tmp_path)
    kinds = [("segments", 0), ("segments", 1), ("segments", 2)]
    kinds += [("mixtures made anew", workers) for workers in (0, 1, 2)] + [("whole files", 0)]
    assert [(row["format"], row["reads"], row["workers"]) for row in rows[:7]] == [("wav", *kind) for kind in kinds]
    assert all(row["audio"] > 0 for row in rows) and len(rows) == 16
    opened = {row["format"]: row["opened"] for row in rows if row["opened"] is not None}
    chunks = 8  # of half a second every quarter of one in a second: 3 of each of 3 utterances, in whole batches of 2
    assert opened == {
        "wav": 2 * chunks,
        "flac": 2 * chunks,
        "wav.ark": 1,
        "flac.ark": 1,
    }  # the other at the start, for the rate


def test_whole_files_give_the_same_batches(tmp_path):
    from bench.loader import write_corpus
    from i2srf_kd.data.chunk_dataset import ChunkDataset, ParallelFiles
    from i2srf_kd.data.chunk_loader import ChunkLoaders
    from i2srf_kd.data.chunks import training_batches

    args = get_parser().parse_args("loader --utterances 3 --utterance_seconds 1".split())
    write_corpus(tmp_path / "flac", args, "flac")
    lengths = {f"utt{i:03}": 16000 for i in range(3)}
    files = ParallelFiles({"wav": str(tmp_path / "flac/wav.scp")}, lengths)

    def batches(epoch):
        return training_batches(lengths, 8000, 4000, 2, 0, epoch)

    ours = [batch["wav"] for _, batch in ChunkLoaders(ChunkDataset(files, 8000), batches).build_iter(1)]
    plain = [batch["wav"] for batch in whole_file_batches(files.files, batches, 1)]
    assert len(ours) == len(plain) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_infer_is_exact(tmp_path):
    rows = {
        row["name"]: row
        for row in rows_of("infer --preset dpdcrn_tiny --seconds 0.5 --repeats 1 --no_memory".split(), tmp_path)
    }
    exact = [infer.NAIVE, infer.OURS] + ([] if missing_packages() else [infer.ONNX])
    assert all(rows[name]["error"] < 1e-5 for name in exact)
    assert rows[infer.NAIVE]["faster"] == 1


@pytest.mark.slow
def test_quality_compares_every_variant_with_float32(tmp_path):
    pytest.importorskip("onnxruntime")
    experiment = make_experiment(tmp_path / "exp", make_network())
    times = np.arange(20000) / 16000
    speech = (0.3 * np.sin(2 * np.pi * 200 * times) * np.sin(2 * np.pi * 3 * times)).astype(np.float32)
    noisy = speech + 0.01 * np.random.default_rng(0).standard_normal(20000, np.float32)
    for name, wave in (("wav", noisy), ("spk1", speech)):
        write_audio(tmp_path / f"{name}.wav", wave, 16000)
        (tmp_path / f"{name}.scp").write_text(f"utt {tmp_path / name}.wav\n")
    model = export_bundle(experiment, tmp_path / "model", calibration=[noisy]).path
    rows = {row["name"]: row for row in rows_of(f"quality {model} --pairs {tmp_path} --repeats 1".split(), tmp_path)}
    assert list(rows) == [
        quality.FLOAT, "onnxruntime, float32", "onnxruntime, int8",
        "torch, bfloat16 autocast", "torch, bfloat16 weights",
    ]  # fmt: skip
    assert abs(rows["onnxruntime, float32"]["si_sdr_cost"]["mean"]) < 1e-3
    assert all(abs(row["si_sdr_cost"]["mean"]) > 1e-6 for name, row in rows.items() if "32" not in name)
    assert rows["torch, bfloat16 weights"]["mb"] < rows[quality.FLOAT]["mb"]
    with pytest.raises(UserError, match="is no exported model"):
        main(["quality", str(experiment), "--pairs", str(tmp_path)])


def test_stream_has_a_row_for_each_runtime_and_block(tmp_path):
    rows = rows_of("stream --preset dpdcrn_tiny_causal --seconds 0.1 --repeats 1 --block_samples 256".split(), tmp_path)
    runtimes = ["torch"] if missing_packages() else ["torch", "onnxruntime"]
    assert [(row["preset"], row["runtime"], row["block"]) for row in rows] == [
        ("dpdcrn_tiny_causal", runtime, 256) for runtime in runtimes
    ]
    assert all(row["cpu"] > 0 and row["elapsed"] > 0 for row in rows)


@pytest.mark.slow
def test_scale_measures_each_length_in_a_process_of_its_own(tmp_path):
    arguments = "scale --lengths 2 20 --window_seconds 2".split()
    short, long = rows_of(arguments, tmp_path)
    assert (short["length"], long["length"]) == (2, 20)
    # Twenty seconds of samples, in and out, on top of a window; nothing that grows with the square.
    assert 0 < short["peak_mb"] and long["peak_mb"] < short["peak_mb"] + 100
    assert long["seconds"] > 2 * short["seconds"]


@pytest.mark.slow
def test_peak_memory_is_that_of_the_candidate():
    arguments = ["infer", "--preset", "dpdcrn_tiny", "--seconds", "4"]
    peak = measure.usage_of(arguments, infer.OURS).peak_bytes
    # The widest point holds four layers of the dense block (B, 4 * 16, 251, 64) in float32 and their padded copy.
    assert 2 * 4 * 16 * 251 * 64 * 4 < peak < 2e8
    with pytest.raises(UserError, match="ended with code 1: KeyError"):
        measure.usage_of(arguments, "nothing")


def test_power_of_the_growth():
    rows = [{"length": length, "seconds": 0.3 * length**1.5} for length in (10, 60, 600)]
    assert scale.growth(rows, "seconds") == pytest.approx(1.5)


def test_ratio_is_the_median_over_the_turns():
    turns = {"ours": [1.0, 1.0, 4.0], "naive": [2.0, 3.0, 4.0]}
    assert measure.ratio(turns, "ours", "naive") == 2
    assert measure.ratio(turns, "ours", "absent") is None


def test_candidates_run_in_turns():
    order = []
    turns = measure.in_turns({name: lambda name=name: order.append(name) for name in "ab"}, measure.Clock("cpu", 1), 2)
    assert order == list("ababab") and [len(seconds) for seconds in turns.values()] == [2, 2]


def test_rates_and_floor():
    rates = measure.measure_rates(measure.Clock("cpu", 1), repeats=1)
    assert rates.flops_per_second > 1e8 and rates.bytes_per_second > 1e8
    assert measure.Floor(2e9, 1e6).seconds(measure.Rates(1e9, 1e9)) == 2
    assert measure.Floor(1e6, 3e9).seconds(measure.Rates(1e9, 1e9)) == 3


def test_table_shows_what_was_not_measured_as_a_dash():
    report = Report("loss", [Column("a", "A"), Column("b", "B", "{:.1f}")], [{"a": "x", "b": None}, {"a": "y", "b": 2}])
    assert report.table() == "| A | B |\n| --- | ---: |\n| x | – |\n| y | 2.0 |"


def test_allocator_settings_are_those_of_the_recipes(repository):
    script = (repository / "egs" / "TEMPLATE" / "enh_kd.sh").read_text()
    assert dict(re.findall(r"\b(MALLOC_[A-Z_]+|GOMP_SPINCOUNT)=(\d+)", script)) == measure.ALLOCATOR


@pytest.mark.slow
def test_runs_as_a_folder(repository):
    command = [sys.executable, str(repository / "tools" / "bench"), "loader", "--repeats", "0"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: --repeats must be at least 1\n"


def test_wrong_options():
    for options, word in (
        (["stream", "--repeats", "0"], "--repeats"),
        (["infer", "--seconds", "0"], "--seconds"),
        (["stream", "--block_samples", "0"], "--block_samples"),
        (["scale", "--lengths", "10"], "two positive lengths"),
    ):
        with pytest.raises(UserError, match=word):
            main(options)
