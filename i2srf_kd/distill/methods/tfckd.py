"""I2RF-TFCKD and I2SRF-TFCKD: intra-set and inter-set calibrated distillation (arXiv 2506.13127).

Within each layer set (encoder, dual-path blocks, decoder) every student layer is calibrated against every teacher
layer: the intra terms. Each set is also fused into one representative feature, and the representatives of the sets
are calibrated against each other: the inter term. The loss is the sum of all terms.

    method: i2srf_tfckd
    method_conf:
      sets: [encoder, dual_path, decoder]
      intra: true
      inter: true
      calibration: {time_stream: true, frequency_stream: true}
"""

from typing import Any, Dict, List, Mapping, Optional, Sequence

from torch import Tensor, nn

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
    """Intra-set and inter-set residual-fusion distillation, with the published arithmetic as default.

    Args:
        student, teacher: layouts of the two networks.
        sets: layer sets to distil.
        intra: use the intra-set terms: true, false, or a list of sets.
        inter: use the inter-set term.
        middle_channels: width M of the fusion's recursion.
        calibration: options of :class:`~i2srf_kd.distill.calibration.CalibrationOptions`.
        carry_state: run the fusion's recursion through the sets (see :class:`SetFusion`); None: as the form has it.

    Raises:
        ValueError: for sets that a network does not have, or when nothing is left to distil.
    """

    source = "arXiv 2506.13127"
    # What tells the forms apart.
    carries_state = False
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
        carry_state: Optional[bool] = None,
    ):
        super().__init__(student, teacher)
        carry_state = self.carries_state if carry_state is None else carry_state
        check_count("middle_channels", middle_channels)
        check_sets(sets, student, teacher)
        self.sets = list(sets)
        self.intra_sets = self._intra_sets(intra)
        self.inter = inter
        if not self.intra_sets and not inter:
            raise ValueError("neither intra nor inter is on: nothing to distil")
        options = _options({**self.calibration_defaults, **(calibration or {})})
        self.intra = nn.ModuleDict(
            {name: CalibratedSetLoss(len(student[name]), len(teacher[name]), options) for name in self.intra_sets}
        )
        if inter:
            self.student_fusion = SetFusion(student, self.sets, middle_channels, carry_state)
            self.teacher_fusion = SetFusion(teacher, self.sets, middle_channels, carry_state)
            self.inter_set = CalibratedSetLoss(len(self.sets), len(self.sets), options, attach_keys=True)
            if not list(self.inter_set.parameters()):
                # Without calibration weights nothing reaches the teacher's fusion: it stays a random projection.
                self.teacher_fusion.requires_grad_(False)
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
        results: Dict[str, SetLoss] = {}
        for name, loss in self.intra.items():
            results[f"intra_{name}"] = loss(student.features[name], teacher_features[name])
        if self.inter:
            results["inter"] = self.inter_set(
                self.student_fusion(student.features), self.teacher_fusion(teacher_features)
            )
        self.last = {name: result.detach() for name, result in results.items()}
        return {name: result.loss for name, result in results.items()}

    def diagnostics(self) -> Dict[str, Tensor]:
        """Of the last forward pass, for each set and stream: loss, calibration weights and their entropy.

        ``<set>_<stream>`` is the loss, ``<set>_<stream>_weights`` the weights ``(Ns, Nt)``, means over clips and
        frames, and ``<set>_<stream>_entropy`` the :func:`~i2srf_kd.distill.calibration.relative_entropy`.
        """
        values: Dict[str, Tensor] = {}
        for name, result in self.last.items():
            streams = (
                ("time", result.time_loss, result.time_pair_loss, result.time_weights),
                ("frequency", result.batch_loss, result.batch_pair_loss, result.batch_weights),
            )
            for stream, loss, pairs, weights in streams:
                if pairs is not None:
                    values[f"{name}_{stream}"] = loss
                if weights is not None:
                    values[f"{name}_{stream}_weights"] = weights.mean((0, 1))
                    if weights.shape[-1] > 1:
                        values[f"{name}_{stream}_entropy"] = relative_entropy(weights).mean()
        return values


@register_method("i2srf_tfckd")
class I2SRFTFCKD(I2RFTFCKD):
    """Intra-set and inter-set recursive-fusion distillation: the present form, in our reading.

    What the newest version of the paper changes beyond I2RF is not public. Here the recursion runs through the sets as
    well as through their layers (``carry_state``), and the calibration is made fit for real clip lengths: embeddings
    have unit length over their own axis, so that the weights do not flatten as the clip grows, and both streams are
    means over clips and frames, so that neither drowns the other. Every one of these is an option.
    """

    source = "arXiv 2506.13127, our reading of its newest version"
    carries_state = True
    calibration_defaults = {"normalize_over": "embedding", "batch_reduction": "frames", "temperature": 0.1}


def _options(given: Dict[str, Any]) -> CalibrationOptions:
    known = CalibrationOptions.__dataclass_fields__
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"calibration has no option {', '.join(unknown)}: it has {', '.join(known)}")
    return CalibrationOptions(**given)
