"""Audio files and folders through a model, in constant memory, in windows or as streams.

torch is not imported before a model is: wrong calls need not wait for it.
"""

import logging
import os
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import numpy as np
import soundfile

from i2srf_kd import models
from i2srf_kd.audio.folders import ABSENT, Report, find_audio, why_absent
from i2srf_kd.audio.io import probe
from i2srf_kd.audio.overlap_add import BlockWriter, overlap_add_blocks, read_blocks, window_in_samples
from i2srf_kd.audio.pcm import read_pcm, write_pcm
from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.export.runtimes import STREAM, STREAM_ONNX, WHOLE, onnx_file
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.progress import progress

if TYPE_CHECKING:
    from i2srf_kd.inference.enhancer import Enhancer
    from i2srf_kd.inference.without_torch import OnnxFileEnhancer

logger = logging.getLogger(__name__)

# Suffixes of libsndfile's formats, without RAW, which needs a description of its content, and with other spellings.
_AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
_AUDIO_SUFFIXES |= {".aif", ".oga", ".opus", ".snd", ".mp3", ".sph"}

# Of a file, in windows: shorter ones than the library's take less memory at once.
WINDOW_SECONDS, OVERLAP_SECONDS = 10.0, 1.0


class Job(NamedTuple):
    """One file to enhance."""

    source: Path
    target: Path


class Options(NamedTuple):
    """How files are enhanced."""

    keep_channels: bool
    overwrite: bool


def find_inputs(inputs: Sequence[str], out_dir: Path, report: Report) -> List[Tuple[Path, Path]]:
    """Audio files and their names relative to the input they belong to, each file once.

    Args:
        inputs: files and folders.
        out_dir: what lies there is no input.
        report: is told what of a folder is passed over, see :func:`i2srf_kd.audio.folders.find_audio`.

    Raises:
        UserError: an input does not exist, or a folder has no audio.
    """
    found: List[Tuple[Path, Path]] = []
    seen: Set[Path] = set()
    out_dir = Path(os.path.realpath(out_dir))
    for text in inputs:
        path = Path(text)
        if os.path.isdir(path):
            problems: List[str] = []
            audio = find_audio(path, _AUDIO_SUFFIXES, problems.append)
            files = [f for f in audio if f.is_file() and out_dir not in f.resolve().parents]
            if not files:
                raise UserError("\n".join([f"{path}: no audio files in this folder", *problems]))
            for problem in problems:
                report(problem)
        elif not (problem := why_absent(path)):
            files = [path]
        elif problem == ABSENT:
            raise UserError(f"{path}: {problem}")
        else:
            report(f"{path}: {problem}")
            continue
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                found.append((file, file.relative_to(path) if path.is_dir() else Path(file.name)))
    return found


def plan(inputs: Sequence[str], out_dir: Path, report: Report = logger.warning) -> List[Job]:
    """Decide where every output goes; the arguments are those of :func:`find_inputs`.

    Raises:
        UserError: as :func:`find_inputs`; or an output would be one of the inputs.
    """
    found = find_inputs(inputs, out_dir, report)
    names = [name for _, name in found]
    # compared without case, because some file systems do
    if len({str(name).lower() for name in names}) < len(names):
        sources = [Path(os.path.abspath(source)) for source, _ in found]
        common = Path(os.path.commonpath([source.parent for source in sources]))
        names = [source.relative_to(common) for source in sources]
    jobs = [Job(source, out_dir / name) for (source, _), name in zip(found, names, strict=True)]
    inodes = {(source.stat().st_dev, source.stat().st_ino) for source, _ in found}
    for job in jobs:
        if job.target.exists() and (job.target.stat().st_dev, job.target.stat().st_ino) in inodes:
            raise UserError(f"{job.target} is itself an input and is not overwritten: choose another OUT_DIR")
    return jobs


class Windows:
    """Enhances files in windows that are cross-faded, whatever the model and the file's rate."""

    def __init__(self, enhancer: Union["Enhancer", "OnnxFileEnhancer"], window_seconds: float, overlap_seconds: float):
        self.num_mics = enhancer.num_mics
        self._enhancer = enhancer
        self._seconds = window_seconds, overlap_seconds

    def __call__(self, blocks: Iterator[np.ndarray], fs: int) -> Iterator[np.ndarray]:
        """Enhance blocks ``(samples, channels)`` of one recording."""
        return overlap_add_blocks(blocks, partial(self._process, fs), *window_in_samples(*self._seconds, fs))

    def _process(self, fs: int, piece: np.ndarray) -> np.ndarray:
        if self.num_mics > 1:
            return self._enhancer.enhance_array(piece, fs)[:, None]
        return np.stack([self._enhancer.enhance_array(channel, fs) for channel in piece.T], axis=1)


class Streams:
    """Enhances recordings in one go with a causal model.

    Args:
        open_stream: gives a stream for so many recordings side by side.
        kept: share of the mixture in the output.
    """

    def __init__(self, open_stream: Callable[[int], "SpectralStream"], kept: float = 0.0):
        self._open = lru_cache(maxsize=1)(open_stream)
        self._kept = kept
        self.num_mics = self._open(1).num_mics
        self.fs = self._open(1).fs

    def __call__(self, blocks: Iterator[np.ndarray], fs: int) -> Iterator[np.ndarray]:
        """Enhance blocks ``(samples, channels)`` of one recording; a piece comes out as soon as it is ready.

        Raises:
            UserError: it has another rate than the model.
        """
        if fs != self.fs:
            raise UserError(
                f"a stream runs at the model's {self.fs} Hz, not at {fs} Hz: resample first, or leave out --stream"
            )
        stream = None
        for block in blocks:
            if stream is None:
                stream = self._open(block.shape[1] if self.num_mics == 1 else 1)
                stream.kept = self._kept
                stream.reset()
            yield self._columns(stream(block[:, : stream.channels]))
        if stream is not None:
            yield self._columns(stream.flush())

    @staticmethod
    def _columns(samples: np.ndarray) -> np.ndarray:
        return samples if samples.ndim > 1 else samples[:, None]


Method = Union[Windows, Streams]


def load_windows(
    model: str,
    runtime: str,
    device: str,
    weights: Optional[str],
    num_threads: Optional[int],
    window_seconds: float,
    overlap_seconds: float,
    kept: float = 0.0,
) -> Windows:
    """A model that enhances in windows; its arguments are those of :func:`stream_opener`, times are in seconds.

    Raises:
        UserError: the model cannot be used, or the times do not fit.
    """
    window_in_samples(window_seconds, overlap_seconds, 16000)  # wrong times are reported before any work
    enhancer = _load_enhancer(model, runtime, device, weights, num_threads)
    enhancer.kept = kept
    return Windows(enhancer, window_seconds, overlap_seconds)


def _load_enhancer(
    model: str, runtime: str, device: str, weights: Optional[str], num_threads: Optional[int]
) -> Union["Enhancer", "OnnxFileEnhancer"]:
    """In onnxruntime alone where that is enough, which spares the import of torch, else by :func:`load_enhancer`."""
    folder = models.folder_of(model)
    # A causal model runs as a stream of its own, which is in PyTorch's hands.
    file = None if (folder / STREAM_ONNX).is_file() else onnx_file(folder, runtime, device, weights, WHOLE)
    if file is not None:
        from i2srf_kd.inference.without_torch import OnnxFileEnhancer

        return OnnxFileEnhancer(file, num_threads)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{model} needs PyTorch: pip install torch scipy. Exported models that are not causal run without, where "
            "onnxruntime is installed"
        ) from None
    from i2srf_kd.inference.loading import load_enhancer

    if num_threads:
        torch.set_num_threads(num_threads)
    return load_enhancer(folder, device, weights, runtime)


def enhance_file(method: Method, job: Job, options: Options) -> Iterator[float]:
    """Enhance one file in constant memory; the output appears under its name when it is complete.

    Yields:
        Seconds of audio done since the last time.

    Raises:
        UserError: the file is bad, has too few channels, or its output exists or cannot be written.
    """
    if job.target.exists() and not options.overwrite:
        raise UserError(f"{job.target} exists; give --overwrite true to replace it")
    info = probe(job.source)
    if info.channels < method.num_mics:
        raise UserError(f"{job.source} has {info.channels} channels, the model needs {method.num_mics} microphones")
    blocks = read_blocks(job.source)
    channels = info.channels if method.num_mics == 1 else 1
    if method.num_mics == 1 and not options.keep_channels:
        channels = 1
        blocks = (block.mean(axis=1, keepdims=True) for block in blocks)
    with BlockWriter(job.target, job.source, channels) as writer:
        for samples in method(blocks, info.fs):
            writer.write(samples)
            yield len(samples) / info.fs
    if writer.clipped:
        print(f"{job.target}: {writer.clipped} samples beyond full scale were clipped", file=sys.stderr)


def enhance_files(method: Method, jobs: Sequence[Job], options: Options) -> Dict[Path, str]:
    """Enhance all files with a bar of progress; what goes wrong with one does not keep the others from it.

    Returns:
        What went wrong, by file.
    """
    failures: Dict[Path, str] = {}
    seconds = _whole_seconds(_seconds_done(method, jobs, options, failures))
    for _ in progress(seconds, _total_seconds(jobs), desc="enhancing", unit="s"):
        pass
    return failures


def _seconds_done(method: Method, jobs: Sequence[Job], options: Options, failures: Dict[Path, str]) -> Iterator[float]:
    """Enhance all files, yield seconds of audio done since the last time, note what goes wrong."""
    for job in jobs:
        try:
            yield from enhance_file(method, job, options)
        except UserError as error:
            failures[job.source] = str(error)
        except (OSError, MemoryError, RuntimeError) as error:  # torch's and libsndfile's are RuntimeErrors
            failures[job.source] = f"{job.source}: {type(error).__name__}: {error}"


def enhance_pipe(
    method: Streams, pcm_format: str, channels: int, block_samples: int, source: int = 0, target: int = 1
) -> None:
    """Enhance raw PCM from one file descriptor to another until the end of the input.

    Raises:
        UserError: too few channels, or the input ends within a sample; all before it has been written.
        BrokenPipeError: nobody reads any more.
    """
    if channels < method.num_mics:
        raise UserError(f"--channels {channels}: the model needs {method.num_mics} microphones")
    broken: List[UserError] = []

    def blocks() -> Iterator[np.ndarray]:
        try:
            yield from read_pcm(source, pcm_format, channels, block_samples)
        except UserError as error:  # what the stream still holds is written first
            broken.append(error)

    for samples in method(blocks(), method.fs):
        write_pcm(target, samples, pcm_format)
    for error in broken:
        raise error


def stream_opener(
    model: str, runtime: str, device: str, weights: Optional[str], num_threads: Optional[int]
) -> Callable[[int], "SpectralStream"]:
    """How to open streams of a model.

    Args:
        model: as for :func:`i2srf_kd.inference.loading.load_enhancer`.
        runtime: see :func:`i2srf_kd.export.runtimes.onnx_file`.
        weights: name of a file of weights.
        num_threads: CPU threads.

    Raises:
        UserError: the model cannot run on a stream, or not with that runtime.
    """
    file = onnx_file(models.folder_of(model), runtime, device, weights, STREAM)
    if file is not None:
        from i2srf_kd.export.onnx_stream import OnnxStreamingEnhancer

        return lambda streams: OnnxStreamingEnhancer(file, streams, num_threads)
    import torch

    from i2srf_kd.inference.loading import load_enhancer

    if num_threads:
        torch.set_num_threads(num_threads)
    return load_enhancer(model, device, weights).stream


def _whole_seconds(parts: Iterator[float]) -> Iterator[None]:
    """One item per second of audio, for the progress bar."""
    done, shown = 0.0, 0
    for part in parts:
        done += part
        while shown + 1 <= done:
            shown += 1
            yield


def _total_seconds(jobs: Sequence[Job]) -> int:
    """Length of all readable files; bad ones are reported when it is their turn."""
    total = 0.0
    for job in jobs:
        try:
            info = probe(job.source)
            total += info.frames / info.fs
        except UserError:
            pass
    return int(total)
