"""Enhance a stream with an exported ``model_stream.onnx``; needs numpy and onnxruntime, neither torch nor this package.

Export puts a copy of this module and of ``spectral_stream.py`` into the folder of a causal model.

    stream = OnnxStreamingEnhancer("export/model_stream.onnx")
    for block in blocks:  # any sizes, at stream.fs
        play(stream(block))
    play(stream.flush())
"""

import threading
from typing import Any, List, Optional, Sequence

import numpy as np

try:
    from i2srf_kd.audio.spectral_stream import CHUNK_FRAMES, SpectralStream
    from i2srf_kd.system.errors import UserError
except ImportError:  # the copy in an exported folder, where the package is not installed
    from spectral_stream import CHUNK_FRAMES, SpectralStream  # type: ignore[import-not-found, no-redef]

    UserError = ValueError  # type: ignore[misc, assignment]

# Name of the dimension of the ONNX file that counts frames.
FRAMES = "frames"


def _load(path: Any, num_threads: int, frames: Optional[int] = None) -> Any:
    """A session for any number of frames, or for one number of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    if frames is not None:
        options.add_free_dimension_override_by_name(FRAMES, frames)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base class
        raise UserError(f"{path}: not a readable ONNX model ({error})") from None


class OnnxStreamNetwork:
    """The network of a file, without a memory; any number of streams may share it.

    Args:
        path: ``model_stream.onnx`` as written by ``i2srf_kd.bin.export``.
        num_threads: CPU threads. One step is small: more than one rarely helps.

    Attributes:
        metadata: what the file says of itself.
        state_shapes: of what the network remembers.

    Raises:
        UserError: the file is absent, or no model of this kind.
    """

    def __init__(self, path: Any, num_threads: int = 1):
        self._load_single = lambda: _load(path, num_threads, frames=1)
        self._any, self._single = _load(path, num_threads), None
        self.metadata = self._any.get_modelmeta().custom_metadata_map
        inputs = self._any.get_inputs()
        self._names = [entry.name for entry in inputs]
        self.state_shapes = [entry.shape for entry in inputs[1:]]
        if not self.state_shapes:
            raise UserError(f"{path}: has no state, so it is not the model for streams; give model_stream.onnx")

    def session(self, frames: int) -> Any:
        """The session that is fastest for a number of frames.

        With the length known when it is loaded, a tenth of the time of a single frame is saved: no shape is computed.
        """
        if frames != 1:
            return self._any
        if self._single is None:
            self._single = self._load_single()
        return self._single

    def __call__(self, planes: np.ndarray, state: Sequence[np.ndarray]) -> List[np.ndarray]:
        """Enhanced planes and the next state."""
        given = dict(zip(self._names, [planes, *state], strict=True))
        return self.session(planes.shape[2]).run(None, given)


class OnnxStep:
    """One step of the network and its memory.

    Args:
        model: ``model_stream.onnx``, or what was loaded from it.
        num_threads: CPU threads for a model that is loaded here.
    """

    def __init__(self, model: Any, num_threads: int = 1):
        self.network = model if isinstance(model, OnnxStreamNetwork) else OnnxStreamNetwork(model, num_threads)
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Begin a new recording."""
        self._state: List[np.ndarray] = [np.zeros(shape, np.float32) for shape in self.network.state_shapes]

    def __call__(self, planes: np.ndarray) -> np.ndarray:
        """Enhance the next frames: ``(1, 2 * microphones, T, F)`` to ``(1, 2, T, F)``."""
        enhanced, *self._state = self.network(planes, self._state)
        return enhanced

    def whole(self, planes: np.ndarray, chunk: int = CHUNK_FRAMES) -> np.ndarray:
        """Enhance recordings in one piece, ``(B, 2 * microphones, T, F)``, in memory that hardly grows with T."""
        starts, recordings = range(0, planes.shape[2], chunk), []
        with self._lock:  # there is one state
            for i in range(len(planes)):
                self.forget()
                recordings.append(np.concatenate([self(planes[i : i + 1, :, t : t + chunk]) for t in starts], axis=2))
            self.forget()
        return np.concatenate(recordings)


class OnnxStreamingEnhancer(SpectralStream):
    """An exported causal model: blocks of a waveform in, what is ready out.

    Args:
        path: ``model_stream.onnx`` as written by ``i2srf_kd.bin.export``.
        streams: recordings to enhance side by side.
        num_threads: CPU threads for a step.

    Raises:
        UserError: the file is absent, or no model of this kind.
    """

    def __init__(self, path: Any, streams: int = 1, num_threads: Optional[int] = None):
        network = OnnxStreamNetwork(path, num_threads or 1)
        network.session(1)  # now, not when the first frame is due
        self._steps = [OnnxStep(network) for _ in range(streams)]
        metadata = network.metadata
        try:
            fs, n_fft, hop, num_mics = (int(metadata[name]) for name in ("fs", "n_fft", "hop_length", "num_mics"))
        except KeyError as error:
            raise UserError(f"{path}: lacks the entry {error} in its metadata; export the model again") from None
        super().__init__(fs, n_fft, hop, num_mics, streams, int(metadata.get("ref_channel", 0)))

    def forget(self) -> None:
        """Go back to a state in which nothing has been heard."""
        for step in self._steps:
            step.forget()

    def step(self, planes: np.ndarray) -> np.ndarray:
        """Run the network on the next frames."""
        return np.concatenate([step(planes[i : i + 1]) for i, step in enumerate(self._steps)])
