"""What a training tells: metrics without duplicates, the environment, quality that is the same for all processes."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
import toy

from i2srf_kd.data.chunk_dataset import ParallelFiles, read_lengths
from i2srf_kd.metrics.signal import si_sdr
from i2srf_kd.system.errors import UserError
from i2srf_kd.training import checkpoint, monitor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.write_data(tmp_path_factory.mktemp("data"))


def lines(folder):
    return [json.loads(line) for line in (folder / monitor.METRICS).read_text().splitlines()]


def test_metrics_of_repeated_epochs_are_not_listed_twice(tmp_path):
    log = monitor.MetricsLog(tmp_path, 0)
    for epoch in (1, 2, 3):
        log.append(epoch, "train", {"loss": float(epoch), "bad": math.nan, "array": np.float32(2)})
    with (tmp_path / monitor.METRICS).open("a") as file:
        file.write('{"epoch": 4, "pha')  # cut off by a kill
    monitor.MetricsLog(tmp_path, 2).append(3, "train", {"loss": 30.0})
    assert [(line["epoch"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert lines(tmp_path)[0]["bad"] is None and lines(tmp_path)[0]["array"] == 2.0


def test_environment_grows_by_one_record_per_start(tmp_path):
    monitor.record_environment(tmp_path)
    monitor.record_environment(tmp_path)
    first, second = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert first["versions"]["torch"] == second["versions"]["torch"] == torch.__version__
    assert first["cpu_count"] > 0 and first["host"] and first["command"]


def halve(model, mixture):
    """Enhances an utterance, for a model in evaluation mode alone."""
    assert not model.training
    return 0.5 * mixture.reshape(len(mixture), -1)[:, 0]


def files(folder):
    return ParallelFiles(toy.scp_files(folder), read_lengths([str(folder / "speech_shape")]))


def test_quality_is_the_mean_over_a_fixed_subset(audio_dir, tmp_path):
    """Against scores computed here, on real recordings."""
    import pesq

    from i2srf_kd.metrics.perceptual import stoi

    audio = [p for p in sorted((audio_dir / "test").rglob("*")) if p.suffix in (".flac", ".wav")]
    clean = {p.name: p for p in audio if "clean" in str(p)}
    noisy = {p.name: p for p in audio if "noisy" in str(p)}
    names = sorted(set(clean) & set(noisy))[:4]
    if len(names) < 4 or soundfile.info(clean[names[0]]).samplerate != 16000:
        pytest.skip("no four pairs of 16 kHz recordings under test/clean and test/noisy of the audio folder")
    for file, paths in (("wav.scp", noisy), ("spk1.scp", clean)):
        (tmp_path / file).write_text("".join(f"{n} {paths[n]}\n" for n in names))
    (tmp_path / "speech_shape").write_text("".join(f"{n} {soundfile.info(clean[n]).frames}\n" for n in names))
    quality = monitor.QualityMonitor(files(tmp_path), halve, 2, 1, 0, tmp_path / "images")
    assert quality.utterances == monitor.QualityMonitor(files(tmp_path), halve, 2, 1, 0, tmp_path).utterances
    scores = quality.measure(torch.nn.Identity(), 7)
    expected = {"pesq": [], "stoi": [], "si_sdr": []}
    for name in quality.utterances:
        reference, mixture = soundfile.read(clean[name])[0], soundfile.read(noisy[name], dtype="float32")[0]
        expected["pesq"].append(pesq.pesq(16000, reference.astype(np.float32), 0.5 * mixture, "wb"))
        expected["stoi"].append(stoi(reference, 0.5 * mixture, 16000))
        expected["si_sdr"].append(si_sdr(reference, mixture))  # does not depend on the level
    for name, values in expected.items():
        assert scores[name] == pytest.approx(np.mean(values), abs=2e-3), name
    (picture,) = (tmp_path / "images").iterdir()
    assert picture.name.endswith("_epoch007.png") and picture.stat().st_size > 5000


def test_unscorable_utterances_are_left_out_of_the_mean(data, tmp_path, monkeypatch, caplog):
    import i2srf_kd.metrics.perceptual as perceptual

    def fussy(reference, estimate, fs):
        if len(reference) < 2000:
            raise ValueError("too short")
        return 3.0

    monkeypatch.setattr(perceptual, "wb_pesq", fussy)
    quality = monitor.QualityMonitor(files(data / "valid"), halve, 100, 2, 0, tmp_path)
    assert sorted(quality.utterances) == sorted(quality.source.lengths)
    model = torch.nn.Identity()
    model.train()
    assert quality.measure(model, 1)["pesq"] == 3.0
    assert model.training
    assert "too short" in caplog.text
    assert [e for e in range(1, 8) if quality.is_due(e, 7)] == [2, 4, 6, 7]


def test_bad_interval(data, tmp_path):
    with pytest.raises(UserError, match="--quality_interval"):
        monitor.QualityMonitor(files(data / "valid"), halve, 1, 0, 0, tmp_path)


def test_scores_choose_the_best_model(data, tmp_path):
    """A run with made-up scores: the best epoch by PESQ is kept and averaged, though only every second is scored."""

    def prepare():
        from i2srf_kd.metrics import perceptual

        values = iter([3.0, 3.0, 2.0, 2.0, 1.0, 1.0])
        perceptual.wb_pesq = lambda *_: next(values)
        perceptual.stoi = lambda *_: 0.5

    arguments = toy.command(
        data, tmp_path / "exp", "--best_model_criterion", "valid,pesq,max", "valid,loss,min", "--max_epoch", "5",
        "--quality_utts", "2", "--quality_interval", "2", "--keep_nbest_models", "1",
    )  # fmt: skip
    assert toy.in_child(arguments, prepare) == 0
    valid = {m["epoch"]: m for m in lines(tmp_path / "exp") if m["phase"] == "valid"}
    assert {epoch: m.get("pesq") for epoch, m in valid.items()} == {1: None, 2: 3.0, 3: None, 4: 2.0, 5: 1.0}
    assert (tmp_path / "exp" / "valid.pesq.best.pth").resolve().name == "2epoch.pth"
    assert (tmp_path / "exp" / "valid.pesq.ave.pth").resolve().name == "2epoch.pth"
    assert len(list((tmp_path / "exp" / "images").glob("*_epoch*.png"))) == 3
    state = checkpoint.load_training_state(tmp_path / "exp")
    assert state["reporter"][4]["valid"]["stoi"] == 0.5
