"""Streams of blocks of any size against the causal model on the whole recording, with torch and with ONNX."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from export.trained import SMALL, make_experiment, make_network
from hypothesis import given, settings
from hypothesis import strategies as st
from waves import blocks_of, noise

from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.inference.enhancer import Enhancer
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.inference.stream import StreamingEnhancer
from i2srf_kd.inference.waveform import WaveformDPDCRN
from i2srf_kd.system.errors import UserError

CAUSAL = {"causal": True, "attention_window": 12}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("causal")
    experiment = make_experiment(folder / "exp", make_network(**CAUSAL), separator_conf={**SMALL, **CAUSAL})
    return export_bundle(experiment, folder / "model").path


@pytest.fixture(scope="module")
def enhancer(exported):
    return load_enhancer(exported, runtime="torch")


@pytest.fixture(scope="module", params=["torch", "onnx"])
def stream(request, exported, enhancer):
    if request.param == "torch":
        return enhancer.stream()
    from i2srf_kd.export.onnx_stream import OnnxStreamingEnhancer

    return OnnxStreamingEnhancer(exported / "model_stream.onnx")


def run(stream: SpectralStream, wave: np.ndarray, sizes) -> np.ndarray:
    return np.concatenate([*(stream(block) for block in blocks_of(wave, sizes)), stream.flush()])


@settings(max_examples=12, deadline=None)
@given(
    samples=st.integers(1, 9000),
    sizes=st.lists(st.one_of(st.integers(1, 40), st.integers(200, 5000)), min_size=1, max_size=6),
)
def test_any_blocks_give_the_whole(enhancer, stream, samples, sizes):
    wave = noise(samples, seed=samples)
    found = run(stream, wave, sizes)
    assert found.shape == wave.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, enhancer(wave, 16000), rtol=0, atol=TOLERANCE)


def test_real_speech(enhancer, stream, audio_dir):
    wave, fs = soundfile.read(sorted((audio_dir / "test" / "noisy").glob("*.wav"))[0], dtype="float32")
    assert fs == stream.fs
    wave = wave[: 2 * fs]
    np.testing.assert_allclose(run(stream, wave, [256]), enhancer(wave, fs), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(run(stream, wave, [1, 30000, 77]), enhancer(wave, fs), rtol=0, atol=TOLERANCE)


def test_several_microphones():
    enhancer = Enhancer(WaveformDPDCRN(make_network(num_mics=2, **CAUSAL))).eval()
    wave = noise(6000, 2)
    np.testing.assert_allclose(run(enhancer.stream(), wave, [700]), enhancer(wave, 16000), rtol=0, atol=TOLERANCE)


def test_streams_side_by_side_do_not_hear_each_other(enhancer, exported):
    from i2srf_kd.export.onnx_stream import OnnxStreamingEnhancer

    waves = noise(6000, 3)
    expected = np.stack([enhancer(wave, 16000) for wave in waves.T], axis=1)
    for both in (enhancer.stream(streams=3), OnnxStreamingEnhancer(exported / "model_stream.onnx", streams=3)):
        np.testing.assert_allclose(run(both, waves, [500]), expected, rtol=0, atol=TOLERANCE)


def test_no_sample_waits_longer_than_the_latency(stream):
    wave, out = noise(4000), 0
    for heard in range(1, 4001):
        out += len(stream(wave[heard - 1 : heard]))
        assert heard - stream.latency + 1 <= out <= heard
    stream.reset()


def test_reset_forgets(enhancer, stream):
    stream(noise(5000, seed=1))
    stream.reset()
    wave = noise(2000)
    np.testing.assert_allclose(run(stream, wave, [600]), enhancer(wave, 16000), rtol=0, atol=TOLERANCE)


def test_memory_does_not_grow(stream):
    """What Python and numpy hold; the slow test below sees the whole process."""
    block, held = noise(512), []
    tracemalloc.start()
    try:
        for _ in range(3):
            for _ in range(10):
                stream(block)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        stream.reset()
    assert held[2] - held[1] < len(block) * 10  # 10 blocks of float32 would be four times that


_AN_HOUR = """
import sys
import numpy as np, torch
from i2srf_kd.inference.enhancer import Enhancer
from i2srf_kd.inference.waveform import WaveformDPDCRN
from i2srf_kd.system.memory import peak_resident_bytes
from i2srf_kd.nets import build_dpdcrn
torch.set_num_threads(1)
torch.manual_seed(0)
if len(sys.argv) > 1:
    from i2srf_kd.export.onnx_stream import OnnxStreamingEnhancer
    stream = OnnxStreamingEnhancer(sys.argv[1])
else:
    stream = Enhancer(WaveformDPDCRN(build_dpdcrn("dpdcrn_tiny_causal"))).eval().stream()
second = np.random.default_rng(0).normal(0, 0.1, stream.fs).astype(np.float32)
samples = 0
for count in range(3600):
    samples += len(stream(second))
    if count in (60, 3599):
        print(peak_resident_bytes() // 1000)
print(samples + len(stream.flush()))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_an_hour_in_constant_memory(repository, exported, runtime):
    """The peak of the process after an hour is that after a minute; each second would leave 64 kB, 230 MB in all."""
    arguments = [str(exported / "model_stream.onnx")] if runtime == "onnx" else []
    command = [sys.executable, "-c", _AN_HOUR, *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    minute, hour, samples = map(int, done.stdout.split())
    assert samples == 3600 * 16000
    assert hour - minute < 20_000, f"grew from {minute} kB to {hour} kB"


def test_models_that_cannot_stream_name_the_option():
    with pytest.raises(UserError, match=r"not causal.*separator_conf \{causal: true\}"):
        Enhancer(WaveformDPDCRN(make_network())).stream()
    with pytest.raises(UserError, match=r"normalize_variance: false"):
        StreamingEnhancer(WaveformDPDCRN(make_network(**CAUSAL), normalize_variance=True))

    class Other(torch.nn.Module):
        fs, num_mics = 16000, 1

    with pytest.raises(UserError, match="no DPDCRN"):
        Enhancer(Other()).stream()
