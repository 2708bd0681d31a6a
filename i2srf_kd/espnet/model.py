"""An ESPnet enhancement model that learns from a teacher."""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from espnet2.enh.encoder.stft_encoder import STFTEncoder
from espnet2.enh.espnet_model import ESPnetEnhancementModel
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor, nn

from i2srf_kd.audio.normalize import mixture_level
from i2srf_kd.distill.method import Layout, Side, layout_of
from i2srf_kd.distill.taps import FeatureTaps
from i2srf_kd.espnet.default_taps import default_taps, microphones
from i2srf_kd.espnet.distill_criterion import STUDENT_KEY, TEACHER_KEY, DistillCriterion, DistillWrapper
from i2srf_kd.espnet.teacher import FrozenTeacher, planes, restore_level, same_transform
from i2srf_kd.inference.experiment import TRAINING_ONLY_PREFIX
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

    Raises:
        UserError: the distillation cannot be built, or does not fit the two networks.
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
            taps = distill.get("student_taps")
            self.student_taps = FeatureTaps(self, default_taps(self) if taps is None else taps)
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
        trained = [w for w in self.loss_wrappers or [] if not getattr(w.criterion, "only_for_test", False)]
        if not any(wrapper.weight for wrapper in trained):
            raise UserError(
                "criterions: at least one must have a weight above 0; to train on the distillation alone, set "
                "kd_only_steps to the number of steps"
            )
        teacher.needs = self.needs
        teacher.analysis = None if same_transform(self.encoder, teacher.model.encoder) else self.encoder

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
        mics = max(microphones(m.separator) for m in (self, teacher.model))
        shape = (1, _PROBE_SAMPLES, mics) if mics > 1 else (1, _PROBE_SAMPLES)
        probe = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        lengths = torch.tensor([_PROBE_SAMPLES])
        was_training = self.training
        self.eval()
        with self.student_taps.record() as features:
            self.forward_enhance(probe, lengths)
        self.train(was_training)
        return layout_of(features), layout_of(teacher(probe, lengths).features)

    def forward(
        self, speech_mix: Tensor, speech_mix_lengths: Optional[Tensor] = None, **kwargs: Any
    ) -> Tuple[Tensor, Dict[str, Tensor], Tensor]:
        """Loss, values to report, and weight of a batch; see ESPnet's model.

        Task and distillation are weighted as the schedule says; validation uses the final weights. The teacher does
        not run where the distillation has no weight.
        """
        if self.distiller.is_idle():
            loss, stats, weight = super().forward(speech_mix, speech_mix_lengths, **kwargs)
        else:
            task, kd, stats, weight = self.losses(speech_mix, speech_mix_lengths, **kwargs)
            loss = self.distiller.combine(task, kd, self._own_parameters())
        if self.training:
            self.distiller.steps += 1
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, weight), loss.device)

    def losses(
        self, speech_mix: Tensor, speech_mix_lengths: Optional[Tensor] = None, **kwargs: Any
    ) -> Tuple[Tensor, Tensor, Dict[str, Tensor], Tensor]:
        """Task loss and distillation loss without the weights of the schedule, values to report, weight of the batch.

        Args:
            speech_mix: ``(B, samples)`` or ``(B, samples, channels)``.
            speech_mix_lengths: samples of each item ``(B,)``.
            **kwargs: ``speech_ref1``, and what else ESPnet's model takes.

        Raises:
            UserError: a method does not take the sizes of the features.
        """
        with self.student_taps.record() as features, _first_outputs(self.separator, self.decoder) as outputs:
            task, stats, weight = super().forward(speech_mix, speech_mix_lengths, **kwargs)
        whole = torch.full((len(speech_mix),), speech_mix.shape[1])
        lengths = whole if speech_mix_lengths is None else speech_mix_lengths
        mixture, reference = (signal[:, : int(lengths.max())] for signal in (speech_mix, kwargs["speech_ref1"]))
        student = Side(features)
        if "spectrum" in self.needs:
            student.spectrum = planes(outputs[self.separator][0][0])
        if "waveform" in self.needs:
            student.waveform = outputs[self.decoder][0]
        if self.normalize_variance:  # the reference is at the level of the recording
            restore_level(student, mixture_level(mixture))
        both = {STUDENT_KEY: student, TEACHER_KEY: self.teacher(mixture, lengths)}
        try:
            kd, terms, _ = self.distillation([self._reference_channel(reference)], [], both)
        except ValueError as error:
            raise UserError(f"distill: {error}") from error
        return task, kd, {**stats, **terms}, weight

    def _own_parameters(self) -> List[Tensor]:
        named = self.named_parameters()
        return [p for name, p in named if p.requires_grad and not name.startswith(TRAINING_ONLY_PREFIX)]

    def _reference_channel(self, signal: Tensor) -> Tensor:
        return signal[..., self.ref_channel] if signal.dim() == 3 else signal


@contextmanager
def _first_outputs(*modules: nn.Module) -> Iterator[Dict[nn.Module, Any]]:
    """What modules return the first time that they run inside of the context."""
    outputs: Dict[nn.Module, Any] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        outputs.setdefault(module, output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
