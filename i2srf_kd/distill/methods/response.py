"""Response (output) distillation: the teacher's estimate as a second target."""

from typing import Dict, Optional

import torch
from torch import Tensor

from i2srf_kd.distill.matching import check_choice, check_number, full_precision
from i2srf_kd.distill.method import DistillMethod, Layout, Side, register_method
from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.losses.waveform import negative_si_sdr


def require_same_shape(what: str, ours: Optional[Tensor], theirs: Optional[Tensor]) -> None:
    """ValueError unless both networks' outputs are there and of one shape."""
    if ours is None or theirs is None:
        raise ValueError(f"the method compares the networks' {what}, which was not handed over")
    if ours.shape != theirs.shape:
        raise ValueError(
            f"the student's {what} has shape {tuple(ours.shape)}, the teacher's {tuple(theirs.shape)}: "
            f"networks with different transforms can only be compared by a method on features or waveforms"
        )


@register_method("response_waveform")
class ResponseWaveform(DistillMethod):
    """Response distillation on the waveform: L1 distance or negative SI-SDR to the teacher's output.

    Definition, for waveforms s (student) and t (teacher) ``(B, samples)``:

    - ``l1``: mean of ``|s - t|``;
    - ``si_sdr``: mean over clips of ``10 log10((|s - a t|^2 + tau |a t|^2) / |a t|^2)`` with
      ``a = <s, t> / <t, t>`` and ``tau = 10^(-max_db / 10)``.

    Source: response distillation of Hinton et al., arXiv 1503.02531; SI-SDR of Le Roux et al., arXiv 1811.02508. Our
    reading: the soft upper limit ``max_db``, and 1e-8 added to energies so that silence gives 0.

        method: response_waveform
        method_conf: {loss: l1}        # or si_sdr
        weight: 1.0

    Args:
        loss: ``l1`` or ``si_sdr``.
        max_db: SI-SDR to the teacher in dB above which the student gains nothing.

    Raises:
        ValueError: for another loss, a limit that is not positive, or outputs of different length.
    """

    needs = ("waveform",)
    source = "arXiv 1503.02531"

    def __init__(self, student: Layout, teacher: Layout, loss: str = "l1", max_db: float = 30.0):
        super().__init__(student, teacher)
        check_choice("loss", loss, ("l1", "si_sdr"))
        check_number("max_db", max_db, 0, above=True)
        self.loss = loss
        self.max_db = float(max_db)

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        require_same_shape("waveform", student.waveform, teacher.waveform)
        assert student.waveform is not None and teacher.waveform is not None
        with torch.autocast(student.waveform.device.type, enabled=False):
            ours, theirs = full_precision(student.waveform), full_precision(teacher.waveform.detach())
            if self.loss == "l1":
                return {"l1": (ours - theirs).abs().mean()}
            return {"si_sdr": negative_si_sdr(ours, theirs, self.max_db).mean()}


@register_method("response_spectrum")
class ResponseSpectrum(DistillMethod):
    """Response distillation on the spectrum: squared error of compressed magnitudes and complex spectra.

    Definition, for spectra S and T ``(B, 2, T, F)``, compressed to ``|S|^c`` (magnitude) and ``S |S|^(c - 1)``
    (complex): ``(1 - a) mean (|S|^c - |T|^c)^2 + a mean |S |S|^(c-1) - T |T|^(c-1)|^2`` over clips, frames and bins.

    Source: response distillation of Hinton et al., arXiv 1503.02531, with the compressed loss of Braun and Tashev
    (TSP 2021). Our reading: that loss, which is also this project's task loss, in place of plain squared error.

        method: response_spectrum
        method_conf: {power: 0.3, complex_share: 0.3}
        weight: 1.0

    Args:
        power: exponent c of the magnitude; 1 is no compression.
        complex_share: weight a of the complex term: 0 compares magnitudes alone, 1 complex spectra alone.
        floor: added to the power spectrum.

    Raises:
        ValueError: for options out of range, or networks whose spectra have different shapes.
    """

    needs = ("spectrum",)
    source = "arXiv 1503.02531"

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        power: float = 0.3,
        complex_share: float = 0.3,
        floor: float = 1e-10,
    ):
        super().__init__(student, teacher)
        check_number("power", power, 0, 1, above=True)
        check_number("complex_share", complex_share, 0, 1)
        check_number("floor", floor, 0, above=True)
        self.options = {"power": float(power), "complex_share": float(complex_share), "floor": float(floor)}

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        require_same_shape("spectrum", student.spectrum, teacher.spectrum)
        assert student.spectrum is not None and teacher.spectrum is not None
        with torch.autocast(student.spectrum.device.type, enabled=False):
            ours, theirs = (
                torch.complex(planes[:, 0], planes[:, 1])
                for planes in (full_precision(student.spectrum), full_precision(teacher.spectrum.detach()))
            )
            return {"compressed": compressed_spectrum_loss(ours, theirs, **self.options).mean()}
