"""`ttl emissions RUN…`: what runs consumed and emitted, what it bought, and where every figure is from.

Written into each run's folder: `emissions.json`, `emissions.md` and `emissions.png`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure
from ..emissions import EMISSIONS_NAME, EmissionsTotal, grid_intensity, read_emissions
from ..ledger import FLUSH_SECONDS, LEDGER_NAME, Account, read_ledger
from ..manifest import MANIFEST_NAME, write_json
from ..training.metrics import METRICS_NAME, read_jsonl

REPORT_JSON, REPORT_MARKDOWN, REPORT_PLOT = "emissions.json", "emissions.md", "emissions.png"
ELSEWHERE = ("BRA", "PRT", "FRA", "DEU", "USA")
# "The average passenger vehicle emits about 400 grams of CO2 per mile": US EPA, Greenhouse Gas Emissions from a Typical
# Passenger Vehicle (EPA-420-F-23-014, 2023). A mile is 1.609344 km.
CAR_GRAMS_PER_KM = 400 / 1.609344


def write_energy_report(folder: Path, usd_per_hour: float | None = None, elsewhere: tuple[str, ...] = ELSEWHERE) -> str:
    """Write the energy report of a run into its folder and return its Markdown.

    Args:
        folder: of a run, finished or not.
        usd_per_hour: what the machine costs, for the money; None leaves it out.
        elsewhere: countries whose grids the same energy is set against.

    Raises:
        InputError: no run, nothing measured, files that contradict each other, an unknown country, or a price below 0.
    """
    report = energy_report(folder, usd_per_hour, elsewhere)
    write_json(folder / REPORT_JSON, report)
    text = render_markdown(report)
    (folder / REPORT_MARKDOWN).write_text(text, encoding="utf-8")
    plot_energy(report["scores"], folder / REPORT_PLOT)
    return text


def energy_report(folder: Path, usd_per_hour: float | None, elsewhere: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of the report; see `write_energy_report`."""
    ensure(
        folder.is_dir(), f"RUN={folder}: no such folder. Give the output_dir of `ttl pretrain`, `ttl sft` or `ttl dpo`."
    )
    ensure(usd_per_hour is None or usd_per_hour >= 0, f"price={usd_per_hour}: must be 0 or more, in USD an hour.")
    total = read_emissions(folder / EMISSIONS_NAME)
    ensure(
        total is not None and total.energy_kwh > 0,
        f"RUN={folder}: its energy was not measured ({EMISSIONS_NAME} is missing or holds only zeros), so there is "
        "nothing to report.",
    )
    assert total is not None
    account = read_ledger(folder)
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
        "usd": None if usd_per_hour is None else hours * usd_per_hour,
        "usd_per_hour": usd_per_hour,
        "num_starts": total.num_starts,
        "country_iso_code": total.country_iso_code,
        "grams_per_kwh": grams_per_kwh,
        "pue": 1.0,
        "elsewhere_kg": {name: total.energy_kwh * grid_intensity(name, "elsewhere") / 1000 for name in elsewhere},
        "car_km": total.emissions_kg * 1000 / CAR_GRAMS_PER_KM,
        "ledger": _ledger_figures(account, total),
        "scores": scores,
        "half": _half(scores),
        "files": {"energy": EMISSIONS_NAME, "starts": LEDGER_NAME, "scores": METRICS_NAME},
    }


def _ledger_figures(account: Account | None, total: EmissionsTotal) -> dict[str, Any] | None:
    if account is None:
        return None
    return {
        "useful_kwh": account.useful_kwh,
        "repeated_kwh": account.repeated_kwh,
        "repeated_kg": account.repeated_kwh * total.emissions_kg / total.energy_kwh,
        "num_machines": len({start.machine for start in account.starts}),
        "num_kills": account.num_kills,
        "missing_seconds_at_most": account.num_kills * FLUSH_SECONDS,
        "methods": sorted({method for start in account.starts for method in start.methods}),
        "warnings": sorted({warning for start in account.starts for warning in start.warnings}),
        "starts": [{"machine": start.machine, "first_step": start.first_step, "last_step": _last_step(start),
                    "ended": start.ended, **asdict(start.total)} for start in account.starts],
    }  # fmt: skip


def _last_step(start: Any) -> int:
    return int(start.points[-1][0]) if start.points else int(start.first_step)


def _scores(folder: Path) -> list[dict[str, Any]]:
    """Return the held-out scores with what had been consumed when they were made, over all starts."""
    keys = ("step", "tokens", "scored_tokens", "bits_per_byte", "perplexity", "kwh", "kg_co2e")
    records = read_jsonl(folder / METRICS_NAME)
    return [{key: record[key] for key in keys if key in record} for record in records if "bits_per_byte" in record]


def _half(scores: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return which share of the gain in bits per byte the first half of the energy bought.

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
    return {"step": middle["step"], "kwh": middle["kwh"], "bits_per_byte": middle["bits_per_byte"], "share": share}


def render_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# Energy and emissions of {report['run']}", ""]
    if not report["complete"]:
        lines += ["The run is not finished: these are the figures so far.", ""]
    grid = f"at {report['grams_per_kwh']:.1f} g/kWh ({report['country_iso_code']})"
    rows = {
        "Energy": f"{report['energy_kwh']:.4g} kWh",
        "of which GPU": f"{report['gpu_kwh']:.4g} kWh" if report["gpu_kwh"] else "none seen",
        "of which processor": f"{report['cpu_kwh']:.4g} kWh",
        "of which memory": f"{report['ram_kwh']:.4g} kWh",
        "Emissions": f"{report['emissions_kg']:.4g} kg CO2e, {grid}",
        "The same by car": f"{report['car_km']:.3g} km (US EPA: 400 g a mile)",
        "Time": f"{report['hours']:.3g} h in {report['num_starts']} start(s)",
    }
    if report["usd"] is not None:
        rows["Money"] = f"{report['usd']:.2f} USD at {report['usd_per_hour']} an hour"
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items()), ""]
    lines += _ledger_lines(report["ledger"], report["energy_kwh"])
    lines += ["## The same energy elsewhere", "", "| country | kg CO2e |", "|---|---|",
              *(f"| {name} | {kg:.4g} |" for name, kg in report["elsewhere_kg"].items()), ""]  # fmt: skip
    lines += _score_lines(report["scores"], report["half"])
    lines += [
        "## Where the figures are from",
        "",
        f"Energy: `{EMISSIONS_NAME}` (codecarbon, offline), of the machine itself, without cooling and losses of the "
        f"building (PUE {report['pue']:.1f}). Starts: `{LEDGER_NAME}`. Scores: `{METRICS_NAME}`, with the energy of "
        "all starts up to then. Grid intensities: the yearly means inside codecarbon.",
        "",
    ]
    return "\n".join(lines)


def _ledger_lines(ledger: dict[str, Any] | None, energy_kwh: float) -> list[str]:
    if ledger is None:
        return [f"The run has no `{LEDGER_NAME}`: repeated work and methods are not known.", ""]
    useful, repeated = ledger["useful_kwh"], ledger["repeated_kwh"]
    lines = [
        "## Useful and repeated work",
        "",
        "| | kWh | share |",
        "|---|---|---|",
        f"| steps that were kept | {useful:.4g} | {useful / energy_kwh:.1%} |",
        f"| steps done again after a stop | {repeated:.4g} | {repeated / energy_kwh:.1%} |",
        f"| all | {energy_kwh:.4g} | |",
        "",
    ]
    if ledger["num_kills"]:
        lines += [f"{ledger['num_kills']} start(s) ended without a last row: of each, the consumption of up to "
                  f"{FLUSH_SECONDS} s is missing.", ""]  # fmt: skip
    lines += ["Measured by: " + ", ".join(ledger["methods"]) + ".", ""] if ledger["methods"] else []
    return [*lines, *(f"- {warning}." for warning in ledger["warnings"]), ""]


def _score_lines(scores: list[dict[str, Any]], half: dict[str, Any] | None) -> list[str]:
    if not scores:
        return []
    names = ("step", "tokens", "scored tokens", "bits per byte", "perplexity", "kWh", "kg CO2e")
    lines = ["## What it bought", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for score in scores:
        whole = (f"{score[key]:,}" for key in ("step", "tokens", "scored_tokens"))
        parts = (f"{score[key]:.4g}" for key in ("bits_per_byte", "perplexity", "kwh", "kg_co2e"))
        lines.append("| " + " | ".join([*whole, *parts]) + " |")
    if half is not None:
        lines += ["", f"The first {half['kwh']:.3g} kWh, about half, bought {half['share']:.0%} of the gain in bits "
                      f"per byte (step {half['step']:,}: {half['bits_per_byte']:.4g})."]  # fmt: skip
    return [*lines, "", f"![Energy and perplexity]({REPORT_PLOT})", ""]


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


def write_energy_reports(folders: list[Path], usd_per_hour: float | None, elsewhere: tuple[str, ...]) -> str:
    """Write the report of each run and return them, several with a table of their sum at the end.

    Raises:
        InputError: see `write_energy_report`; all runs are read before any report is written.
    """
    ensure(len(set(folders)) == len(folders), f"RUN={', '.join(map(str, folders))}: one is named twice. Keep one.")
    reports = [energy_report(folder, usd_per_hour, elsewhere) for folder in folders]
    text = "\n".join(write_energy_report(folder, usd_per_hour, elsewhere) for folder in folders)
    if len(reports) == 1:
        return text
    rows = [f"| {report['run']} | {report['energy_kwh']:.4g} | {report['emissions_kg']:.4g} | {report['hours']:.3g} |"
            for report in reports]  # fmt: skip
    sums = [sum(report[key] for report in reports) for key in ("energy_kwh", "emissions_kg", "hours")]
    table = ["## All of them", "", "| run | kWh | kg CO2e | hours |", "|---|---|---|---|", *rows,
             f"| all | {sums[0]:.4g} | {sums[1]:.4g} | {sums[2]:.3g} |", ""]  # fmt: skip
    return text + "\n" + "\n".join(table)


def parse_elsewhere(text: str | None) -> tuple[str, ...]:
    """Return the countries of `BRA,PRT`, or the usual ones.

    Raises:
        InputError: one is unknown.
    """
    if text is None:
        return ELSEWHERE
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        grid_intensity(name, "elsewhere")
    if not names:
        raise InputError("elsewhere: empty. Give countries such as BRA,PRT, or leave it out.")
    return names
