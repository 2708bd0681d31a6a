"""Synthetic speech from the espeak-ng library that the Python package espeakng-loader brings along.

    waves = synthesize_speech(["Good morning."], Voice("en-us", "f3"), fs=16000)

The library keeps state from one sentence to the next, so each call runs it in a fresh process (this file as a script)
with a fixed seed: the same call gives the same samples, whatever was spoken before. The script part needs the standard
library only.
"""

import ctypes
import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Dict, List, NamedTuple, Sequence, Tuple

if TYPE_CHECKING:
    import numpy as np

# Constants of espeak-ng's speak_lib.h
_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "pitch_range": 4}
_VOLUME = 60  # of 100: some voices clip at the default


class Voice(NamedTuple):
    """A synthetic speaker."""

    accent: str = "en-us"  # one of espeak-ng's languages, such as en-gb-scotland
    variant: str = ""  # one of espeak-ng's voice variants, such as m1 to m8, f1 to f5, steph, adam
    rate: int = 165  # words per minute, 80 to 450
    pitch: int = 50  # 0 to 99
    pitch_range: int = 50  # 0 (monotone) to 99


def synthesize_speech(sentences: Sequence[str], voice: Voice, fs: int, seed: int = 0) -> List["np.ndarray"]:
    """Speak sentences.

    Args:
        sentences: English text.
        voice: who speaks.
        fs: sampling rate of the result in Hz; espeak-ng's own is 22050.
        seed: of the small random variations of the voice.

    Returns:
        One signal ``(samples,)`` per sentence, float32 in [-1, 1].

    Raises:
        UserError: espeakng-loader is not installed, or the voice does not exist.
    """
    import numpy as np

    from i2srf_kd.audio.resample import resample
    from i2srf_kd.system.errors import UserError

    library, data = _find_espeak()
    request = {"library": library, "data": data, "seed": seed, "sentences": list(sentences), "voice": voice._asdict()}
    worker = subprocess.run(
        [sys.executable, "-I", str(Path(__file__).resolve())],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=False,
    )
    if worker.returncode:
        lines = worker.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {worker.returncode}"
        raise UserError(f"espeak-ng cannot speak as {voice.accent}+{voice.variant}: {reason}")
    native_fs, signals = _unpack(worker.stdout)
    return [resample(np.frombuffer(x, dtype="<i2").astype(np.float32) / 32768.0, native_fs, fs) for x in signals]


def _find_espeak() -> Tuple[str, str]:
    """Paths of the shared library and of its data."""
    from i2srf_kd.system.errors import UserError

    try:
        found = importlib.util.find_spec("espeakng_loader")
    except ValueError:
        found = None
    if found is None:
        raise UserError("synthetic speech needs the package espeakng-loader: run pip install espeakng-loader")
    import espeakng_loader

    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())


def _unpack(stream: bytes) -> Tuple[int, List[bytes]]:
    (native_fs,) = struct.unpack_from("<I", stream)
    signals, position = [], 4
    while position < len(stream):
        (length,) = struct.unpack_from("<I", stream, position)
        signals.append(stream[position + 4 : position + 4 + length])
        position += 4 + length
    return native_fs, signals


# ---------------------------------------------------------------------------------------------------------------------
# In the fresh process


class _Espeak:
    """The few functions of the C library that are needed."""

    def __init__(self, library: str, data: str) -> None:
        self.library = ctypes.CDLL(library)
        self.data = Path(data)
        self.spoken: List[bytes] = []
        self.fs = self.library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data.encode(), 0)
        if self.fs <= 0:
            raise SystemExit(f"the library cannot be initialised with the data in {data}")
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._receive)  # kept: the library holds only a pointer
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave: Any, n_samples: int, events: Any) -> int:
        if wave and n_samples > 0:
            self.spoken.append(ctypes.string_at(wave, 2 * n_samples))
        return 0

    def seed(self, seed: int) -> None:
        """Without this the library seeds itself with the time."""
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if sys.platform != "win32":
            ctypes.CDLL(None).srand(ctypes.c_uint(seed))

    def choose(self, accent: str, variant: str, **parameters: int) -> None:
        if variant and not (self.data / "voices" / "!v" / variant).is_file():  # the library would ignore it
            raise SystemExit(f"no voice variant {variant}")
        if self.library.espeak_SetVoiceByName(f"{accent}+{variant}".rstrip("+").encode()):
            raise SystemExit(f"no accent {accent}")
        for name, value in {"volume": _VOLUME, **parameters}.items():
            self.library.espeak_SetParameter(_PARAMETERS[name], value, 0)

    def speak(self, text: str) -> bytes:
        self.spoken.clear()
        encoded = text.encode() + b"\0"
        failed = self.library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded)), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if failed or not self.spoken:
            raise SystemExit(f"no speech for {text!r}")
        return b"".join(self.spoken)


def _worker(request: Dict[str, Any], out: BinaryIO) -> None:
    espeak = _Espeak(request["library"], request["data"])
    espeak.seed(request["seed"])
    espeak.choose(**request["voice"])
    out.write(struct.pack("<I", espeak.fs))
    for sentence in request["sentences"]:
        signal = espeak.speak(sentence)
        out.write(struct.pack("<I", len(signal)) + signal)


if __name__ == "__main__":
    _worker(json.load(sys.stdin), sys.stdout.buffer)
