"""The energy report of a run as Markdown and as a plot."""

from pathlib import Path
from typing import Any

from ..checks import counted
from ..emissions import EMISSIONS_NAME
from ..grid import place
from ..ledger import FLUSH_SECONDS, LEDGER_NAME
from ..training.metrics import METRICS_NAME

REPORT_PLOT = "emissions.png"


def render_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# Energy and emissions of {report['run']}", ""]
    if not report["complete"]:
        lines += ["The run is not finished: these are the figures so far.", ""]
    least = "at least " if report["incomplete"] else ""
    if report["incomplete"]:
        lines += [f"**Incomplete since step {report['incomplete']['since_step']:,}**: the meter failed "
                  f"({report['incomplete']['reason']}), so energy is missing and the sums are the least that was used.",
                  ""]  # fmt: skip
    machines = f" on {report['num_machines']} machines" if report["num_machines"] > 1 else ""
    grid = f"at {report['grams_per_kwh']:.1f} g/kWh ({place(report['country_iso_code'], report['region'])})"
    rows = {
        "Energy": f"{least}{report['energy_kwh']:.4g} kWh",
        "of which GPU": f"{report['gpu_kwh']:.4g} kWh" if report["gpu_kwh"] else "none seen",
        "of which processor": f"{report['cpu_kwh']:.4g} kWh",
        "of which memory": f"{report['ram_kwh']:.4g} kWh",
        "Emissions": f"{least}{report['emissions_kg']:.4g} kg CO2e, {grid}",
        "The same by car": f"{report['car_km']:.3g} km (US EPA: 400 g a mile)",
        "Time": f"{report['hours']:.3g} h in {counted(report['num_starts'], 'start')}{machines}",
    }
    if report["starting_hours"]:
        rows["Before the meter ran"] = (
            f"{report['starting_hours']:.3g} h of imports and building, paid and not measured"
        )
    if report["usd"] is not None:
        rows["Money"] = _describe_money(report)
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items()), ""]
    lines += _ledger_lines(report["ledger"], report["energy_kwh"])
    lines += ["## GPU energy, checked", "", describe_gpu_check(report["gpu_check"]), ""]
    lines += ["## The same energy elsewhere", "", "| country | kg CO2e |", "|---|---|",
              *(f"| {name} | {kg:.4g} |" for name, kg in report["elsewhere_kg"].items()), ""]  # fmt: skip
    lines += _score_lines(report["scores"], report["half"])
    lines += [
        "## Where the figures are from",
        "",
        f"Energy: `{EMISSIONS_NAME}` (codecarbon, offline), {_describe_pue(report)}. Starts: `{LEDGER_NAME}`. Scores: "
        f"`{METRICS_NAME}`, with the energy of all starts up to then. Grid intensities: the yearly means inside "
        "codecarbon.",
        "",
    ]
    return "\n".join(lines)


def _describe_money(report: dict[str, Any]) -> str:
    """Return the money with the hours that are paid, and where the price is from."""
    hours = report["gpu_hours"]
    paid = "an hour" if hours is None else f"for an hour of one GPU, {hours:.4g} such hours"
    return f"{report['usd']:.2f} USD at {report['usd_per_hour']} {paid} ({report['price_source']})"


def _ledger_lines(ledger: dict[str, Any] | None, energy_kwh: float) -> list[str]:
    if ledger is None:
        return [f"The run has no `{LEDGER_NAME}`: repeated work and methods are not known.", ""]
    useful, repeated, test = ledger["useful_kwh"], ledger["repeated_kwh"], ledger["speed_test_kwh"]
    lines = [
        "## Useful and repeated work",
        "",
        "| | kWh | share |",
        "|---|---|---|",
        f"| steps that were kept | {useful:.4g} | {useful / energy_kwh:.1%} |",
        f"| steps done again after a stop | {repeated:.4g} | {repeated / energy_kwh:.1%} |",
        *([f"| the speed test before it | {test:.4g} | {test / energy_kwh:.1%} |"] if test else []),
        f"| all | {energy_kwh:.4g} | |",
        "",
        *_phase_lines(ledger["phases_kwh"], energy_kwh),
    ]
    if ledger["num_kills"]:
        lines += [f"{counted(ledger['num_kills'], 'start')} ended without a last row: of each, the consumption of up "
                  f"to {FLUSH_SECONDS} s is missing.", ""]  # fmt: skip
    lines += ["Measured by: " + ", ".join(ledger["methods"]) + ".", ""] if ledger["methods"] else []
    return [*lines, *(f"- {warning}." for warning in ledger["warnings"]), ""]


def _phase_lines(phases_kwh: dict[str, float], energy_kwh: float) -> list[str]:
    if not phases_kwh:
        return []
    names = {
        "speed test": "speed test",
        "training": "training",
        "evaluation": "evaluation, samples included",
        "saving": "saving",
    }
    rows = [f"| {names[name]} | {phases_kwh[name]:.4g} | {phases_kwh[name] / energy_kwh:.1%} |"
            for name in names if name in phases_kwh]  # fmt: skip
    rest = energy_kwh - sum(phases_kwh.values())
    if rest > 0.001 * energy_kwh:
        rows.append(f"| not told apart | {rest:.4g} | {rest / energy_kwh:.1%} |")
    return ["| what went on | kWh | share |", "|---|---|---|", *rows, ""]


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


def _describe_pue(report: dict[str, Any]) -> str:
    if report["pue"] == 1:
        return "of the machine itself, without cooling and losses of the building (PUE 1.0)"
    return (
        f"of the machine, {report['machine_kwh']:.4g} kWh, times a PUE of {report['pue']:.4g} for cooling and losses "
        "of the building (`pue` in the config)"
    )


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
        lines += ["", f"The first {half['kwh']:.3g} kWh, {half['energy_share']:.0%} of the energy up to "
                      f"the last score, bought {half['share']:.0%} of the gain in bits "
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
