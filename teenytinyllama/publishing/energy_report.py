"""Energy reports: `ttl emissions RUN…` says what runs consumed and emitted, what it bought, and where figures are from.

Written into each run's folder are `emissions.json`, `emissions.md` and `emissions.png`.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..arguments import read_mapping
from ..checkpointing.checkpoints import recorded_branch
from ..checks import InputError, counted, ensure
from ..energy.emissions import EmissionsTotal, grid_intensity, place, read_emissions
from ..energy.ledger import FLUSH_SECONDS, Account, describe_incomplete, num_speed_tests, read_energy
from ..gpus import find_gpu
from ..stage_folder import (
    CONFIG_NAME,
    EMISSIONS_NAME,
    ENERGY_JSON_NAME,
    ENERGY_MARKDOWN_NAME,
    ENERGY_PLOT_NAME,
    LEDGER_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    write_json,
)
from .facts import read_metrics
from .wording import markdown_environment


@dataclass
class EmissionsConfig:
    """`ttl emissions RUN ...`: the runs, and what their energy is compared with."""

    runs: list[str] = field(metadata={"help": "folders of runs"})
    price: float | None = field(default=None, metadata={"help": "USD for an hour of one GPU; null: the run's own"})
    elsewhere: str | None = field(
        default=None, metadata={"help": "countries whose grids the same energy is reckoned with, such as BRA,PRT"}
    )


def render_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    ledger = report["ledger"]
    return (
        markdown_environment()
        .get_template("emissions.md.jinja")
        .render(
            **report,
            place=place(report["country_iso_code"], report["region"]),
            starts=counted(report["num_starts"], "start"),
            kills=counted(ledger["num_kills"], "start") if ledger else "",
            flush_seconds=FLUSH_SECONDS,
            car_grams_per_mile=CAR_GRAMS_PER_MILE,
            gpu_check_said=describe_gpu_check(report["gpu_check"]),
            plot=ENERGY_PLOT_NAME,
        )
    )


def describe_gpu_check(check: dict[str, Any]) -> str:
    """Return what came of comparing codecarbon's GPU energy with the GPUs' own counters."""
    if check["difference_percent"] is None:
        return {
            "no GPU": "No GPU was seen, so there is nothing to be cross-checked.",
            "not recorded": "The GPUs' own counters were not recorded, so there is nothing to check against.",
            "not available": f"The GPUs' own counters are not available: {check['reason']}.",
        }[check["status"]]
    text = (
        f"codecarbon: {check['codecarbon_kwh']:.4g} kWh; the GPUs' own counters (NVML) over the same time: "
        f"{check['counter_kwh']:.4g} kWh; difference {check['difference_percent']:+.2f} %."
    )
    if check["reason"]:
        text += f" Not to the end: {check['reason']}."
    if check["status"] == "differs":
        text += (
            f" **Warning**: that is more than {check['limit_percent']:g} %. GPUs may be missing or counted too often; "
            "do not publish the figure before you know why."
        )
    return text


def plot_energy(scores: list[dict[str, Any]], path: Path) -> None:
    """Draw held-out perplexity (bits per byte on the right) against energy; nothing without two scores."""
    points = [score for score in scores if score["scored_tokens"] == scores[0]["scored_tokens"]]
    if len(points) < 2:
        return
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    kwh = [score["kwh"] for score in points]
    lines = axis.plot(kwh, [score["perplexity"] for score in points], "o-", color="tab:blue", label="perplexity")
    axis.set_yscale("log")
    axis.set_xlabel("energy (kWh, all starts)")
    axis.set_ylabel("held-out perplexity", color="tab:blue")
    axis.grid(alpha=0.3)
    right = axis.twinx()
    lines += right.plot(
        kwh, [score["bits_per_byte"] for score in points], "s--", color="tab:red", label="bits per byte"
    )
    right.set_ylabel("held-out bits per byte", color="tab:red")
    right.set_ylim(bottom=0)
    axis.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    figure.tight_layout()
    partial = path.with_name("partial-" + path.name)
    figure.savefig(partial)
    pyplot.close(figure)
    partial.replace(path)


ELSEWHERE = ("BRA", "PRT", "FRA", "DEU", "USA")
# "The average passenger vehicle emits about 400 grams of CO2 per mile": US EPA, Greenhouse Gas Emissions from a Typical
# Passenger Vehicle (EPA-420-F-23-014, 2023). A mile is 1.609344 km.
CAR_GRAMS_PER_MILE = 400
CAR_GRAMS_PER_KM = CAR_GRAMS_PER_MILE / 1.609344
GPU_LIMIT_PERCENT = 5.0  # more than codecarbon and the GPUs' counters differ when both see the same GPUs
# Below, the moments at which the two are read matter more than what they measure: 6 s of a GPU at 600 W.
_LEAST_CHECKED_KWH = 0.001


def write_energy_report(folder: Path, usd_per_hour: float | None = None, elsewhere: tuple[str, ...] = ELSEWHERE) -> str:
    """Write the energy report of a run into its folder and return its Markdown.

    Args:
        folder: of a run, finished or not.
        usd_per_hour: for one GPU, or for a machine without one; None: the run's own `price`, if it has one.
        elsewhere: countries whose grids the same energy is set against.

    Raises:
        InputError: no run, nothing measured, files that contradict each other, an unknown country, or a price below 0.
    """
    report = energy_report(folder, usd_per_hour, elsewhere)
    write_json(folder / ENERGY_JSON_NAME, report)
    text = render_markdown(report)
    (folder / ENERGY_MARKDOWN_NAME).write_text(text, encoding="utf-8")
    plot_energy(report["scores"], folder / ENERGY_PLOT_NAME)
    return text


def energy_report(folder: Path, usd_per_hour: float | None, elsewhere: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of the report; see `write_energy_report`."""
    ensure(
        folder.is_dir(), f"RUN={folder}: no such folder. Give the output_dir of `ttl pretrain`, `ttl sft` or `ttl dpo`."
    )
    ensure(
        usd_per_hour is None or 0 <= usd_per_hour < math.inf,
        f"price={usd_per_hour}: must be 0 or more, in USD for an hour of one GPU.",
    )
    total, account = read_energy(folder)
    ensure(
        total is not None and total.energy_kwh > 0,
        f"RUN={folder}: its energy was not measured ({EMISSIONS_NAME} is missing or holds only zeros), so there is "
        "nothing to report.",
    )
    assert total is not None
    scores = _scores(folder)
    hours = total.duration_seconds / 3600
    grams_per_kwh = 1000 * total.emissions_kg / total.energy_kwh
    return {
        "run": folder.name,
        "complete": (folder / MANIFEST_NAME).is_file(),
        "energy_kwh": total.energy_kwh,
        "cpu_kwh": total.cpu_kwh,
        "gpu_kwh": total.gpu_kwh,
        "ram_kwh": total.ram_kwh,
        "emissions_kg": total.emissions_kg,
        "hours": hours,
        "starting_hours": account.starting_seconds / 3600 if account else 0.0,
        **_money(folder, usd_per_hour, account, total),
        "num_starts": total.num_starts - num_speed_tests(folder),
        "num_machines": total.num_machines,
        "country_iso_code": total.country_iso_code,
        "region": total.region or None,
        "grams_per_kwh": grams_per_kwh,
        "pue": round(total.pue, 6),
        "machine_kwh": total.machine_kwh,
        "elsewhere_kg": {name: total.energy_kwh * grid_intensity(name, key="elsewhere") / 1000 for name in elsewhere},
        "car_km": total.emissions_kg * 1000 / CAR_GRAMS_PER_KM,
        "incomplete": describe_incomplete(account),
        "branch": recorded_branch(folder),
        "ledger": _ledger_figures(account, total),
        "gpu_check": _check_gpus(account, total),
        "scores": scores,
        "half": _gain_of_first_half(scores),
        "files": {"energy": EMISSIONS_NAME, "starts": LEDGER_NAME, "scores": METRICS_NAME},
    }


def _money(folder: Path, given: float | None, account: Account | None, total: EmissionsTotal) -> dict[str, Any]:
    """Return what a run cost: price x GPUs x hours of each start on each machine, from the start of its process on.

    Starts that were recorded before ledgers told the GPUs count by the ranks in `run.json`, without the time before
    their meter ran; the `price` in the config of such a run was that of all machines together.
    """
    price, source = given, "--price"
    if price is None:
        price, source = _own_price(folder), "price in the run's config"
    found: dict[str, Any] = {"usd": None, "usd_per_hour": price, "price_source": None, "gpu_hours": None}
    if price is None:
        return found
    hours, gpu_hours = total.duration_seconds / 3600, account.paid_gpu_hours if account else None
    if gpu_hours is None and given is None:
        return {**found, "usd": price * hours, "price_source": f"{source}, which was that of all machines together "
                "when the run was recorded"}  # fmt: skip
    if gpu_hours is None:
        num_gpus = _recorded_gpus(folder)
        source += "" if num_gpus else "; the number of GPUs is not on record, one a machine is taken"
        gpu_hours = hours * (num_gpus or total.num_machines)
    return {**found, "usd": price * gpu_hours, "price_source": source, "gpu_hours": gpu_hours}


def _own_price(folder: Path) -> float | None:
    """Return the `price` in a run's config; None where it has none."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    price = read_mapping(path).get("price")
    return float(price) if isinstance(price, int | float) and price >= 0 else None


def _recorded_gpus(folder: Path) -> int | None:
    """Return the GPUs that a finished run trained on, 1 without one; None where its record does not tell."""
    path = folder / MANIFEST_NAME
    try:
        training = json.loads(path.read_text(encoding="utf-8"))["training"]
        on_gpu = training.get("peak_gpu_memory_gb") or find_gpu(str(training["hardware"]))
        return int(training["world_size"]) if on_gpu else 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _ledger_figures(account: Account | None, total: EmissionsTotal) -> dict[str, Any] | None:
    if account is None:
        return None
    return {
        "useful_kwh": account.useful_kwh,
        "repeated_kwh": account.repeated_kwh,
        "speed_test_kwh": account.speed_test_kwh,
        "repeated_kg": account.repeated_kwh * total.emissions_kg / total.energy_kwh,
        "phases_kwh": account.phases_kwh,
        "num_kills": account.num_kills,
        "missing_seconds_at_most": account.num_kills * FLUSH_SECONDS,
        "methods": sorted({method for start in account.starts for method in start.methods}),
        "warnings": sorted({warning for start in account.starts for warning in start.warnings}),
        "starts": [{"machine": start.machine, "first_step": start.first_step, "last_step": _last_step(start),
                    "ended": start.ended, "is_speed_test": start.is_speed_test, **asdict(start.total)}
                   for start in account.starts],
    }  # fmt: skip


def _check_gpus(account: Account | None, total: EmissionsTotal) -> dict[str, Any]:
    """Compare codecarbon's GPU energy with the GPUs' own counters, over the starts and as long as there are both."""
    starts = account.starts if account else []
    checked = [start.gpu_check for start in starts if start.gpu_check is not None]
    reasons = sorted({start.counter_reason for start in starts if start.counter_reason})
    found: dict[str, Any] = {
        "status": "not available" if reasons else "not recorded",
        "codecarbon_kwh": sum(pair[0] for pair in checked),
        "counter_kwh": sum(pair[1] for pair in checked),
        "difference_percent": None,
        "limit_percent": GPU_LIMIT_PERCENT,
        "num_starts": len(checked),
        "reason": "; ".join(reasons),
    }
    ours, theirs = found["codecarbon_kwh"], found["counter_kwh"]
    if max(ours, theirs) > 0:
        found["difference_percent"] = 100 * (ours - theirs) / max(theirs, 1e-12)
        differs = abs(found["difference_percent"]) > GPU_LIMIT_PERCENT and max(ours, theirs) >= _LEAST_CHECKED_KWH
        found["status"] = "differs" if differs else "agrees"
    elif total.gpu_kwh == 0 and not any("GPU" in method for start in starts for method in start.methods):
        found["status"] = "no GPU"
    return found


def _last_step(start: Any) -> int:
    return int(start.points[-1][0]) if start.points else int(start.first_step)


def _scores(folder: Path) -> list[dict[str, Any]]:
    """Return the held-out scores with what had been consumed when they were made, over all starts."""
    keys = ("step", "tokens", "scored_tokens", "bits_per_byte", "perplexity", "kwh", "kg_co2e")
    records = read_metrics(folder / METRICS_NAME)
    return [{key: record[key] for key in keys if key in record} for record in records if "bits_per_byte" in record]


def _gain_of_first_half(scores: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return which share of the gain in bits per byte the first half of the energy bought, by the nearest score.

    Among scores of the same documents: the final one is of all of them.
    """
    known = [score for score in scores if score["scored_tokens"] == scores[0]["scored_tokens"]]
    if len(known) < 3 or known[-1]["kwh"] <= 0:
        return None
    first, last = known[0], known[-1]
    gain = first["bits_per_byte"] - last["bits_per_byte"]
    middle = min(known, key=lambda score: abs(score["kwh"] - last["kwh"] / 2))
    if gain <= 0:
        return None
    share = (first["bits_per_byte"] - middle["bits_per_byte"]) / gain
    return {"step": middle["step"], "kwh": middle["kwh"], "energy_share": middle["kwh"] / last["kwh"],
            "bits_per_byte": middle["bits_per_byte"], "share": share}  # fmt: skip


def write_energy_reports(folders: list[Path], usd_per_hour: float | None, elsewhere: tuple[str, ...]) -> str:
    """Write the report of each run and return them, several with a table of their sum at the end.

    Raises:
        InputError: see `write_energy_report`, or two folders hold the same start; all runs are read before any report
            is written.
    """
    ensure(len(set(folders)) == len(folders), f"RUN={', '.join(map(str, folders))}: one is named twice. Keep one.")
    _refuse_copies(folders)
    reports = [energy_report(folder, usd_per_hour, elsewhere) for folder in folders]
    text = "\n".join(write_energy_report(folder, usd_per_hour, elsewhere) for folder in folders)
    if len(reports) == 1:
        return text
    rows = [f"| {report['run']} | {report['energy_kwh']:.4g} | {report['emissions_kg']:.4g} | {report['hours']:.3g} | "
            f"{'not known' if report['usd'] is None else format(report['usd'], '.2f')} |"
            for report in reports]  # fmt: skip
    sums = [sum(report[key] for report in reports) for key in ("energy_kwh", "emissions_kg", "hours")]
    paid = [report["usd"] for report in reports if report["usd"] is not None]
    usd = f"{sum(paid):.2f}" + ("" if len(paid) == len(reports) else f" ({len(paid)} of {len(reports)} runs)")
    usd = usd if paid else "not known"
    table = ["## All of them", "", "| run | kWh | kg CO2e | hours | USD |", "|---|---|---|---|---|", *rows,
             f"| all | {sums[0]:.4g} | {sums[1]:.4g} | {sums[2]:.3g} | {usd} |", ""]  # fmt: skip
    return text + "\n" + "\n".join(table)


def _refuse_copies(folders: list[Path]) -> None:
    """Refuse folders that share a start, whose energy the sum would hold twice."""
    seen: dict[str, Path] = {}
    for folder in folders:
        total = read_emissions(folder / EMISSIONS_NAME)
        for run_id in total.run_kwh if total else ():
            other = seen.setdefault(run_id, folder)
            ensure(
                other == folder,
                f"RUN={other}, {folder}: both hold the start {run_id}, so one is a copy of the other, or of a part of "
                "it. Name one of them.",
            )


def parse_elsewhere(text: str | None) -> tuple[str, ...]:
    """Return the countries of `BRA,PRT`, or the usual ones.

    Raises:
        InputError: one is unknown.
    """
    if text is None:
        return ELSEWHERE
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        grid_intensity(name, key="elsewhere")
    if not names:
        raise InputError("elsewhere: empty. Give countries such as BRA,PRT, or leave it out.")
    return names
