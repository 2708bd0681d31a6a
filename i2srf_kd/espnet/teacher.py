"""The teacher: any ESPnet enhancement model, frozen and outside the student's module tree."""

from pathlib import Path
from typing import Any, Callable, Iterable, List, Mapping, Optional, Tuple

import torch
from espnet2.enh.encoder.abs_encoder import AbsEncoder
from espnet2.enh.encoder.stft_encoder import STFTEncoder
from espnet2.enh.espnet_model import ESPnetEnhancementModel
from torch import Tensor

from i2srf_kd.audio.normalize import mixture_level
from i2srf_kd.distill.method import Side
from i2srf_kd.distill.taps import FeatureTaps
from i2srf_kd.espnet.default_taps import default_taps
from i2srf_kd.espnet.loading import load_espnet_model
from i2srf_kd.system.errors import UserError
from i2srf_kd.training.speed import SpeedOptions, ordinary


def planes(spectrum: Any) -> Tensor:
    """Complex spectrum ``(B, T, F)`` to real and imaginary planes ``(B, 2, T, F)``."""
    return torch.stack([spectrum.real, spectrum.imag], dim=1)


_TRANSFORM = (
    "n_fft", "win_length", "hop_length", "window", "center", "spec_transform_type", "spec_factor", "spec_abs_exponent"
)  # fmt: skip


def same_transform(ours: AbsEncoder, theirs: AbsEncoder) -> bool:
    """Whether two encoders give comparable spectra."""
    if not isinstance(ours, STFTEncoder) or not isinstance(theirs, STFTEncoder):
        return False
    return all(getattr(ours, name) == getattr(theirs, name) for name in _TRANSFORM)


def restore_level(side: Side, level: Tensor) -> None:
    """Undo, in place, that the mixture was divided by ``level``: features stay as the network made them."""
    level = level.flatten(1)[:, :1]
    if side.spectrum is not None:
        side.spectrum = side.spectrum * level[:, :, None, None]
    if side.waveform is not None:
        side.waveform = side.waveform * level


class FrozenTeacher:
    """Runs a teacher without gradient.

    It is no module on purpose: the student's state dict, optimiser, ``.train()`` and DDP must not see it. The model
    that owns it moves it along through :meth:`apply`.

    Args:
        model: the trained teacher.
        taps: tap points of its feature sets; None: :func:`default_taps`, or what the network announces.
        needs: what beyond features the methods read (``spectrum``, ``waveform``).

    Attributes:
        analysis: encoder that a teacher of another transform shows its spectrum through; None: its own.
        speed: precision and gradient mode it runs in.

    Raises:
        UserError: when the taps name no module of the teacher, or it does not enhance exactly one speaker.
    """

    def __init__(
        self,
        model: ESPnetEnhancementModel,
        taps: Optional[Mapping[str, List[Any]]] = None,
        needs: Iterable[str] = (),
    ):
        if model.num_spk != 1:
            raise UserError(f"the teacher separates {model.num_spk} speakers: distillation needs one that enhances one")
        self.model = model.eval().requires_grad_(False)
        self.model.loss_wrappers = []
        self.needs = frozenset(needs)
        self.analysis: Optional[AbsEncoder] = None
        self.speed = SpeedOptions()
        try:
            self.taps = FeatureTaps(model, default_taps(model) if taps is None else taps)
        except ValueError as error:
            raise UserError(f"teacher: {error}") from None

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply a device or dtype change to every parameter and buffer."""
        self.model._apply(fn)

    def __call__(self, speech_mix: Tensor, speech_lengths: Tensor) -> Side:
        """Enhance ``(B, samples)`` or ``(B, samples, channels)`` and return what the methods need."""
        with self.speed.teacher_context(speech_mix.device.type):
            side = self._enhance(speech_mix, speech_lengths)
        side.features = {name: ordinary(layers) for name, layers in side.features.items()}
        for name in ("spectrum", "waveform"):
            value = getattr(side, name)
            if value is not None:
                setattr(side, name, ordinary([value])[0])
        return side

    def _enhance(self, speech_mix: Tensor, speech_lengths: Tensor) -> Side:
        scale = None
        if self.model.normalize_variance:
            scale = mixture_level(speech_mix)
            speech_mix = speech_mix / scale
        with self.taps.record() as features:
            mixture, lengths = self.model.encoder(speech_mix, speech_lengths)
            estimates, _, _ = self.model.separator(mixture, lengths)
        side = Side(features)
        reanalysed = self.analysis is not None and "spectrum" in self.needs
        if "spectrum" in self.needs and not reanalysed:
            side.spectrum = planes(estimates[0])
        if "waveform" in self.needs or reanalysed:
            side.waveform = self.model.decoder(estimates[0], speech_lengths)[0]
        if scale is not None:
            restore_level(side, scale)  # a spectrum or waveform is compared at the student's level
        if self.analysis is not None and reanalysed:
            side.spectrum = planes(self.analysis(side.waveform, speech_lengths)[0])
        return side


def load_teacher(
    config: Path,
    checkpoint: Path,
    taps: Optional[Mapping[str, List[Any]]] = None,
    needs: Iterable[str] = (),
) -> Tuple[FrozenTeacher, Any]:
    """Load a teacher from an ESPnet configuration and checkpoint; returns it with the options it was trained with.

    Raises:
        UserError: when a file is absent or the checkpoint does not cover the configured network.
    """
    model, args = load_espnet_model(config, checkpoint)
    return FrozenTeacher(model, taps, needs), args
