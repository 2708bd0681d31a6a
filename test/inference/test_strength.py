"""How much of the mixture stays in what is enhanced: arrays, files, streams, onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from export.trained import SMALL, make_experiment, make_network
from torch import Tensor, nn
from waves import blocks_of, noise

from i2srf_kd.audio.level import kept_share
from i2srf_kd.bin import enhance
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.inference.enhancer import Enhancer
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError

CAUSAL = {"causal": True, "attention_window": 12}
STRENGTH = 0.7


class Silencer(nn.Module):
    """A model that leaves nothing."""

    fs, num_mics, ref_channel = 16000, 1, 0

    def enhance_window(self, speech: Tensor) -> Tensor:
        return torch.zeros_like(speech)


@pytest.mark.parametrize("fs", [16000, 48000])
def test_mixture_and_output_are_added_at_the_same_time(fs: int) -> None:
    wave = noise(2 * fs // 3)
    full, part = load_enhancer(), load_enhancer(strength=STRENGTH)
    np.testing.assert_allclose(part(wave, fs), STRENGTH * full(wave, fs) + (1 - STRENGTH) * wave, atol=1e-6)
    assert part(wave, fs).dtype == wave.dtype
    np.testing.assert_allclose(load_enhancer(strength=0)(wave, fs), wave, atol=1e-6)


@pytest.mark.parametrize("limit", [0.0, 12.0, 20.0])
def test_no_more_is_left_out_than_the_limit(limit: float) -> None:
    enhancer = Enhancer(Silencer())
    enhancer.kept = kept_share(1.0, limit)
    wave = noise(8000)
    level = 10 * np.log10(np.mean(wave**2) / np.mean(enhancer(wave, 16000) ** 2))
    assert level == pytest.approx(limit, abs=1e-3)
    assert kept_share(0.5, limit) == max(0.5, 10 ** (-limit / 20))  # the milder of the two wins


def test_the_channel_is_the_one_that_is_estimated(tmp_path: Path) -> None:
    network = make_network(num_mics=2, ref_channel=1)
    conf = {**SMALL, "num_mics": 2, "ref_channel": 1}
    make_experiment(tmp_path / "exp", network, separator_conf=conf)
    wave = noise(9000, 2)
    full, part = load_enhancer(tmp_path / "exp"), load_enhancer(tmp_path / "exp", strength=STRENGTH)
    expected = STRENGTH * full(wave, 16000) + (1 - STRENGTH) * wave[:, 1]
    np.testing.assert_allclose(part(wave, 16000), expected, atol=1e-6)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_streams_give_what_the_whole_recording_gives(runtime: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = make_network(num_mics=2, ref_channel=1, **CAUSAL)
    conf = {**SMALL, **CAUSAL, "num_mics": 2, "ref_channel": 1}
    folder = export_bundle(make_experiment(tmp_path / "exp", network, separator_conf=conf), tmp_path / "model").path
    wave = noise(7001, 2)
    stream = load_enhancer(folder, runtime=runtime, strength=STRENGTH).stream()
    heard = np.concatenate([*(stream(block) for block in blocks_of(wave, [100, 1000])), stream.flush()])
    full = load_enhancer(folder, runtime="torch")
    np.testing.assert_allclose(heard, STRENGTH * full(wave, 16000) + (1 - STRENGTH) * wave[:, 1], atol=1e-5)


def test_the_exported_program_does_it_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from i2srf_kd.export.onnx_runtime import OnnxEnhancer
    from i2srf_kd.models import folder_of

    enhancer, wave = OnnxEnhancer(folder_of("dpdcrn_tiny") / "model.onnx"), noise(6000)
    expected = STRENGTH * enhancer(wave, 16000) + (1 - STRENGTH) * wave
    np.testing.assert_allclose(enhancer(wave, 16000, strength=STRENGTH), expected, atol=1e-6)
    with pytest.raises(UserError, match="strength 2"):
        enhancer(wave, 16000, strength=2)


def test_files(tmp_path: Path, capsys: Any) -> None:
    wave = noise(20000)
    soundfile.write(tmp_path / "x.wav", wave, 16000)
    for number, words in enumerate((["--strength", "0"], ["--max_attenuation_db", "0"])):
        out = tmp_path / str(number)
        assert enhance.main([str(tmp_path / "x.wav"), "-o", str(out), *words]) == 0
        np.testing.assert_allclose(soundfile.read(out / "x.wav")[0], soundfile.read(tmp_path / "x.wav")[0], atol=2**-14)


@pytest.mark.parametrize("words", [["--strength", "1.5"], ["--strength", "nan"], ["--max_attenuation_db", "-1"]])
def test_what_is_out_of_range_is_refused(tmp_path: Path, words: Any) -> None:
    soundfile.write(tmp_path / "x.wav", noise(2000), 16000)
    with pytest.raises(UserError, match=words[0].strip("-")):
        enhance.main([str(tmp_path / "x.wav"), "-o", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
