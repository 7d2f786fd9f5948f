"""The last word of demos and ablations: one table on the screen, the same figures in
`report.json`."""

import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mgen import files
from mgen.train import logging


def write(out: Path, title: str, rows: dict[str, tuple[float, str, str]]) -> None:
    """Prints name -> (value, unit, remark) as a table; out/report.json gets name -> value."""
    table = Table("figure", "value", "unit", "", title=title)
    for name, (value, unit, remark) in rows.items():
        table.add_row(name, f"{value:.3g}", unit, remark)
    Console(width=110).print(table)
    values = {name: value for name, (value, _, _) in rows.items()}
    files.write_json(out / "report.json", values)


def compare(out: Path | None, rows: dict[str, tuple[float, float]], title: str = "") -> None:
    """Prints name -> (value, baseline) as a table and marks what does not beat its baseline; with
    `out`, writes both to out/report.json."""
    table = Table("figure", "value", "baseline", "", title=title or None)
    for name, (value, baseline) in rows.items():
        table.add_row(name, f"{value:.3f}", f"{baseline:.3f}", "" if value > baseline else "below")
    Console(width=110).print(table)
    if out is not None:
        values = {name: {"value": v, "baseline": b} for name, (v, b) in rows.items()}
        files.write_json(out / "report.json", values)


def demo(out: Path, codec: Path, lm: Path) -> None:
    """The table of `launch/demo.py` from the reports of its two evaluations and the clips."""
    codec_report, lm_report = _read(codec / "report.json"), _read(lm / "report.json")
    clips = [_read(path) for path in sorted(out.glob("seed*.json"))]
    rows = {
        "codec_si_sdr": (codec_report["si_sdr"], "dB", "held-out; higher is better"),
        "codec_mel_distance": (
            codec_report["mel_distance"],
            "",
            "held-out; lower is better",
        ),
        "codec_perplexity": (codec_report["codebook_perplexity"], "codes", "mean over codebooks"),
        "lm_loss": (lm_report["cross_entropy"], "nats a token", "held-out pieces"),
        "lm_unigram_loss": (
            lm_report["unigram_cross_entropy"],
            "nats a token",
            "a model without context",
        ),
        "generation_speed": (clips[0]["speed"], "s of audio a s", "codes and decoding"),
    }
    for name in ("target_0", "reconstruction_0"):
        for ending in (".wav", ".png"):
            shutil.copy(codec / f"{name}{ending}", out / f"held_out_{name[:-2]}{ending}")
    write(out, f"clips: {out}/*.wav", rows)


def hierarchy(out: Path, stages: list[str]) -> None:
    """The table of `launch/demo_hierarchy.py` from the reports of its evaluations and scores."""
    rows = {}
    for name in stages:
        found = _read(out / name / "report.json")
        for field, remark in (
            ("cross_entropy", "held-out pieces"),
            ("cross_entropy_alone", "the same model without its condition"),
            ("unigram_cross_entropy", "a model without context"),
        ):
            rows[f"{name}/{field}"] = (found[field], "nats a token", remark)
    for name in ("musiclm", "soundstorm"):
        found = _read(out / name / "score" / "report.json")
        interval = f"95% from {found['low']:.3f} to {found['high']:.3f}"
        rows[f"{name}/prompted"] = (found["prompted"], "cosine", "clips and their own prompts")
        rows[f"{name}/shuffled"] = (found["shuffled"], "cosine", "clips and others' prompts")
        rows[f"{name}/difference"] = (found["difference"], "cosine", interval)
    write(out, f"clips: {out}/*/*.wav", rows)


# Figures of an ablation, where a family has them, and how they are written.
ABLATION = {
    "generation_steps": ".0f",
    "parameters": ",.0f",
    "cross_entropy": ".3f",
    "unigram_cross_entropy": ".3f",
    "steps_per_second": ".3g",
}


def ablation(out: Path, variants: Sequence[str]) -> None:
    """The table of `launch/ablate.py`: a row a variant from its evaluation and its training log
    (the median speed, so that compiling and pauses do not count)."""
    found = {}
    for name in variants:
        speeds = logging.read_scalars(out / "work" / name / "logs", "train/steps_per_second")
        speed = statistics.median(value for _, value in speeds)
        found[name] = _read(out / name / "report.json") | {"steps_per_second": speed}
    figures = [f for f in ABLATION if all(f in values for values in found.values())]
    table = Table("variant", *figures, title="losses in nats a code, held-out pieces")
    for name, values in found.items():
        table.add_row(name, *(format(values[f], ABLATION[f]) for f in figures))
    Console(width=110).print(table)
    rows = {name: {f: values[f] for f in figures} for name, values in found.items()}
    files.write_json(out / "report.json", rows)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
