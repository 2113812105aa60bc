"""The facts of a card, whichever language it is written in: read from a run's folder, ready to be shown."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..checks import model_license
from ..energy.emissions import place
from ..energy.ledger import describe_incomplete, num_speed_tests, read_energy
from ..evaluation.results import Results, read_results
from ..model_files import ADAPTER_CONFIG_NAME
from ..stage_folder import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    EMISSIONS_NAME,
    ENERGY_JSON_NAME,
    ENVIRONMENT_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    RESULTS_NAME,
    SAMPLES_NAME,
)
from .run_files import (
    check_checkpoints,
    command_without_places,
    read_checkpoints,
    read_evaluations,
    read_run,
    read_samples,
)
from .wording import one_line

MAX_EVALUATIONS = 12  # rows of the table of evaluations; a run may make hundreds
_LINKED = (CONFIG_NAME, METRICS_NAME, SAMPLES_NAME, RESULTS_NAME, EMISSIONS_NAME, ENERGY_JSON_NAME,
           ENVIRONMENT_NAME, CHECKPOINTS_NAME)  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Licence names with conditions on commercial use, on derived works or on how they are shared.
_RESTRICTED = re.compile(r"\b(nc|nd|sa|gpl|agpl|lgpl|non-?commercial)\b", re.IGNORECASE)


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        origin: `run`, or `reference` for figures that others published.
        name: `owner/name` or a name alone; only letters that mean nothing in Markdown, HTML, Python and YAML.
        run: what `run.json` holds; in a reference card, what is not known is None.
        is_adapter: whether the weights are an adapter alone.
        energy: sums over all starts, see `_read_energy`; None where nothing was measured.
        evaluations: see `run_files.read_evaluations`, thinned.
        num_evaluations: how many there were.
        results: scores on benchmarks, or None.
        checkpoints: see `run_files.check_checkpoints`, or None.
        samples: see `run_files.read_samples`.
        prompts: for the page's widget.
        files: names in the run's folder.
        sources: of a reference card: what is from where, by language, and the address (`url`).
        remarks: of a reference card, by language.
    """

    origin: Literal["run", "reference"]
    name: str
    run: dict[str, Any]
    is_adapter: bool
    energy: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    num_evaluations: int
    results: Results | None
    checkpoints: list[dict[str, Any]] | None
    samples: list[dict[str, Any]]
    prompts: list[str]
    files: frozenset[str] = frozenset()
    sources: tuple[dict[str, str], ...] = ()
    remarks: tuple[dict[str, str], ...] = ()

    @property
    def is_chat(self) -> bool:
        """Return whether the model answers questions."""
        return str(self.run["stage"]) != "pretrain"

    @property
    def license(self) -> str:
        """Return the Hub's name of the licence of the weights.

        Raises:
            InputError: the run's record names none that the Hub has.
        """
        stated = one_line(self.run["config"].get("license") or "apache-2.0")
        return model_license(f"{MANIFEST_NAME}: config.license", stated)

    @property
    def hub_base(self) -> str | None:
        """Return the base model, if it is a repository on the Hub."""
        base, is_local = self.run["model"]["base_model"], self.run["model"].get("base_is_local")
        return base if base and is_hub_id(base) and not is_local else None

    @property
    def hub_datasets(self) -> list[str]:
        """Return the datasets on the Hub that the training data was read from, as the run recorded them."""
        names = self.run["data"].get("hub_datasets")  # runs of the first versions did not
        return [name for name in names if isinstance(name, str) and is_hub_id(name)] if isinstance(names, list) else []

    @property
    def links(self) -> list[str]:
        """Return the files of the folder that a reader may want."""
        return [name for name in _LINKED if name in self.files]


def _with_mean_speed(training: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a training whose speed is that of all its seconds; older ones have the median of steps."""
    if "median_tokens_per_second" in training:
        return training
    mean = training["tokens"] / training["seconds"] if training["seconds"] else training["tokens_per_second"]
    return {**training, "tokens_per_second": mean, "median_tokens_per_second": training["tokens_per_second"]}


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a repository on the Hub."""
    return bool(_HUB_ID.fullmatch(name))


def safe_name(name: str) -> str:
    """Return a name of only letters that mean nothing in Markdown, HTML, Python strings and YAML."""
    return re.sub(r"[^\w./-]+", "-", one_line(name).strip())


def facts_of_run(
    folder: Path, repository: str | None = None, checkpoints: list[dict[str, Any]] | None = None
) -> CardFacts:
    """Return the facts of a finished run; see `cards.render_model_card`."""
    run = read_run(folder)
    run = {**run, "command": command_without_places(run["command"]), "training": _with_mean_speed(run["training"])}
    results = read_results(folder / RESULTS_NAME) if (folder / RESULTS_NAME).is_file() else None
    evaluations = read_evaluations(folder / METRICS_NAME)
    samples = read_samples(folder / SAMPLES_NAME)
    index = folder / CHECKPOINTS_NAME
    return CardFacts(
        origin="run",
        name=safe_name(repository or run["config"].get("hub_model_id") or folder.resolve().name),
        run=run,
        is_adapter=(folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / "config.json").exists(),
        energy=_read_energy(folder / EMISSIONS_NAME),
        evaluations=thin(evaluations),
        num_evaluations=len(evaluations),
        results=results and replace(results, command=command_without_places(results.command)),
        checkpoints=read_checkpoints(index) if checkpoints is None else check_checkpoints(checkpoints, index),
        samples=samples,
        prompts=list(dict.fromkeys(sample["prompt"] for sample in samples)),
        files=frozenset(path.name for path in folder.iterdir()),
    )


def thin(rows: list[Any], most: int = MAX_EVALUATIONS) -> list[Any]:
    """Return at most so many rows at even distances, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def data_table(sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of the table of sources, their total, and the licences that restrict use."""
    rows = [
        {
            "name": name,
            "documents": source["documents"],
            "megabytes": None if source["bytes"] is None else source["bytes"] / 1e6,
            "tokens": source["tokens"],
            "licenses": ", ".join(map(str, source["licenses"])),
        }
        for name, source in sources.items()
    ]
    licenses = sorted({str(license) for source in sources.values() for license in source["licenses"]})
    columns = {column: [row[column] for row in rows] for column in ("documents", "megabytes", "tokens")}
    unknown = [column for column, values in columns.items() if None in values]
    return {
        "sources": rows,
        "total": {**{name: sum(values) for name, values in columns.items() if name not in unknown}, "unknown": unknown},
        "restricted": ", ".join(license for license in licenses if _RESTRICTED.search(license)),
    }


def _read_energy(path: Path) -> dict[str, Any] | None:
    """Return kwh, cpu_kwh, gpu_kwh, ram_kwh, kg, country, pue, hours, num_starts and incomplete (or None).

    Nothing was measured without a file, without a row, or when all rows are zero.

    Raises:
        InputError: see `read_energy`.
    """
    total, account = read_energy(path.parent)
    if total is None:
        return None
    if total.energy_kwh == 0:
        return None
    return {
        "kwh": total.energy_kwh,
        "cpu_kwh": total.cpu_kwh,
        "gpu_kwh": total.gpu_kwh,
        "ram_kwh": total.ram_kwh,
        "kg": total.emissions_kg,
        "country": place(total.country_iso_code, total.region),
        "pue": total.pue,
        "hours": total.duration_seconds / 3600,
        "num_starts": total.num_starts - num_speed_tests(path.parent),
        "incomplete": describe_incomplete(account),
    }
