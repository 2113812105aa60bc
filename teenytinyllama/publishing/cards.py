"""The model card (README.md), rendered from the files of a finished run: no number in it is typed by hand."""

import math
import os
import re
from pathlib import Path
from typing import Any

from ..checks import ensure
from ..emissions import EMISSIONS_NAME, EmissionsTotal, read_emissions
from ..grid import place
from .escaping import Markdown, card_environment, one_line
from .run_files import SAMPLES_NAME, read_run, read_samples

CARD_NAME = "README.md"
_LINKED = ("config.yaml", "metrics.jsonl", SAMPLES_NAME, EMISSIONS_NAME, "emissions.json", "environment.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DATA_FILE = re.compile(r"\.(parquet|jsonl?|txt|csv|arrow)(\.\w+)?$")
# Licence names with conditions on commercial use, on derived works or on how they are shared.
_RESTRICTED = re.compile(r"\b(nc|nd|sa|gpl|agpl|lgpl|non-?commercial)\b", re.IGNORECASE)


def write_model_card(run_folder: str | Path, repository: str | None = None) -> Path:
    """Write the card of a finished run to its README.md and return that path; an older card is replaced as a whole.

    Raises:
        InputError: as `render_model_card`; then nothing is written.
    """
    text = render_model_card(run_folder, repository)
    path = Path(run_folder) / CARD_NAME
    partial = path.with_name(CARD_NAME + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def render_model_card(run_folder: str | Path, repository: str | None = None) -> str:
    """Return the model card of a finished run, in English with Portuguese examples: YAML front matter and Markdown.

    Args:
        run_folder: has run.json, and where the run made them samples.jsonl, emissions.csv and loss.png. Without
            emissions.csv the card says that energy was not measured.
        repository: `owner/name` for the title and the examples; by default the run's `hub_model_id`, else the
            folder's name.

    Raises:
        InputError: the folder is no run or an unfinished one, or one of its files lacks what the card needs; the
            message names file and key.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    name = repository or run["config"].get("hub_model_id") or folder.resolve().name
    # Only letters that mean nothing in Markdown, HTML, Python strings and YAML.
    name = re.sub(r"[^\w./-]+", "-", one_line(name).strip())
    energy = _read_energy(folder / EMISSIONS_NAME)
    environment = card_environment()
    usage = {"repository": Markdown(name), "stage": run["stage"]}
    body = environment.get_template("model_card.md.jinja").render(
        **run,
        **_data_table(run["data"]["sources"]),
        title=name.rsplit("/", 1)[-1],
        license=_license(run),
        hours=run["training"]["seconds"] / 3600,
        files={path.name for path in folder.iterdir()},
        links=[linked for linked in _LINKED if (folder / linked).is_file()],
        samples=read_samples(folder / SAMPLES_NAME),
        energy=None if energy is None else _energy_table(energy),
        usage_pipeline=environment.get_template("usage_pipeline.py.jinja").render(usage),
        usage_model=environment.get_template("usage_model.py.jinja").render(usage),
        citation=environment.get_template("citation.bib.jinja").render(),
        versions_line=", ".join(f"{library} {version}" for library, version in run["versions"].items()),
    )
    return f"---\n{_front_matter(run, energy)}\n---\n\n{body}"


def _license(run: dict[str, Any]) -> str:
    return one_line(run["config"].get("license") or "apache-2.0").strip()


def _data_table(sources: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of the table of sources, their total, and the licences that restrict use."""
    rows = [
        {
            "name": name,
            "documents": source["documents"],
            "megabytes": source["bytes"] / 1e6,
            "tokens": source["tokens"],
            "licenses": ", ".join(map(str, source["licenses"])) or "not stated",
        }
        for name, source in sources.items()
    ]
    licenses = sorted({str(license) for source in sources.values() for license in source["licenses"]})
    return {
        "sources": rows,
        "total": {column: sum(row[column] for row in rows) for column in ("documents", "megabytes", "tokens")},
        "restricted": ", ".join(license for license in licenses if _RESTRICTED.search(license)),
    }


def _read_energy(path: Path) -> EmissionsTotal | None:
    """Return the run's energy, or None when nothing was measured: no file, no row, or only zeros."""
    energy = read_emissions(path)
    if energy is None:
        return None
    for column, value in {"energy_consumed": energy.energy_kwh, "emissions": energy.emissions_kg}.items():
        ensure(
            math.isfinite(value) and value >= 0,
            f"{path}: column {column} adds up to {value}, but must be a finite number, 0 or above. Move the file away, "
            "and the card will say that energy was not measured.",
        )
    return energy if energy.energy_kwh > 0 else None


def _energy_table(energy: EmissionsTotal) -> dict[str, Any]:
    """Return the energy figures as text with four significant digits."""
    return {
        "kwh": f"{energy.energy_kwh:.4g}",
        "cpu_kwh": f"{energy.cpu_kwh:.4g}",
        # CodeCarbon writes 0 when it sees no GPU, which is not a measurement of 0.
        "gpu_kwh": f"{energy.gpu_kwh:.4g} kWh" if energy.gpu_kwh > 0 else "none seen by CodeCarbon",
        "ram_kwh": f"{energy.ram_kwh:.4g}",
        "kg": f"{energy.emissions_kg:.4g}",
        "country": place(energy.country_iso_code, energy.region),
        "pue": f"{energy.pue:.4g}",
        "hours": energy.duration_seconds / 3600,
        "num_starts": energy.num_starts,
    }


def _front_matter(run: dict[str, Any], energy: EmissionsTotal | None) -> str:
    """Return the card's metadata as YAML; emissions are in grams, as the Hub wants them."""
    from huggingface_hub import ModelCardData

    base_model = run["model"]["base_model"]
    is_hub_base = bool(base_model and _HUB_ID.fullmatch(base_model))
    datasets = [name for name in run["data"]["sources"] if _HUB_ID.fullmatch(name) and not _DATA_FILE.search(name)]
    more: dict[str, Any] = {}
    if energy is not None:
        more["co2_eq_emissions"] = {
            "emissions": float(f"{energy.emissions_kg * 1000:.4g}"),
            "source": "CodeCarbon",
            "training_type": "pre-training" if run["stage"] == "pretrain" else "fine-tuning",
            "geographical_location": one_line(place(energy.country_iso_code, energy.region)),
            "hardware_used": one_line(run["training"]["hardware"]),
        }
    data = ModelCardData(
        language="pt",
        license=_license(run),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["teenytinyllama", "llama", "portuguese", *(["conversational"] if run["stage"] != "pretrain" else [])],
        base_model=base_model if is_hub_base else None,
        datasets=datasets or None,
        metrics=["perplexity"],
        **more,
    )
    return str(data.to_yaml())
