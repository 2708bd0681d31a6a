"""Folders as trainings, scoring and an ablation leave them, made of noise in a second."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import yaml
from waves import write_table

from i2srf_kd.metrics.bootstrap import CrossedBootstrap
from i2srf_kd.results.scores import write_scores as write_score_files

RATE = 16000
UTTERANCES = ("p257_001", "p257_002", "p257_003", "p257_004")
METRICS = ("pesq_wb", "stoi", "si_sdr")
EPOCHS, STEPS = 4, 10
DISTILL = {"method": "i2srf_tfckd", "weight": 0.5}


def write_lines(path: Path, records: Sequence[Dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_training(folder: Path, quality: float, seed: int = 0, distill: Optional[Dict[str, Any]] = None) -> Path:
    """config.yaml, environment.json, metrics.jsonl and, for a distilled student, diagnostics.jsonl."""
    random = np.random.default_rng([seed, len(folder.name)])
    folder.mkdir(parents=True)
    criterion = {"name": "compressed_spectrum", "wrapper": "fixed_order"}
    config = {
        "output_dir": str(folder),
        "separator": "dpdcrn",
        "seed": seed,
        "criterions": [criterion],
        "distill": distill or {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start = {"command": f"train --seed {seed} --name '<{folder.name}>'", "working_directory": "/somewhere"}
    start.update(cpu="A processor", gpus=[], git_hash="0123456789abcdef", versions={"torch": "2.11.0"})
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    (folder / "complexity.json").write_text(
        json.dumps({"parameters": 38286, "gmacs_per_second": 0.16, "gmacs_per_second_with_recurrent": 0.17})
    )
    lines: List[Dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        for phase in ("train", "valid"):
            task = 0.2 / epoch + 0.02 * random.random()
            line = {"epoch": epoch, "phase": phase, "compressed_spectrum": task, "loss": task, "seconds": 3.0}
            line["total_count"] = epoch * STEPS
            if phase == "valid":
                line["pesq"] = quality + 0.2 * epoch + 0.05 * random.random()
            if distill:
                terms = {f"kd_{name}": 0.1 / epoch for name in ("intra_encoder", "intra_dual_path", "inter")}
                line.update(terms, kd=sum(terms.values()), loss=task + 0.5 * sum(terms.values()))
            lines.append(line)
    write_lines(folder / "metrics.jsonl", lines)
    if distill:
        write_lines(folder / "diagnostics.jsonl", [diagnostics(epoch, random) for epoch in range(EPOCHS + 1)])
    return folder


def diagnostics(epoch: int, random: np.random.Generator) -> Dict[str, Any]:
    """A line with weights that sharpen from epoch to epoch."""
    values: Dict[str, Any] = {}
    for name, shape in (("intra_encoder", (3, 3)), ("intra_dual_path", (1, 4)), ("inter", (3, 3))):
        for stream in ("time", "frequency"):
            logits = 0.3 * epoch * random.random(shape)
            weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            values[f"{name}_{stream}_weights"] = weights.tolist()
            values[f"{name}_{stream}_entropy"] = 1.0 - 0.1 * epoch
    gradients = {
        "grad_norm_task": 0.3 / (epoch + 1),
        "grad_norm_kd": 0.1 / (epoch + 1),
        "grad_cosine": 0.2 * epoch - 0.3,
    }
    return {"epoch": epoch, "phase": "valid", "step": epoch * STEPS, **gradients, "diagnostics": values}


def write_scores(folder: Path, quality: float, seed: int = 0) -> Path:
    """scores.csv and summary.json."""
    random = np.random.default_rng([7, seed])
    rows = [
        {
            "utt": utt,
            "seconds": 1.0,
            "pesq_wb": quality + 0.3 * i + 0.02 * random.random(),
            "stoi": 0.9 + 0.01 * random.random(),
            "si_sdr": 10 * quality + i,
        }
        for i, utt in enumerate(UTTERANCES)
    ]
    write_score_files(folder, rows, METRICS)
    return folder


def write_audio(folder: Path, table: str, noise: float) -> Path:
    """One second of a chirp in noise per utterance; returns the table of files."""
    time = np.arange(RATE) / RATE
    waves = {
        utt: 0.3 * np.sin(2 * np.pi * (300 * (i + 1) * time + 1000 * time**2))
        + noise * np.random.default_rng(i).standard_normal(RATE)
        for i, utt in enumerate(UTTERANCES)
    }
    return write_table(folder, table, waves, RATE)


def write_data(folder: Path) -> Path:
    """wav.scp and spk1.scp of a test set."""
    write_audio(folder, "wav", 0.1)
    write_audio(folder, "spk1", 0.0)
    return folder


def write_experiments(folder: Path, data: Path) -> Path:
    """What run.sh leaves: mixtures, teacher, student, distilled student."""
    write_scores(folder / "noisy" / "scored_test", 1.5)
    for name, quality, distill in (("teacher", 2.4, None), ("student", 2.0, None), ("student_kd", 2.2, DISTILL)):
        experiment = write_training(folder / name, quality, distill=distill)
        config = yaml.safe_load((experiment / "config.yaml").read_text())
        config["valid_data_path_and_name_and_type"] = [[str(data.parent / "valid" / "wav.scp"), "speech_mix", "sound"]]
        if distill:
            config["teacher_config"] = str(folder / "teacher" / "config.yaml")
        (experiment / "config.yaml").write_text(yaml.safe_dump(config))
        write_scores(experiment / "scored_test", quality)
        write_audio(experiment / "enhanced_test", "spk1", 0.1 / quality)
    (data.parent / "valid").mkdir(exist_ok=True)
    return folder


CELLS = {"undistilled": (2.0, None), "response": (2.1, {"method": "response_waveform"}), "i2srf": (2.3, DISTILL)}


def write_ablation(folder: Path, data: Path, seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """Cells and table of an ablation, in the layout of ``i2srf_kd.ablation.collect``; the last run is unfinished."""
    exp = folder.parent
    write_scores(exp / "noisy" / "scored_test", 1.5)
    teacher = write_training(exp / "teacher", 2.5)
    write_scores(teacher / "scored_test", 2.5)
    write_audio(teacher / "enhanced_test", "spk1", 0.02)
    values: Dict[str, np.ndarray] = {}
    cells = []
    for name, (quality, distill) in CELLS.items():
        entries = []
        for seed in seeds:
            run = write_training(folder / name / f"seed{seed}", quality + 0.01 * seed, seed, distill)
            write_scores(run / "scored_test", quality + 0.02 * seed, seed)
            write_audio(run / "enhanced_test", "spk1", 0.1 / quality)
            place = f"{name}/seed{seed}"
            entries.append(
                {"seed": seed, "state": "finished", "experiment": place, "scored": f"{place}/scored_test",
                 "enhanced": f"{place}/enhanced_test", "audio_scp": f"{place}/enhanced_test/spk1.scp"}
            )  # fmt: skip
        values[name] = np.array([[quality + 0.02 * seed + 0.3 * i for i in range(4)] for seed in seeds])
        cells.append({"name": name, "distill": distill, "seeds": entries, "metrics": scores(values[name])})
    for cell in cells:
        cell["differences"] = {
            other: scores(values[cell["name"]] - values[other])
            for other in ("undistilled", "response")
            if other != cell["name"]
        }
        share = {"share": 0.6, "low": 0.4, "high": 0.8, "gap": scores(values["i2srf"])["pesq_wb"]}
        cell["gap_closed"] = None if cell["name"] == "undistilled" else {"pesq_wb": share}
        cell["relative_cost"] = 1.0 if cell["name"] == "undistilled" else 1.7
        cell["complexity"] = {"parameters": 38286, "gmacs_per_second_with_recurrent": 0.17}
    waiting = {"seed": 9, "state": "waiting", "experiment": "i2srf/seed9", "scored": None, "audio_scp": None}
    cells[-1]["seeds"].append(waiting)
    mixture = {
        "scored": "../noisy/scored_test",
        "audio_scp": str(data / "wav.scp"),
        "reference_scp": str(data / "spk1.scp"),
    }
    content = {
        "format": 1, "title": "A <synthetic> ablation", "set": "test", "baseline": "undistilled",
        "command": "ablate.sh",
        "environment": {"python": "3.11", "git_hash": "0123456789abcdef", "git_dirty": False},
        "interval": {"level": 0.95, "resamples": 500, "method": "percentile bootstrap"},
        "metrics": list(METRICS), "noisy": {**mixture, "metrics": scores(np.full((1, 4), 1.5))},
        "teacher": {"experiment": "../teacher", "scored": "../teacher/scored_test", "complexity": None,
                    "audio_scp": "../teacher/enhanced_test/spk1.scp", "metrics": scores(np.full((1, 4), 2.5))},
        "cells": cells,
    }  # fmt: skip
    (folder / "results_test.json").write_text(json.dumps(content))
    return folder


def scores(values: np.ndarray) -> Dict[str, Dict[str, Any]]:
    """Scores by metric, all from the same values; not a number becomes null."""
    score = CrossedBootstrap(*values.shape, resamples=500).mean(values)._asdict()
    score = {key: None if value != value else value for key, value in score.items()}
    return {metric: score for metric in METRICS}
