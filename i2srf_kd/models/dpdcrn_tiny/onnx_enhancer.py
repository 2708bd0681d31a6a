"""Enhance speech with an exported ``model.onnx``; needs numpy and onnxruntime, neither torch nor this package.

The file describes itself (sampling rate, STFT, normalisation are in its metadata), and this module stands alone: export
puts a copy of it into the exported folder.

    enhancer = OnnxEnhancer("export/model.onnx")
    enhanced = enhancer(noisy, fs)
"""

from typing import Any, Optional

import numpy as np

try:
    from i2srf_kd.system.errors import UserError
except ImportError:  # the copy in an exported folder, where the package is not installed
    UserError = ValueError  # type: ignore[misc, assignment]


class NumpySTFT:
    """STFT with a periodic Hann window, centred frames and reflected edges, and its inverse; equals ``torch.stft``.

    Args:
        n_fft: FFT and window length in samples.
        hop_length: hop in samples.
    """

    def __init__(self, n_fft: int, hop_length: int):
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)

    def forward(self, wave: np.ndarray) -> np.ndarray:
        """``(samples, channels)`` to float32 planes ``(1, 2 * channels, T, F)``: re, im of channel 0, then of 1, ..."""
        half = self.n_fft // 2
        padded = np.pad(wave.astype(np.float64), ((half, half), (0, 0)), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft, axis=0)[:: self.hop_length]
        spectrum = np.fft.rfft(frames * self.window, axis=-1).transpose(1, 0, 2)  # (channels, T, F)
        planes = np.stack([spectrum.real, spectrum.imag], axis=1)
        return planes.reshape(1, -1, *planes.shape[2:]).astype(np.float32)

    def inverse(self, planes: np.ndarray, samples: int) -> np.ndarray:
        """Planes ``(1, 2, T, F)`` to float64 ``(samples,)``."""
        spectrum = planes[0, 0].astype(np.float64) + 1j * planes[0, 1]
        frames = np.fft.irfft(spectrum, self.n_fft, axis=-1) * self.window
        length = self.n_fft + self.hop_length * (len(frames) - 1)
        wave, power = np.zeros(length), np.zeros(length)
        for i, frame in enumerate(frames):
            place = slice(i * self.hop_length, i * self.hop_length + self.n_fft)
            wave[place] += frame
            power[place] += self.window**2
        kept = slice(self.n_fft // 2, self.n_fft // 2 + samples)
        return wave[kept] / power[kept]


class OnnxNetwork:
    """The network alone: spectrum planes ``(B, 2 * microphones, T, F)`` to ``(B, 2, T, F)``, float32.

    Args:
        path: ``model.onnx`` as written by ``i2srf_kd.bin.export``.
        num_threads: CPU threads, default: all.

    Attributes:
        metadata: what the file says of itself.

    Raises:
        UserError: the file is absent, or no readable model.
    """

    def __init__(self, path: Any, num_threads: Optional[int] = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if num_threads:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise UserError(f"{path}: not a readable ONNX model ({error})") from None
        self.metadata = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, planes: np.ndarray) -> np.ndarray:
        """Enhance a spectrum."""
        return self._session.run(None, {"mixture": planes})[0]


class OnnxEnhancer:
    """An exported model: waveform in, waveform out, in one piece.

    Time grows with the square of the length, memory too for a causal model; cut recordings of more than about half a
    minute into windows (such as with ``i2srf_kd.audio.overlap_add``).

    Args:
        path: ``model.onnx`` as written by ``i2srf_kd.bin.export``.
        num_threads: CPU threads, default: all.

    Attributes:
        fs: sampling rate in Hz.
        num_mics: microphones the model uses.

    Raises:
        UserError: the file is absent, or no model of this kind.
    """

    def __init__(self, path: Any, num_threads: Optional[int] = None):
        self._network = OnnxNetwork(path, num_threads)
        metadata = self._network.metadata
        try:
            self.fs = int(metadata["fs"])
            self.num_mics = int(metadata["num_mics"])
            self.normalize_variance = metadata["normalize_variance"] == "true"
            self.stft = NumpySTFT(int(metadata["n_fft"]), int(metadata["hop_length"]))
        except KeyError as error:
            raise UserError(f"{path}: lacks the entry {error} in its metadata; export the model again") from None

    def __call__(self, waveform: np.ndarray, fs: int) -> np.ndarray:
        """Enhance a recording.

        Args:
            waveform: ``(samples,)`` or ``(samples, channels)``, floating point with full scale 1.
            fs: its sampling rate in Hz, which must be the model's.

        Returns:
            float32 ``(samples,)``.

        Raises:
            UserError: the waveform has another rate, too few channels, no samples, or values that are not finite.
        """
        wave = np.asarray(waveform)
        wave = wave[:, None] if wave.ndim == 1 else wave
        if fs != self.fs:
            raise UserError(f"the model works at {self.fs} Hz, the waveform has {fs} Hz: resample it")
        if wave.ndim != 2 or not len(wave) or not np.issubdtype(wave.dtype, np.floating):
            raise UserError("expected a floating-point waveform (samples,) or (samples, channels) that is not empty")
        if wave.shape[1] < self.num_mics:
            raise UserError(f"the model needs {self.num_mics} microphones, the waveform has {wave.shape[1]} channels")
        if not np.isfinite(wave).all():
            raise UserError("the waveform has NaN or infinite values")
        return self._enhance(wave[:, : self.num_mics])

    def _enhance(self, wave: np.ndarray) -> np.ndarray:
        samples = len(wave)
        # As i2srf_kd.audio.normalize has it, which an exported folder does not hold.
        scale = 1.0
        if self.normalize_variance and samples > 1:
            scale = max(float(np.std(wave, ddof=1)), 1e-8)
        hop = self.stft.hop_length
        padded = max(-(-samples // hop) * hop, self.stft.n_fft)
        planes = self.stft.forward(np.pad(wave / scale, ((0, padded - samples), (0, 0))))
        enhanced = self._network(planes)
        return (self.stft.inverse(enhanced, padded)[:samples] * scale).astype(np.float32)
