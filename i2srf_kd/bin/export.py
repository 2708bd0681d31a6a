"""Export a trained DPDCRN as a folder that works without ESPnet, teacher and distillation.

    python -m i2srf_kd.bin.export exp/student -o exp/student/export --training_data "VoiceBank-DEMAND, CC BY 4.0"

The folder holds the weights, their configuration, a model card and, where onnx and onnxruntime are installed,
model.onnx. --int8 adds model_int8.onnx, which is faster and less exact (python tools/bench quality says by
how much). An older export in the same folder is replaced. Also writes complexity.json into the experiment,
where that may be written to.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("experiment", metavar="EXP", help="experiment folder, or a file of weights in one")
    parser.add_argument("-o", "--out_dir", metavar="DIR", required=True, help="folder to be written")
    parser.add_argument("--model_file", help="weights in EXP (default: average by the first best_model_criterion)")
    parser.add_argument(
        "--onnx",
        choices=("true", "false", "auto"),
        default="auto",
        help="write model.onnx (default: auto, when onnx and onnxruntime are installed)",
    )
    parser.add_argument(
        "--int8", metavar="DATA_DIR", help="also write model_int8.onnx, calibrated on mixtures of this data folder"
    )
    parser.add_argument("--training_data", default="not stated", help="line for the model card")
    parser.add_argument("--scored", type=Path, metavar="DIR", help="its scores, scored_SET of stage 6, for the card")
    parser.add_argument("--licence", default="not stated", help="licence of the weights, for the model card")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    from i2srf_kd.export.bundle import export_bundle, is_bundle, read_calibration
    from i2srf_kd.export.model_card import scores_section
    from i2srf_kd.export.onnx import missing_packages
    from i2srf_kd.inference.experiment import Experiment, split_model_path
    from i2srf_kd.results.files import read_json
    from i2srf_kd.system.files import write_text

    folder, name = split_model_path(args.experiment)
    if is_bundle(folder):
        raise UserError(f"{folder} is an exported model already: give the experiment it came from")
    weights = args.model_file or name
    missing = missing_packages()
    onnx = args.onnx == "true" or (args.onnx == "auto" and not missing)
    calibration = read_calibration(args.int8, Experiment(folder).fs) if args.int8 else []
    scores = ""
    if args.scored is not None:
        summary = read_json(args.scored / "summary.json", "give a folder that bin.score wrote")
        scores = scores_section(args.scored.name.removeprefix("scored_"), summary)
    report = export_bundle(folder, args.out_dir, weights, onnx, args.training_data, args.licence, calibration, scores)
    try:
        write_text(folder / "complexity.json", (report.path / "complexity.json").read_text(encoding="utf-8"))
    except UserError:  # an experiment of somebody else may be exported as well
        print(f"only in {report.path}: complexity.json ({folder} cannot be written to)")
    cost = report.complexity
    print(f"{report.weights} -> {report.path}")
    print(
        f"{cost.parameters:,} parameters, {cost.gmacs_per_second:.2f} GMAC/s without the GRUs, "
        f"{cost.gmacs_per_second_with_recurrent:.2f} GMAC/s with them"
    )
    if report.onnx_error is not None:
        print(f"model.onnx differs from PyTorch by at most {report.onnx_error:.1e} of the peak")
    else:
        print("no model.onnx" + (f": {' and '.join(missing)} not installed" if args.onnx == "auto" else ""))
    print(f"sha256 of the weights: {report.sha256}")
    return 0


if __name__ == "__main__":
    run_command(main)
