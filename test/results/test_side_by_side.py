"""Costs of networks of any kind, and their table."""

import json

import pytest
import yaml
from places import CONF
from waves import noise, write_table

from bench.command import main as bench_main
from i2srf_kd.bin.results import main as write_results
from i2srf_kd.results import table
from i2srf_kd.results.scores import write_scores
from i2srf_kd.system.errors import UserError

NETWORKS = CONF / "side_by_side"
METRICS = ("pesq_wb", "stoi", "si_sdr")
# What separates a network from the others in these files; everything else is the training, which they share.
NETWORK = {"encoder", "encoder_conf", "decoder", "decoder_conf", "separator", "separator_conf", "criterions"}


@pytest.fixture
def data_dir(tmp_path):
    return write_table(tmp_path / "data", "wav", {f"u{i}": noise(8000, seed=i) for i in range(3)}).parent


def test_all_networks_are_trained_alike():
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(NETWORKS.glob("*.yaml"))}
    assert len(configs) == 10
    trainings = [{key: value for key, value in c.items() if key not in NETWORK} for c in configs.values()]
    assert all(training == trainings[0] for training in trainings)
    mini = yaml.safe_load((CONF / "mini" / "train_student.yaml").read_text())
    assert trainings[0] == {key: value for key, value in mini.items() if key not in NETWORK}
    for name, config in configs.items():
        [criterion] = config["criterions"]
        learned = config["encoder"] == "conv"
        assert criterion.pop("name") == ("compressed_spectrum_td" if learned else "compressed_spectrum"), name
        assert criterion == {key: value for key, value in mini["criterions"][0].items() if key != "name"}


def test_multiply_accumulates_of_a_dual_path_network_are_those_of_its_formula(tmp_path):
    """Two LSTMs with their projections for each of the overlapping segments, the encoder, the decoder and the mask."""
    from bench.models import load
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
    assert bench_main(words) == 0
    costs, conditions = table.read_costs(tmp_path / "cost.json")
    assert list(costs) == ["ours", "dccrn"] and "seconds 1" in conditions
    for cost in costs.values():
        assert 0 < cost["gmacs_per_second"] < cost["gmacs_per_second_with_recurrent"]
        assert cost["rtf_1"] > 0 and cost["rtf_2"] > 0 and cost["parameters"] > 1000
    with pytest.raises(UserError, match="two models are called ours"):
        bench_main(["models", str(tmp_path / "ours.yaml"), f"ours={tmp_path}/theirs.yaml"])


def test_costs_of_another_part_are_refused(tmp_path):
    (tmp_path / "infer.json").write_text(json.dumps({"part": "infer", "rows": []}))
    with pytest.raises(UserError, match="not written by"):
        table.read_costs(tmp_path / "infer.json")


def scored(folder, gain):
    rows = [{"utt": f"u{i}", "seconds": 2.0, **{metric: 0.5 + 0.1 * i + gain for metric in METRICS}} for i in range(5)]
    write_scores(folder, rows, METRICS, fs=16000)
    return folder


def test_the_table_has_networks_and_costs_alone(tmp_path):
    rows = [{"name": "a", "parameters": 1234, "rtf_1": 0.01, "rtf_2": 0.008}, {"name": "big", "parameters": 9999999}]
    cost = {"part": "models", "rows": rows, "conditions": {"seconds": 4.0}}
    (tmp_path / "cost.json").write_text(json.dumps(cost))
    words = [
        f"--system={name}={scored(tmp_path / name, gain)}" for name, gain in (("noisy", 0), ("a", 0.2), ("b", 0.1))
    ]
    words += ["--out", str(tmp_path / "T.md"), "--cost", str(tmp_path / "cost.json"), "--baseline", "a"]
    assert write_results(words) == 0
    text = (tmp_path / "T.md").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    lines = {line[0]: line for line in cells}
    assert [line[0] for line in cells[2:6]] == ["noisy", "a", "b", "big"]
    assert lines["a"][4:] == ["1,234", "–", "–", "0.0100", "0.0080", "–"] and lines["a"][1].startswith("0.900 [")
    assert lines["big"][1:5] == ["–"] * 3 + ["9,999,999"] and "Costs: seconds 4." in text
    assert lines["b - a"][1].startswith("-0.100 [")
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["systems"][1]["complexity"]["rtf_1"] == 0.01
    assert content["systems"][3]["complexity"]["parameters"] == 9999999
