"""An ESPnet enhancement model that learns from a teacher."""

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from espnet2.enh.encoder.stft_encoder import STFTEncoder
from espnet2.enh.espnet_model import ESPnetEnhancementModel
from torch import Tensor

from i2srf_kd.distill.method import Layout, Side, layout_of
from i2srf_kd.distill.taps import FeatureTaps
from i2srf_kd.espnet.criterion import STUDENT_KEY, TEACHER_KEY, DistillCriterion, DistillWrapper
from i2srf_kd.espnet.teacher import FrozenTeacher, mixture_level, planes, restore_level, same_transform
from i2srf_kd.system.errors import UserError

_PROBE_SAMPLES = 16000


class DistillEnhancementModel(ESPnetEnhancementModel):
    """A student with the distillation's parameters and, outside its state dict, the teacher.

    ESPnet keeps loss wrappers in a plain list, so their parameters would reach neither optimiser nor state dict; here
    the distillation is a submodule as well. Its keys start with ``distillation.`` and are ignored at inference.

    Args:
        teacher: the frozen teacher.
        distill: the ``distill`` section of the configuration.
        **kwargs: as for :class:`ESPnetEnhancementModel`; ``loss_wrappers`` are those of the task loss.
    """

    loss_wrappers: List[Any]  # a plain list, which ESPnet does not annotate

    def __init__(self, teacher: FrozenTeacher, distill: Mapping[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        if self.normalize_variance_per_ch or teacher.model.normalize_variance_per_ch:
            raise UserError("normalize_variance_per_ch cannot be combined with distillation: use normalize_variance")
        if self.normalize_variance and not teacher.model.normalize_variance:
            raise UserError("the student normalises the mixture's variance and the teacher was trained without it")
        self._teacher = (teacher,)  # a tuple hides it from torch's module tree
        try:
            self.student_taps = FeatureTaps(self, distill.get("student_taps"))
            student_layout, teacher_layout = self._layouts(teacher)
            criterion = DistillCriterion(distill, student_layout, teacher_layout)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"distill: {error}") from None
        self.distillation = DistillWrapper(criterion)
        self.needs = criterion.distiller.needs
        if "spectrum" in self.needs and not isinstance(self.encoder, STFTEncoder):
            raise UserError(
                "distill: the method compares spectra and the student's encoder is no STFT: "
                "use one on features or waveforms, such as response_waveform"
            )
        teacher.needs = self.needs
        teacher.analysis = None if same_transform(self.encoder, teacher.model.encoder) else self.encoder
        self._learning = False
        self._level: Optional[Tensor] = None  # of the mixture, where ESPnet divides by it
        task_wrappers: List[Any] = list(self.loss_wrappers or [])
        self.task_weights = [wrapper.weight for wrapper in task_wrappers]
        self.loss_wrappers = [*task_wrappers, self.distillation]

    @property
    def teacher(self) -> FrozenTeacher:
        """The frozen teacher."""
        return self._teacher[0]

    @property
    def distiller(self) -> Any:
        """The distillation's methods, weights and schedule."""
        return self.distillation.criterion.distiller

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DistillEnhancementModel":
        self.teacher.apply(fn)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def _layouts(self, teacher: FrozenTeacher) -> Tuple[Layout, Layout]:
        """Layouts of both networks' feature sets, read off one second of noise."""
        mics = max(getattr(m.separator, "num_mics", 1) for m in (self, teacher.model))
        shape = (1, _PROBE_SAMPLES, mics) if mics > 1 else (1, _PROBE_SAMPLES)
        probe = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        lengths = torch.tensor([_PROBE_SAMPLES])
        was_training = self.training
        self.eval()
        with self.student_taps.record() as features:
            super().forward_enhance(probe, lengths)
        self.train(was_training)
        return layout_of(features), layout_of(teacher(probe, lengths).features)

    def forward(
        self, speech_mix: Tensor, speech_mix_lengths: Optional[Tensor] = None, **kwargs: Any
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """Loss, values to report, and weight of a batch; see ESPnet's model."""
        samples = speech_mix.shape[1] if speech_mix_lengths is None else int(speech_mix_lengths.max())
        self._level = mixture_level(speech_mix[:, :samples]) if self.normalize_variance else None
        self._learning = True
        try:
            return super().forward(speech_mix, speech_mix_lengths, **kwargs)
        finally:
            self._learning = False

    def forward_enhance(
        self,
        speech_mix: Tensor,
        speech_lengths: Tensor,
        additional: Optional[Dict] = None,
        fs: Optional[int] = None,
    ) -> Tuple[Any, Any, Any, Dict]:
        """Enhance with the student; for a loss, also leave both networks' sides in ``others``."""
        if not self._learning:
            return super().forward_enhance(speech_mix, speech_lengths, additional, fs)
        with self.student_taps.record() as features:
            speech_pre, feature_mix, feature_pre, others = super().forward_enhance(
                speech_mix, speech_lengths, additional, fs
            )
        student = Side(features)
        if "spectrum" in self.needs:
            student.spectrum = planes(feature_pre[0])
        if "waveform" in self.needs:
            student.waveform = speech_pre[0]
        teacher = self.teacher(speech_mix, speech_lengths)
        if self._level is not None:
            # The reference is at the level of the recording.
            restore_level(student, self._level)
            restore_level(teacher, self._level)
        others = {**others, STUDENT_KEY: student, TEACHER_KEY: teacher}
        return speech_pre, feature_mix, feature_pre, others

    def forward_loss(self, *args: Any, **kwargs: Any) -> Tuple[Tensor, Dict, Tensor, Any]:
        """The task loss and the distillation, weighted as the schedule says; validation uses the final weights."""
        task, distill = self.distiller.phase() if self.training else (1.0, self.distiller.weight)
        task_wrappers: List[Any] = self.loss_wrappers[:-1]
        for wrapper, weight in zip(task_wrappers, self.task_weights, strict=True):
            wrapper.weight = task * weight
        self.distillation.weight = distill
        try:
            result = super().forward_loss(*args, **kwargs)
        except ValueError as error:  # sizes that a method does not take
            raise UserError(f"distill: {error}") from error
        if self.training:
            self.distiller.steps += 1
        return result
