"""Short trainings on a cut of the mini corpus through the real task: a second or two each."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import soundfile
import torch
import toy
import yaml

from i2srf_kd.corpora.synthesis import MiniCorpusOptions, generate_mini_corpus
from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.system.errors import UserError

RATE, SECONDS = 16000, 1.0
STUDENT = "--separator dpdcrn --separator_conf channels=8 --separator_conf blocks=1 --separator_conf heads=2"
TEACHER = "--separator dpdcrn --separator_conf channels=12 --separator_conf blocks=2 --separator_conf heads=2"
CRITERION = {"name": "compressed_spectrum", "wrapper": "fixed_order", "wrapper_conf": {"weight": 1.0}}


def write_speech(folder: Path) -> Path:
    """Lists of a train and a valid set: one second of each of a few utterances of the mini corpus."""
    corpus = generate_mini_corpus(folder / "corpus", MiniCorpusOptions(train_utts=8, valid_utts=2, test_utts=2))
    for name, part in (("train", "trainset_28spk"), ("valid", "testset")):
        (folder / name).mkdir()
        lines: Dict[str, List[str]] = {"wav.scp": [], "spk1.scp": [], "speech_shape": []}
        for noisy in sorted((corpus / f"noisy_{part}_wav").glob("*.wav")):
            clean = corpus / f"clean_{part}_wav" / noisy.name
            for scp, source in (("wav.scp", noisy), ("spk1.scp", clean)):
                cut = folder / name / f"{noisy.stem}.{scp[:3]}.wav"
                audio, _ = soundfile.read(source, start=RATE, frames=round(SECONDS * RATE))
                soundfile.write(cut, audio, RATE)
                lines[scp].append(f"{noisy.stem} {cut}")
            lines["speech_shape"].append(f"{noisy.stem} {round(SECONDS * RATE)}")
        for file, content in lines.items():
            (folder / name / file).write_text("\n".join(content) + "\n")
    return folder


def arguments(
    data: Path,
    output_dir: Path,
    *more: str,
    separator: str = STUDENT,
    distill: Optional[Dict[str, Any]] = None,
    teacher: Optional[Path] = None,
    task_weight: float = 1.0,
) -> List[str]:
    """Options of a run of three epochs of ten steps on quarters of a second; ``more`` comes last and wins."""
    config = output_dir.parent / f"{output_dir.name}.yaml"
    criterion = {**CRITERION, "wrapper_conf": {"weight": task_weight}}
    config.write_text(yaml.safe_dump({"criterions": [criterion]}))
    fixed = ["--config", str(config), "--chunk_length", "4000", "--scheduler", "none", "--optim_conf", "lr=0.003"]
    stft = [f"--{part}_conf={value}" for part in ("encoder", "decoder") for value in ("n_fft=128", "hop_length=64")]
    if distill is not None:
        path = output_dir.parent / f"{output_dir.name}_distill.yaml"
        path.write_text(yaml.safe_dump(distill))
        fixed += ["--distill_config", str(path), "--teacher_exp", str(teacher)]
    return toy.command(data, output_dir, *fixed, *stft, *more, separator=separator)


def in_child(work: Callable[[], Any], timeout: float = 240) -> int:
    """Run ``work`` in a forked process and return its exit code; a UserError is printed and gives 2."""

    def guarded() -> None:
        torch.set_num_threads(1)
        try:
            work()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    process = multiprocessing.get_context("fork").Process(target=guarded)
    process.start()
    return toy.join([process], timeout)[0]


def train(command: Sequence[str]) -> int:
    """Train in a forked process; its exit code."""
    return in_child(lambda: toy.train(command, DistillEnhancementTask))


def train_and_watch(command: Sequence[str], report: Path) -> int:
    """Train in a forked process; ``report`` tells which parameters changed and whether the teacher did.

    Steps are counted, and for each trained parameter whether it ever got a gradient other than zero.
    """

    def work() -> None:
        models: List[Any] = []
        build = DistillEnhancementTask.build_model.__func__  # type: ignore[attr-defined]

        def build_and_keep(cls: Any, args: Any) -> Any:
            models.append(build(cls, args))
            trained = [(name, p) for name, p in models[0].named_parameters() if p.requires_grad]
            seen.update({name: False for name, _ in trained})
            for name, parameter in trained:
                parameter.register_post_accumulate_grad_hook(note(name))
            before.update({k: v.clone() for k, v in models[0].teacher.model.state_dict().items()})
            return models[0]

        def note(name: str) -> Callable[[Any], None]:
            def hook(parameter: Any) -> None:
                seen[name] = seen[name] or bool(parameter.grad.abs().sum() > 0)

            return hook

        seen: Dict[str, bool] = {}
        before: Dict[str, Any] = {}
        DistillEnhancementTask.build_model = classmethod(build_and_keep)  # type: ignore[method-assign,assignment]
        toy.train(command, DistillEnhancementTask)
        after = models[0].teacher.model.state_dict()
        torch.save(
            {
                "teacher_same": toy.same(before, after),
                "teacher_grads": any(p.grad is not None for p in models[0].teacher.model.parameters()),
                "without_gradient": [name for name, reached in seen.items() if not reached],
                "own": [name for name in seen if name.startswith("distillation.")],
            },
            report,
        )

    return in_child(work)
