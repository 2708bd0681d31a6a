"""Enhancing a waveform that arrives in blocks of any size, frame by frame of its STFT. Needs numpy alone.

The frames are those of ``torch.stft`` with centred frames and reflected edges, the output is that of ``torch.istft``,
first and last samples included. Frame ``k`` covers the samples from ``k * hop - n_fft / 2`` to ``k * hop + n_fft / 2``.
A sample of the output therefore depends on no sample of the input later than ``n_fft - 1`` after it: the algorithmic
latency is ``n_fft`` samples, 32 ms for 512 samples at 16 kHz.
"""

from typing import Any

import numpy as np

try:
    from i2srf_kd.system.errors import UserError
except ImportError:  # the copy in an exported folder, where the package is not installed
    UserError = ValueError  # type: ignore[misc, assignment]

# A larger block is worked off in chunks of this many frames: enough to be fast, and a bound on the memory.
CHUNK_FRAMES = 64


class SpectralStream:
    """Waveform in, waveform out; derive and give :meth:`step` and :meth:`forget`.

    All buffers are allocated here, once.

    Args:
        fs: sampling rate in Hz, of what goes in and what comes out.
        n_fft: FFT and window length in samples (periodic Hann window).
        hop_length: hop in samples, at most half of it.
        num_mics: channels that a stream consists of.
        streams: streams that are enhanced side by side, each on its own.
        ref_channel: the channel whose speech is estimated.

    Attributes:
        kept: share of the mixture in the output, 0 to 1, at the same time and phase; 0 unless it is set.
        latency: samples of input, beginning with the one that an output sample belongs to, that can be needed for it.
    """

    def __init__(self, fs: int, n_fft: int, hop_length: int, num_mics: int = 1, streams: int = 1, ref_channel: int = 0):
        if not 0 < hop_length <= n_fft // 2:
            raise ValueError(f"hop_length {hop_length} must be between 1 and n_fft / 2 = {n_fft // 2}")
        if streams < 1:
            raise ValueError(f"streams must be at least 1, not {streams}")
        self.fs, self.n_fft, self.hop_length = fs, n_fft, hop_length
        self.num_mics, self.streams, self.channels = num_mics, streams, num_mics * streams
        self.latency = n_fft
        self.kept = 0.0
        self._reference = slice(2 * ref_channel, 2 * ref_channel + 2)
        self._half = n_fft // 2
        self._window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
        self._window_power = self._window**2
        covered = n_fft + (CHUNK_FRAMES - 1) * hop_length  # samples under a chunk of frames
        # One sample of the past stands before the next frame; the reflection at the end reaches back to it.
        self._input = np.zeros((self.channels, 1 + covered))
        self._output = np.zeros((streams, covered))
        self._power = np.zeros(covered)
        self._restart()

    def step(self, planes: np.ndarray) -> np.ndarray:
        """Enhance the next frames: float32 ``(streams, 2 * num_mics, T, F)`` to ``(streams, 2, T, F)``."""
        raise NotImplementedError

    def forget(self) -> None:
        """Make :meth:`step` begin anew."""
        raise NotImplementedError

    def reset(self) -> None:
        """Begin a new recording; what has not come out of the old one is dropped."""
        self._restart()
        self.forget()

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """Take the next samples and return those that are ready.

        Args:
            block: ``(samples,)`` or ``(samples, channels)``, floating point with full scale 1, also empty; ``channels``
                is ``num_mics * streams``, stream by stream.

        Returns:
            float32 ``(ready,)``, for several streams ``(ready, streams)``; possibly empty.

        Raises:
            UserError: other channels, integers, NaN or infinite values. The stream can go on with the next block.
        """
        samples = self._checked(block)
        self._heard += samples.shape[1]
        return self._emit(self._push(samples))

    def flush(self) -> np.ndarray:
        """End the recording: return the rest, so that as many samples came out as went in, and :meth:`reset`.

        Like offline, the recording is filled up with zeros to whole hops and to at least ``n_fft``, then reflected.
        """
        hop = self.hop_length
        rest = np.zeros((self.streams, 0))
        if self._heard:
            padded = max(-(-self._heard // hop) * hop, self.n_fft)
            zeros = np.zeros((self.channels, padded - self._heard))
            parts = [self._push(zeros)]
            mirrored = self._filled - 2 - np.arange(self._half)
            parts.append(self._push(self._input[:, mirrored]))
            centre = self._half - hop  # of the last frame, up to which the recording reaches
            parts.append(self._output[:, :centre] / self._power[:centre])
            rest = np.concatenate(parts, axis=1)[:, : self._heard - self._returned]
        result = self._emit(rest)
        self.reset()
        return result

    def _restart(self) -> None:
        self._heard = self._returned = 0
        self._mirrored = False
        self._filled = 1 + self._half  # room for the reflection of the first samples
        self._skip = self._half  # output before the first sample
        self._output[:] = 0
        self._power[:] = 0

    def _checked(self, block: Any) -> np.ndarray:
        wave = np.asarray(block)
        wave = wave[:, None] if wave.ndim == 1 else wave
        if wave.ndim != 2 or wave.shape[1] != self.channels:
            raise UserError(f"expected blocks (samples, {self.channels}), got {np.shape(block)}")
        if not np.issubdtype(wave.dtype, np.floating):
            raise UserError(f"a block of {wave.dtype}: convert to floating point with full scale 1 (int16: / 32768)")
        if not np.isfinite(wave).all():
            raise UserError("a block with NaN or infinite values; it was not taken")
        return wave.T

    def _push(self, samples: np.ndarray) -> np.ndarray:
        """Append ``(channels, samples)`` to the input, enhance all complete frames, return ``(streams, ready)``."""
        ready, begin = [], 0
        while begin < samples.shape[1]:
            piece = samples[:, begin : begin + self._input.shape[1] - self._filled]
            self._input[:, self._filled : self._filled + piece.shape[1]] = piece
            self._filled += piece.shape[1]
            begin += piece.shape[1]
            if not self._mirrored and self._filled >= 2 + self.n_fft:
                first = 1 + self._half
                self._input[:, 1:first] = self._input[:, first + self._half : first : -1]
                self._mirrored = True
            if self._mirrored and self._filled >= 1 + self.n_fft:
                ready.append(self._process())
        return np.concatenate(ready, axis=1) if ready else np.zeros((self.streams, 0))

    def _process(self) -> np.ndarray:
        count = (self._filled - 1 - self.n_fft) // self.hop_length + 1
        planes = self._analyse(count)
        enhanced = self.step(planes)
        if self.kept:
            enhanced = enhanced + self.kept * (planes[:, self._reference] - enhanced)
        used = count * self.hop_length
        self._filled -= used
        self._input[:, : self._filled] = self._input[:, used : used + self._filled]
        return self._synthesise(enhanced)

    def _analyse(self, count: int) -> np.ndarray:
        # A block is often one frame: calls count more than arithmetic here, and a strided view costs many.
        frames = np.empty((self.channels, count, self.n_fft))
        for i in range(count):
            begin = 1 + i * self.hop_length
            np.multiply(self._input[:, begin : begin + self.n_fft], self._window, out=frames[:, i])
        spectrum = np.fft.rfft(frames)  # (channels, T, F)
        planes = np.empty((self.channels, 2, *spectrum.shape[1:]), np.float32)
        planes[:, 0], planes[:, 1] = spectrum.real, spectrum.imag
        return planes.reshape(self.streams, 2 * self.num_mics, *spectrum.shape[1:])

    def _synthesise(self, planes: np.ndarray) -> np.ndarray:
        """Overlap-add the frames and return the samples that no later frame covers."""
        spectrum = np.empty((self.streams, *planes.shape[2:]), np.complex128)
        spectrum.real, spectrum.imag = planes[:, 0], planes[:, 1]
        frames = np.fft.irfft(spectrum, self.n_fft)
        frames *= self._window
        count = frames.shape[1]
        for i in range(count):
            place = slice(i * self.hop_length, i * self.hop_length + self.n_fft)
            self._output[:, place] += frames[:, i]
            self._power[place] += self._window_power
        done = count * self.hop_length
        begin = min(self._skip, done)
        self._skip -= begin
        ready = self._output[:, begin:done] / self._power[begin:done]
        kept = self.n_fft - self.hop_length
        for buffer in (self._output, self._power):
            buffer[..., :kept] = buffer[..., done : done + kept]  # numpy sees that the two overlap
            buffer[..., kept : done + kept] = 0
        return ready

    def _emit(self, samples: np.ndarray) -> np.ndarray:
        self._returned += samples.shape[1]
        result = samples.T.astype(np.float32)
        return result[:, 0] if self.streams == 1 else result
