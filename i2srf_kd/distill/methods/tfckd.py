"""I2RF-TFCKD and I2SRF-TFCKD: intra-set and inter-set calibrated distillation (arXiv 2506.13127).

Within each layer set (encoder, dual-path blocks, decoder) every student layer is calibrated against every teacher
layer: the intra terms. Each set is also fused into one representative feature, and the representatives of the sets
are calibrated against each other: the inter term. The loss is the sum of all terms.

    method: i2srf_tfckd
    method_conf:
      sets: [encoder, dual_path, decoder]
      intra: true
      inter: true
      calibration: {streams: [time, frequency, clips], weights: learned}
"""

from typing import Any, Dict, List, Mapping, Optional, Sequence

from torch import Tensor, nn

from i2srf_kd.distill.benefit import Benefit
from i2srf_kd.distill.calibration import CalibratedSetLoss, CalibrationOptions, SetLoss, relative_entropy
from i2srf_kd.distill.fusion import RecursiveFusion
from i2srf_kd.distill.matching import check_count, check_sets
from i2srf_kd.distill.method import DistillMethod, Layout, Side, register_method

# The decoder enters the recursion from its output layer inwards, the other sets in network order.
REVERSED_SETS = ("decoder",)


def _entry_order(name: str, layers: Sequence[Any]) -> List[Any]:
    return list(reversed(layers)) if name in REVERSED_SETS else list(layers)


class SetFusion(nn.Module):
    """One network's fusion of each of its layer sets.

    Args:
        layout: layers of each set.
        sets: names of the sets, in the order in which the representatives are compared.
        middle_channels: width of the recursion.
        carry_state: hand the state of a set on to the next one, so that the recursion runs through the whole
            network; otherwise each set starts anew.
    """

    def __init__(self, layout: Layout, sets: Sequence[str], middle_channels: int, carry_state: bool):
        super().__init__()
        self.carry_state = carry_state
        out_channels = max(layer.channels for name in sets for layer in layout[name])
        self.chains = nn.ModuleDict(
            {
                name: RecursiveFusion(
                    [layer.channels for layer in _entry_order(name, layout[name])],
                    middle_channels,
                    out_channels,
                    accept_state=carry_state and i > 0,
                )
                for i, name in enumerate(sets)
            }
        )

    def forward(self, features: Mapping[str, List[Tensor]]) -> List[Tensor]:
        """Representative features ``(B, C, T, F)``, one per set."""
        outputs, state = [], None
        for name, chain in self.chains.items():
            output, new_state = chain(_entry_order(name, features[name]), state)
            state = new_state if self.carry_state else None
            outputs.append(output)
        return outputs


@register_method("i2rf_tfckd")
class I2RFTFCKD(DistillMethod):
    """Intra-set and inter-set residual-fusion distillation.

    The arithmetic is the published one but for the embeddings of the calibration, which take any size of batch
    (``embedding: pooled``). ``calibration: {embedding: fixed, frames: T, batch_size: B}`` is the published form to the
    digit, for batches of that size alone.

    Args:
        student, teacher: layouts of the two networks.
        sets: layer sets to distil.
        intra: use the intra-set terms: true, false, or a list of sets.
        inter: use the inter-set term.
        middle_channels: width M of the fusion's recursion.
        calibration: options of :class:`~i2srf_kd.distill.calibration.CalibrationOptions`.
        carry_state: run the fusion's recursion through the sets as well (see :class:`SetFusion`). Ours; nothing public
            shows it.

    Raises:
        ValueError: for sets that a network does not have, or when nothing is left to distil.
    """

    source = "arXiv 2506.13127"
    # What tells the forms apart.
    calibration_defaults: Mapping[str, Any] = {}

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        sets: Sequence[str] = ("encoder", "dual_path", "decoder"),
        intra: Any = True,
        inter: bool = True,
        middle_channels: int = 128,
        calibration: Optional[Mapping[str, Any]] = None,
        carry_state: bool = False,
    ):
        super().__init__(student, teacher)
        check_count("middle_channels", middle_channels)
        check_sets(sets, student, teacher)
        self.sets = list(sets)
        self.intra_sets = self._intra_sets(intra)
        self.inter = inter
        if not self.intra_sets and not inter:
            raise ValueError("neither intra nor inter is on: nothing to distil")
        options = CalibrationOptions.parse({**self.calibration_defaults, **(calibration or {})})
        self.intra = nn.ModuleDict(
            {name: CalibratedSetLoss(len(student[name]), len(teacher[name]), options) for name in self.intra_sets}
        )
        if inter:
            self.student_fusion = SetFusion(student, self.sets, middle_channels, carry_state)
            self.teacher_fusion = SetFusion(teacher, self.sets, middle_channels, carry_state)
            self.inter_set = CalibratedSetLoss(len(self.sets), len(self.sets), options, attach_keys=True)
            if not (self.inter_set.attach_keys and list(self.inter_set.parameters())):
                # Where no weights pass the loss on, nothing reaches the teacher's fusion: it stays a random projection.
                self.teacher_fusion.requires_grad_(False)
        self.benefit = Benefit() if options.benefit else None
        if options.benefit:
            self.needs = ("waveform", "reference")
        self.options = options
        self.last: Dict[str, SetLoss] = {}

    def _intra_sets(self, intra: Any) -> List[str]:
        if isinstance(intra, bool):
            return list(self.sets) if intra else []
        unknown = sorted(set(intra) - set(self.sets))
        if unknown:
            raise ValueError(f"intra names sets that are not distilled: {', '.join(unknown)}")
        return [name for name in self.sets if name in set(intra)]

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        teacher_features = {name: [f.detach() for f in teacher.features[name]] for name in self.sets}
        benefit = None
        if self.benefit is not None:
            frames = teacher_features[self.sets[0]][0].shape[2]
            benefit = self.benefit(student, teacher, reference, frames, self.options.frequency_bins)
        results: Dict[str, SetLoss] = {}
        for name, loss in self.intra.items():
            results[f"intra_{name}"] = loss(student.features[name], teacher_features[name], benefit)
        if self.inter:
            representatives = self.student_fusion(student.features), self.teacher_fusion(teacher_features)
            results["inter"] = self.inter_set(*representatives, benefit)
        self.last = {name: result.detach() for name, result in results.items()}
        return {name: result.loss for name, result in results.items()}

    def check_batch(self, clips: int, frames: int) -> None:
        options = self.options
        if options.embedding == "fixed" and (clips, frames) != (options.batch_size, options.frames):
            raise ValueError(
                f"calibration embedding='fixed' takes batches of {options.batch_size} clips of {options.frames} "
                f"frames, the training has {clips} of {frames}: give these as batch_size and frames, or another "
                "batch_size and chunk_length to the training, or take embedding='pooled'"
            )

    def diagnostics(self) -> Dict[str, Tensor]:
        """Of the last forward pass, for each set and stream, such as ``intra_encoder_time``.

        ``<set>_<stream>`` is the loss and ``..._uniform`` what it would be under uniform weights, which alone compares
        between trainings. ``..._weights`` are the calibration weights ``(Ns, Nt)``, means over clips and frames,
        ``..._entropy`` their :func:`~i2srf_kd.distill.calibration.relative_entropy`, and ``..._spread`` their standard
        deviation over clips and frames, mean over the pairs of layers. ``<set>_calibration`` is the loss that trains
        the weights, where they have one of their own.
        """
        values: Dict[str, Tensor] = {}
        for name, result in self.last.items():
            if result.calibration_loss is not None:
                values[f"{name}_calibration"] = result.calibration_loss
            for stream, found in result.streams.items():
                key = f"{name}_{stream}"
                values[key] = found.loss
                values[f"{key}_uniform"] = found.uniform_loss
                if found.weights is not None:
                    values[f"{key}_weights"] = found.weights.mean((0, 1))
                    values[f"{key}_spread"] = found.weights.flatten(0, 1).std(0, correction=0).mean()
                    if found.weights.shape[-1] > 1:
                        values[f"{key}_entropy"] = relative_entropy(found.weights).mean()
        return values

    def place_weights(self) -> Dict[str, Tensor]:
        """By set and stream; the frequency stream, whose places are bins, has none."""
        return {
            f"{name}_{stream}": found.weights
            for name, result in self.last.items()
            for stream, found in result.streams.items()
            if found.weights is not None and stream != "frequency"
        }


@register_method("i2srf_tfckd")
class I2SRFTFCKD(I2RFTFCKD):
    """Intra-set and inter-set recursive-fusion distillation: the present form, in our reading.

    What the newest version of the paper changes beyond I2RF is not known to us; its recursion is most likely the
    residual one of I2RF under a new name. Here the calibration is what the abstract says: see the table of claims in
    docs/distillation.md. Every default is an option of :class:`~i2srf_kd.distill.calibration.CalibrationOptions`.
    """

    source = "arXiv 2506.13127, our reading of its newest version"
    calibration_defaults = {
        "normalize_over": "embedding",
        "batch_reduction": "frames",
        "temperature": 0.5,
        "learn_from": "agreement",
    }
