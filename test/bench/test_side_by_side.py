"""Costs of networks of any kind, peers with weights of their own, and the table of both."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from i2srf_kd.bench import peer_process, peers, side_by_side
from i2srf_kd.bench.peers import find_delay, shift
from i2srf_kd.bin import bench, enhance_peer
from i2srf_kd.bin.side_by_side import main as write_table
from i2srf_kd.results.scores import summarise, write_csv
from i2srf_kd.system.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "egs" / "voicebank" / "conf" / "side_by_side"
METRICS = ("pesq_wb", "stoi", "si_sdr")
DELAY, GAIN = 37, 0.5
# What separates a network from the others in these files; everything else is the training, which they share.
NETWORK = {"encoder", "encoder_conf", "decoder", "decoder_conf", "separator", "separator_conf", "criterions"}


def noise(seed, samples=8000):
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for number in range(3):
        path = folder / f"u{number}.wav"
        soundfile.write(path, noise(number), 16000)
        lines.append(f"u{number} {path}\n")
    (folder / "wav.scp").write_text("".join(lines))
    return folder


def test_all_networks_are_trained_alike():
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONF.glob("*.yaml"))}
    assert len(configs) == 10
    trainings = [{key: value for key, value in c.items() if key not in NETWORK} for c in configs.values()]
    assert all(training == trainings[0] for training in trainings)
    mini = yaml.safe_load((CONF.parent / "mini" / "train_student.yaml").read_text())
    assert trainings[0] == {key: value for key, value in mini.items() if key not in NETWORK}
    for name, config in configs.items():
        [criterion] = config["criterions"]
        learned = config["encoder"] == "conv"
        assert criterion.pop("name") == ("compressed_spectrum_td" if learned else "compressed_spectrum"), name
        assert criterion == {key: value for key, value in mini["criterions"][0].items() if key != "name"}


def test_multiply_accumulates_of_a_dual_path_network_are_those_of_its_formula(tmp_path):
    """Two LSTMs with their projections for each of the overlapping segments, the encoder, the decoder and the mask."""
    from i2srf_kd.bench.models import load
    from i2srf_kd.inference.enhancer import measure_complexity

    n, hidden, kernel, stride, segment = 8, 6, 32, 16, 16
    conv = {"channel": n, "kernel_size": kernel, "stride": stride}
    options = {"encoder": "conv", "encoder_conf": conv, "decoder": "conv", "decoder_conf": conv, "separator": "dprnn"}
    options["separator_conf"] = {"num_spk": 1, "layer": 1, "unit": hidden, "segment_size": segment}
    (tmp_path / "dprnn.yaml").write_text(yaml.safe_dump(options))
    counted = measure_complexity(load(tmp_path / "dprnn.yaml"), 1.0)
    frames = (16000 - kernel) // stride + 1
    # Half overlapping segments, half a segment of zeros before and after, and what fills the last one.
    segments = 2 * (1 + -(-(frames + segment // 2) // segment))
    steps = segments * segment
    recurrent = 2 * steps * 2 * 4 * hidden * (n + hidden)
    assert counted.gmacs_per_second_with_recurrent - counted.gmacs_per_second == pytest.approx(
        recurrent / 1e9, rel=0.05
    )
    linear = 2 * steps * 2 * hidden * n + steps * n * n + 2 * frames * n * kernel
    assert counted.gmacs_per_second == pytest.approx(linear / 1e9, rel=0.05)


def test_networks_of_both_kinds_are_measured(tmp_path, data_dir):
    stft = {"n_fft": 128, "hop_length": 64}
    common = {"encoder": "stft", "encoder_conf": stft, "decoder": "stft", "decoder_conf": stft}
    ours = {**common, "separator": "dpdcrn", "separator_conf": {"channels": 8, "blocks": 1}}
    theirs = {**common, "separator": "dccrn", "separator_conf": {"kernel_num": [4, 8], "rnn_units": 8}}
    for name, options in (("ours", ours), ("theirs", theirs)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(options))
    words = ["models", str(tmp_path / "ours.yaml"), f"dccrn={tmp_path}/theirs.yaml", "--data_dir", str(data_dir)]
    words += ["--utterances", "2", "--repeats", "1", "--no_memory", "--json", str(tmp_path / "cost.json")]
    assert bench.main(words) == 0
    costs, conditions = side_by_side.read_costs(tmp_path / "cost.json")
    assert list(costs) == ["ours", "dccrn"] and conditions["seconds"] == pytest.approx(1.0)
    for cost in costs.values():
        assert 0 < cost["gmacs_per_second"] < cost["gmacs_per_second_with_recurrent"]
        assert cost["rtf_1"] > 0 and cost["rtf_2"] > 0 and cost["parameters"] > 1000
    with pytest.raises(UserError, match="two models are called ours"):
        bench.main(["models", str(tmp_path / "ours.yaml"), f"ours={tmp_path}/theirs.yaml"])


def test_costs_of_another_part_are_refused(tmp_path):
    (tmp_path / "infer.json").write_text(json.dumps({"part": "infer", "rows": []}))
    with pytest.raises(UserError, match="not written by"):
        side_by_side.read_costs(tmp_path / "infer.json")


@pytest.mark.parametrize("delay", [0, 1, 960, -5])
def test_delay_is_found_in_noise_and_taken_out(delay):
    inputs = [noise(seed, 4000) for seed in range(2)]
    outputs = [0.3 * shift(wave, -delay, 4000) + 0.5 * noise(9 + i, 4000) for i, wave in enumerate(inputs)]
    assert find_delay(list(zip(inputs, outputs, strict=True)), 1000) == delay
    inside = slice(1000, 3000)
    np.testing.assert_array_equal(shift(shift(inputs[0], -delay, 4000), delay, 4000)[inside], inputs[0][inside])


def test_silent_outputs_have_no_delay():
    with pytest.raises(UserError, match="silent"):
        find_delay([(noise(0), np.zeros(8000))], 10)


TOY = f"""
import numpy as np
def toy():
    return lambda wave: {GAIN} * np.concatenate([np.zeros({DELAY}), wave])[: len(wave)]
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A peer at 48 kHz that delays and halves its input, in a process of this Python."""
    script = tmp_path / "process.py"
    adapter = TOY + 'ADAPTERS["toy"] = toy\n\n\nif __name__'
    script.write_text(Path(peer_process.__file__).read_text().replace("\n\nif __name__", adapter, 1))
    monkeypatch.setattr(peer_process, "__file__", str(script))
    monkeypatch.setitem(peers.PEERS, "toy", peers.Peer(("toy==1",), 48000, "a toy", "none"))
    monkeypatch.setattr(enhance_peer, "environment_of", lambda name, folder: sys.executable)


def test_a_peer_is_resampled_aligned_and_measured(toy, data_dir, tmp_path):
    out = tmp_path / "enhanced"
    assert enhance_peer.main(["toy", str(data_dir), str(out)]) == 0
    record = json.loads((out / "enhance.json").read_text())
    assert (record["delay"], record["fs"], record["package"]) == (DELAY, 48000, "toy==1")
    assert record["real_time_factor"] > 0 and record["seconds"] == pytest.approx(3 * 0.6)
    names = [line.split() for line in (out / "wav.scp").read_text().splitlines()]
    assert [name for name, _ in names] == ["u0", "u1", "u2"]
    mixture, _ = soundfile.read(data_dir / "u0.wav")
    enhanced, fs = soundfile.read(names[0][1])
    assert fs == 16000 and len(enhanced) == len(mixture)
    # What lies near the half rate is lost on the way to 48 kHz and back.
    smooth = [np.convolve(x, np.hanning(9), "same")[100:-100] for x in (mixture, enhanced)]
    np.testing.assert_allclose(smooth[1], GAIN * smooth[0], atol=0.01)


def test_a_peer_that_fails_says_why(toy, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(enhance_peer, "environment_of", lambda name, folder: "false")
    with pytest.raises(UserError, match="toy failed"):
        enhance_peer.main(["toy", str(data_dir), str(tmp_path / "enhanced")])
    with pytest.raises(UserError, match="no peer is called xy: choose among rnnoise"):
        enhance_peer.main(["xy", str(data_dir), str(tmp_path / "enhanced")])


def test_environments_are_built_once_and_without_dependencies(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        assert peers.environment_of("rnnoise", tmp_path) == tmp_path / "rnnoise" / "bin" / "python"
    assert len(commands) == 2 and commands[0][1:3] == ["-m", "venv"]
    assert "--no-deps" in commands[1] and "pyrnnoise==0.4.5" in commands[1]

    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "no network\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError, match="no network"):
        peers.environment_of("webrtc", tmp_path)


def test_the_peers_process_imports_nothing_of_this_package():
    tree = ast.parse(Path(peer_process.__file__).read_text())
    outside = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any((module or "").startswith("i2srf_kd") for module in outside)
    assert set(peer_process.ADAPTERS) == set(peers.PEERS)
    assert all("==" in requirement for peer in peers.PEERS.values() for requirement in peer.requirements)


def scored(folder, gain):
    rows = [{"utt": f"u{i}", "seconds": 2.0, **{metric: 0.5 + 0.1 * i + gain for metric in METRICS}} for i in range(5)]
    folder.mkdir()
    write_csv(folder / "scores.csv", rows, METRICS)
    (folder / "summary.json").write_text(json.dumps(summarise(rows, METRICS)))
    return folder


def test_the_table_has_networks_costs_alone_and_peers(tmp_path):
    rows = [{"name": "a", "parameters": 1234, "rtf_1": 0.01, "rtf_2": 0.008}, {"name": "big", "parameters": 9999999}]
    cost = {"part": "models", "rows": rows, "conditions": {"seconds": 4.0}}
    (tmp_path / "cost.json").write_text(json.dumps(cost))
    record = {"peer": "rnnoise", "package": "pyrnnoise==0.4.5", "what": "w", "licence": "l", "fs": 48000, "delay": 960}
    record.update(real_time_factor=0.0456, peak_mb=3.2)
    (tmp_path / "enhance.json").write_text(json.dumps(record))
    words = [
        f"--system={name}={scored(tmp_path / name, gain)}" for name, gain in (("noisy", 0), ("a", 0.2), ("b", 0.1))
    ]
    peer = f"{tmp_path / 'enhance.json'}={scored(tmp_path / 'rnnoise', 0.3)}"
    words += ["--out", str(tmp_path / "T.md"), "--cost", str(tmp_path / "cost.json"), "--peer", peer, "--baseline", "a"]
    assert write_table(words) == 0
    text = (tmp_path / "T.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    lines = {line[0]: line for line in table}
    assert [line[0] for line in table[2:7]] == ["noisy", "a", "b", "rnnoise", "big"]
    assert lines["a"][1:5] == ["1,234", "–", "0.0100", "0.0080"] and lines["a"][6].startswith("0.900 [")
    assert lines["big"][1] == "9,999,999" and lines["big"][6:] == ["–"] * 3
    assert lines["b - a"][1].startswith("-0.100 [")
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["rows"][3]["rtf_1"] == 0.0456 and content["peers"][0]["delay"] == 960
    with pytest.raises(UserError, match="expected ENHANCE_JSON"):
        write_table([*words, "--peer", "x"])
