"""A run's folder as cards are written from it, with known figures."""

import copy
import csv
import json
import re
from pathlib import Path
from typing import Any

import yaml

from teenytinyllama.evaluation.results import Results, Score, write_results


def evaluation(step: int, perplexity: float, kwh: float) -> dict[str, Any]:
    figures = {"bits_per_byte": perplexity / 10, "perplexity": perplexity, "scored_tokens": 19_690}
    return {"step": step, "tokens": step * 8192, **figures, "kwh": kwh, "kg_co2e": kwh / 10}


RUN: dict[str, Any] = {
    "package_version": "0.1.0",
    "stage": "pretrain",
    "command": "ttl pretrain --config pretrain.yaml",
    "commit": "a" * 40,
    "created": "2024-01-30T12:00:00Z",
    "config": {"license": "apache-2.0", "hub_model_id": None},
    "model": {
        "preset": "tiny",
        "base_model": None,
        "num_parameters": 2_557_632,
        "num_hidden_layers": 4,
        "hidden_size": 192,
        "vocab_size": 2048,
        "context": 256,
    },
    "data": {
        "packed": "packed",
        "hub_datasets": ["ana/noticias"],
        "tokenizer_sha256": "b" * 64,
        "packed_sha256": "c" * 64,
        "sources": {
            "contos": {"documents": 1200, "bytes": 3_400_000, "tokens": 900_000, "licenses": ["CC0-1.0"]},
            "ana/noticias": {"documents": 34, "bytes": 100_000, "tokens": 25_000, "licenses": ["CC-BY-NC-4.0"]},
        },
        "train_tokens": 910_000,
        "validation_documents": 12,
    },
    "training": {
        "steps": 500,
        "tokens": 4_096_000,
        "tokens_per_step": 8192,
        "epochs": 4.5,
        "seconds": 5400.0,
        "tokens_per_second": 758.5,
        "world_size": 2,
        "backend": "gloo",
        "zero_stage": 2,
        "precision": "fp32",
        "hardware": "AMD EPYC",
    },
    "results": {
        "initial": {"bits_per_byte": 3.01234, "perplexity": 2048.7},
        "final": {
            "bits_per_byte": 1.23456,
            "perplexity": 17.125,
            "per_source": {"contos": {"bits_per_byte": 1.2, "perplexity": 16.5}},
        },
    },
    "hashes": {"model.safetensors": "d" * 64},
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}
SAMPLES = [
    {"step": 250, "prompt": "Era uma vez", "text": "Era uma vez um um um"},
    {"step": 500, "prompt": "Era uma vez", "text": "Era uma vez uma lhama que vivia na serra."},
]


EVALUATIONS = [evaluation(0, 2048.7, 0.0), evaluation(250, 40.25, 0.31), evaluation(500, 18.5, 0.61)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


def emission_columns() -> list[str]:
    """Return CodeCarbon's own columns, so that a change of its file is noticed here."""
    from dataclasses import fields

    from codecarbon.output_methods.emissions_data import EmissionsData

    return [field.name for field in fields(EmissionsData)]


def write_emissions(path: Path, *rows: dict[str, Any]) -> None:
    columns = emission_columns()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            zeros = {"cpu_energy": 0.0, "gpu_energy": 0.0, "ram_energy": 0.0, "duration": 0.0}
            writer.writerow({**dict.fromkeys(columns, ""), **zeros, "country_iso_code": "BRA", **row})


def energy_row(run_id: str, kwh: float, kg: float) -> dict[str, Any]:
    parts = {"cpu_energy": kwh / 2, "gpu_energy": kwh / 4, "ram_energy": kwh / 4, "duration": 1800.0}
    return {"run_id": run_id, "energy_consumed": kwh, "emissions": kg, **parts}


def write_run(folder: Path, run: dict[str, Any], samples: list[dict[str, Any]] = SAMPLES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run, ensure_ascii=False), encoding="utf-8")
    write_rows(folder / "samples.jsonl", samples)
    write_rows(folder / "metrics.jsonl", [{"step": 500, "loss": 2.8}, *EVALUATIONS])
    return folder


def changed(keys: str, value: Any) -> dict[str, Any]:
    """Return RUN with one nested key set."""
    run = copy.deepcopy(RUN)
    *parents, last = keys.split(".")
    place = run
    for key in parents:
        place = place[key]
    place[last] = value
    return run


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Return the front matter, read as YAML, and the body."""
    opening, metadata, body = re.split(r"^---$\n", card, maxsplit=2, flags=re.MULTILINE)
    assert opening == ""
    return yaml.safe_load(metadata), body


RESULTS = Results(
    "lhama",
    "ttl evaluate runs/lhama",
    {"lm_eval": "0.4.13"},
    (
        Score(task="enem_challenge", suite="Exams", name="ENEM", metric="acc", metric_name="accuracy", value=0.1924,
              dataset_id="eduagarcia/enem_challenge", dataset_revision="e" * 40, dataset_split="train", stderr=0.0104,
              trivial=0.2, trivial_kind="chance", normalised=-0.0095, shots=3, num_items=1429, unparsable=0.0125,
              truncated_prompts=7, harness="lm_eval 0.4.13", date="2024-01-30"),
        Score(task="calame_pt", suite="Likelihood", name="CALAME", metric="acc", metric_name="accuracy", value=0.4672,
              stderr=0.011, trivial=0.0213, trivial_kind="constant"),
        Score(task="calame_pt", suite="Likelihood", name="CALAME", metric="acc", metric_name="accuracy", value=0.3111,
              stderr=0.0117, step=250, tokens=2_048_000),
        Score(task="assin2_rte", suite="Published", name="RTE", metric="f1_macro", metric_name="macro F1", value=0.5397,
              dataset_id="assin2", dataset_split="test", shots=15, source="https://example.org/rte"),
        Score(task="assin2_sts", suite="Published", name="STS", metric="pearson", metric_name="Pearson", value=-0.0024,
              dataset_id="assin2", dataset_split="test", shots=15, source="a table in a paper"),
    ),
)  # fmt: skip
CHECKPOINT = {"branch": "step250", "step": 250, "tokens": 2_048_000, "loss": 3.25, "bits_per_byte": 1.5,
              "kwh": 0.31, "kg_co2e": 0.031, "sha256": "f1" * 32}  # fmt: skip


def write_checkpoints(folder: Path, *rows: dict[str, Any]) -> None:
    """The record that `ttl publish` leaves, of rows as the card shows them."""
    entries = [{**row, "sha256": {"model.safetensors": row["sha256"]}} for row in rows]
    record = {"identity": {"seed": "42"}, "checkpoints": entries, "files": ["README.md"]}
    (folder / "checkpoints.json").write_text(json.dumps(record), encoding="utf-8")


def write_whole_run(folder: Path) -> Path:
    """A run with everything a card can show."""
    write_run(folder, RUN)
    (folder / "loss.png").write_bytes(b"png")
    # Two starts; the rows of a start are cumulative, and the starts' rows are mixed.
    rows = [("um", 0.1, 0.01), ("dois", 0.05, 0.004), ("um", 0.4, 0.0393), ("dois", 0.2, 0.02)]
    write_emissions(folder / "emissions.csv", *(energy_row(*row) for row in rows))
    write_results(folder / "results.json", RESULTS)
    write_checkpoints(folder, CHECKPOINT)
    return folder
