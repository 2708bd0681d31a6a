"""A tiny enhancement task on noise, for tests of the training engine: about 20 ms a step, seconds a run."""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import torch
import torch._dynamo  # an optimiser imports it at its first step, for 3 s: once here instead of in every child
import yaml
from waves import write_table

from i2srf_kd.data.chunk_loader import ChunkLoaders
from i2srf_kd.espnet.iterator import add_chunk_arguments, build_chunk_iter_factory
from i2srf_kd.espnet.task import EnhancementTask, is_first_process
from i2srf_kd.espnet.trainer import DistillTrainer
from i2srf_kd.system.errors import UserError
from i2srf_kd.training.run_guard import guard_experiment

RATE = 16000
CHUNK = 1600
LENGTHS = {
    "train": [800, 1600, 3000, 3200, 4000, 5555, 6400, 2500, 4800, 3333],
    "valid": [1000, 3000, 1600, 4000, 2200],
}


class ToyTask(EnhancementTask):
    """Plugs the engine in as a real task does."""

    trainer = DistillTrainer

    @classmethod
    def add_task_arguments(cls, parser: Any) -> None:
        super().add_task_arguments(parser)
        add_chunk_arguments(parser)

    @classmethod
    def build_task_iter_factory(cls, args: Any, iter_options: Any, mode: str) -> Any:
        return build_chunk_iter_factory(args, iter_options, mode, cls)

    @classmethod
    def main_worker(cls, args: Any) -> None:
        guard_experiment(args, args.output_dir, is_first_process(args))
        super().main_worker(args)


def write_data(folder: Path, channels: int = 1, kind: str = "flac") -> Path:
    """Write train and valid sets of noisy noise in the layout of a dump folder."""
    random = np.random.default_rng(0)
    for name, lengths in LENGTHS.items():
        utterances = {f"{name}{i:02d}": length for i, length in enumerate(lengths)}
        clean, noisy = {}, {}
        for utt_id, length in utterances.items():
            clean[utt_id] = random.uniform(-0.3, 0.3, length)
            noisy[utt_id] = (clean[utt_id][:, None] + random.normal(0, 0.1, (length, channels))).squeeze()
        for table, waves in (("wav", noisy), ("spk1", clean)):
            write_table(folder / name, table, waves, RATE, kind)
        shapes = "".join(f"{utt_id} {length}\n" for utt_id, length in utterances.items())
        (folder / name / "speech_shape").write_text(shapes)
    return folder


SEPARATOR = """--separator rnn --separator_conf rnn_type=lstm --separator_conf num_spk=1 --separator_conf layer=2
    --separator_conf unit=8 --separator_conf dropout=0.2"""


def command(data: Path, output_dir: Path, *more: str, separator: str = SEPARATOR) -> List[str]:
    """Options of a short run: 3 epochs; ``more`` comes last and wins."""
    sets = []
    for name in ("train", "valid"):
        for signal_name, scp in scp_files(data / name).items():
            sets += [f"--{name}_data_path_and_name_and_type", f"{scp},{signal_name},sound"]
        sets += [f"--{name}_shape_file", str(data / name / "speech_shape")]
    options = f"""
        --output_dir {output_dir} --iterator_type task --chunk_length {CHUNK} --batch_size 4 --max_epoch 3 --ngpu 0
        --num_workers 0 --num_att_plot 0 --use_matplotlib false --use_tensorboard false --log_level WARNING --seed 3
        --encoder stft --encoder_conf n_fft=64 --encoder_conf hop_length=32 --decoder stft --decoder_conf n_fft=64
        --decoder_conf hop_length=32 {separator} --optim adam
        --optim_conf lr=0.01 --quality_utts 0 --keep_nbest_models 2 --scheduler warmuplr --scheduler_conf warmup_steps=5
    """.split()
    return [*options, "--best_model_criterion", "valid,loss,min", *sets, *more]


def dpdcrn_command(data: Path, output_dir: Path, channels: int, *more: str) -> List[str]:
    """Options of a DPDCRN on chunks of 800 samples, for the task of this project."""
    network = f"--separator dpdcrn --separator_conf channels={channels} --separator_conf heads=2"
    # A high floor: near an empty bin the gradient is so steep that rounding errors grow within a few steps.
    criterion = {"name": "compressed_spectrum", "conf": {"floor": 1e-2}, "wrapper": "fixed_order", "wrapper_conf": {}}
    config = output_dir.parent / f"{output_dir.name}_criterion.yaml"
    config.write_text(yaml.safe_dump({"criterions": [criterion]}))
    fixed = ("--config", str(config), "--chunk_length", "800", "--optim", "sgd", "--optim_conf", "lr=0.1")
    return command(data, output_dir, *fixed, *more, separator=network)


def train(arguments: Sequence[str], task: Any = ToyTask) -> None:
    """Run ESPnet's main in this process."""
    torch.set_num_threads(1)
    task.main(cmd=list(arguments))


def scp_files(folder: Path) -> Dict[str, str]:
    """Table of files by name of the signal."""
    return {"speech_mix": str(folder / "wav.scp"), "speech_ref1": str(folder / "spk1.scp")}


def loaders(data: Path, mode: str = "train", preprocess: Any = None, **changes: Any) -> ChunkLoaders:
    """Loaders of the epochs as a task builds them; ``changes`` are of ESPnet's options."""
    folder = data / ("train" if mode == "train" else "valid")
    args = argparse.Namespace(
        chunk_length=CHUNK, chunk_shift_ratio=0.5, train_dtype="float32", seed=1, num_workers=0, ngpu=0, accum_grad=1,
        sample_rate=RATE, allow_variable_data_keys=False, chunks_per_utterance=0, augmentation={},
        mixing={},
    )  # fmt: skip
    options = argparse.Namespace(
        data_path_and_name_and_type=[(scp, name, "sound") for name, scp in scp_files(folder).items()],
        shape_files=[str(folder / "speech_shape")], batch_size=4, preprocess_fn=preprocess, train=mode == "train",
        distributed=False, num_iters_per_epoch=None,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(args if hasattr(args, name) else options, name, value)
    return build_chunk_iter_factory(args, options, mode, ToyTask)


def assert_same_batches(a: Sequence[Any], b: Sequence[Any]) -> None:
    """Bit by bit."""
    assert len(a) == len(b) > 0
    for (ids_a, batch_a), (ids_b, batch_b) in zip(a, b, strict=True):
        assert ids_a == ids_b
        assert same(batch_a, batch_b)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_ranks(arguments: Sequence[str], count: int, prepare: Any = None, task: Any = ToyTask) -> List[Any]:
    """Start a training of ``count`` processes that talk through gloo."""
    port = str(free_port())
    more = ["--dist_backend", "gloo", "--multiprocessing_distributed", "false"]
    return [
        start_child(
            [*arguments, *more],
            prepare,
            {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            task,
        )
        for rank in range(count)
    ]


def join(processes: Sequence[Any], timeout: float = 240) -> List[int]:
    """Exit codes; who is not done in time is killed."""
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def call_at(owner: Any, name: str, number: int, action: Callable[[], Any], before: bool = False) -> Callable[[], None]:
    """Something to do first in a child: let ``action`` happen after (or before) the n-th call of a function."""

    def prepare() -> None:
        original, calls = getattr(owner, name), [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if before and calls[0] == number:
                action()
            result = original(*args, **kwargs)
            if not before and calls[0] == number:
                action()
            return result

        setattr(owner, name, counted)

    return prepare


def kill_self(*_: Any) -> None:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(
    arguments: Sequence[str], prepare: Any = None, timeout: float = 240.0, environment: Any = None, task: Any = ToyTask
) -> int:
    """Train in a forked process (ESPnet is imported already) and return its exit code; ``-9`` means killed."""
    process = start_child(arguments, prepare, environment, task)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError("the training did not end")
    return int(process.exitcode or 0)


def start_child(arguments: Sequence[str], prepare: Any = None, environment: Any = None, task: Any = ToyTask) -> Any:
    """Start a training in a forked process; ``prepare()`` is called in it first."""

    def run() -> None:
        os.environ.update(environment or {})
        if prepare is not None:
            prepare()
        try:
            train(arguments, task)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=False)
    process.start()
    return process


def weights(output_dir: Path, name: str = "latest.pth") -> Dict[str, torch.Tensor]:
    state = torch.load(output_dir / name, weights_only=True)
    return state.get("model", state)  # of a training's state


def same(a: Dict[str, torch.Tensor], b: Dict[str, torch.Tensor]) -> bool:
    """Bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
