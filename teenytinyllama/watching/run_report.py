"""`ttl report RUN`: one page about a run, from the files that the training writes, while it trains and afterwards.

The page is one file that loads nothing from a network. It is made by a process of its own, so that a training neither
waits for it nor fails with it. With `follow` it is made again every few seconds, and the browser reads it again by
itself (meta refresh), until the run is complete.
"""

import json
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..arguments import read_mapping
from ..checks import InputError, MissingFileError, counted, ensure, ensure_folder
from ..disk import replace_file
from ..stage_folder import (
    BAD_STEPS_NAME,
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    METRICS_NAME,
    REPORT_NAME,
    SAMPLES_NAME,
    __version__,
    find_manifest,
    parse_record,
    read_jsonl_records,
    utc_now,
)
from .curves import Curve, Panel, draw_panel, running_mean, shown

STAGES = ("pretrain", "sft", "dpo")
_MARK = '<meta name="generator" content="teenytinyllama report">'  # in the head of each page of ours
_MOST_SAMPLED_STEPS, _MOST_CHARACTERS = 12, 1500
_RECENT = 5  # log lines whose speed the time that is left is reckoned with


@dataclass
class ReportConfig:
    """`ttl report RUN`: the run, and where and how often its page is written."""

    run: str = field(metadata={"help": "folder of a run, complete or not"})
    follow: bool = field(default=False, metadata={"help": "write the page again and again until the run is complete"})
    every: float = field(default=15.0, metadata={"help": "with follow: seconds between two pages"})
    output_file: str | None = field(default=None, metadata={"help": "the page; null: report.html in the run's folder"})

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: an interval that is none.
        """
        ensure(
            math.isfinite(self.every) and 1 <= self.every <= 86_400,
            f"every={self.every}: must be from 1 to 86400 seconds, such as 15.",
        )


def run_report(config: ReportConfig) -> Path:
    """Write the page of a run, with `follow` until the run is complete, and return its path.

    Raises:
        InputError: see `check_run` and `page_path`.
    """
    folder = Path(config.run)
    check_run(folder)
    target = page_path(config)
    if config.follow and find_manifest(folder) is None:
        print(f"{target} is written every {config.every:g} s until the run is complete; open it in a browser. Ctrl-C "
              "ends this, and not the run.", flush=True)  # fmt: skip
    while write_page(folder, target, config.every if config.follow else None) and config.follow:
        time.sleep(config.every)
    return target


def check_run(folder: Path) -> None:
    """Check that a folder is that of a training.

    Raises:
        MissingFileError: there is no such folder.
        InputError: it is no run, or another stage made it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"run={folder}: no such folder. Give the output_dir of a training.")
    manifest = find_manifest(folder)
    ensure(
        manifest is None or manifest["stage"] in STAGES,
        f"run={folder}: was made by {(manifest or {}).get('stage')!r}, which trains nothing. Give the output_dir of "
        "`ttl pretrain`, `ttl sft` or `ttl dpo`.",
    )
    begun = any((folder / name).is_file() for name in (ENVIRONMENT_NAME, METRICS_NAME))
    ensure(
        begun,
        f"run={folder}: is no run, it has neither {ENVIRONMENT_NAME} nor {METRICS_NAME}. Give the output_dir of "
        "`ttl pretrain`, `ttl sft` or `ttl dpo`, once the training has begun.",
    )


def page_path(config: ReportConfig) -> Path:
    """Return where the page is written.

    Raises:
        InputError: the folder cannot be written to, or a file is there that is no page of ours.
    """
    target = Path(config.output_file) if config.output_file else Path(config.run) / REPORT_NAME
    ensure(not target.is_dir(), f"output_file={target}: is a folder. Name a file in it, such as {REPORT_NAME}.")
    ensure_folder("output_file", target.parent)
    if target.exists():
        with target.open("rb") as file:
            is_ours = _MARK.encode() in file.read(1000)
        ensure(is_ours, f"output_file={target}: exists and is no page of ours. Name another file.")
    return target


def write_page(folder: Path, target: Path, refresh: float | None) -> bool:
    """Write the page, so that a browser sees the old one or the whole new one; return whether the run goes on.

    Args:
        folder: of the run.
        target: the file.
        refresh: seconds after which the browser reads the page again; None for never.
    """
    facts = read_facts(folder)
    goes_on = not facts["complete"]
    text = render_page(facts, refresh if goes_on else None)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, text)
    return goes_on


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what the page says of a run: `complete`, `head`, `panels`, `samples`, `tables` and `remarks`.

    Records that are damaged are left out and counted among the remarks: a page is no reason to refuse a run.
    """
    records = read_jsonl_records(folder / METRICS_NAME, _check_record)
    manifest = find_manifest(folder)
    config = _config_of(folder, manifest)
    environment = _environment_of(folder)
    bad_steps = read_jsonl_records(folder / BAD_STEPS_NAME)
    train = [record for record in records if "loss" in record]
    remarks = []
    if lost := _num_damaged(folder / METRICS_NAME, len(records)):
        remarks.append(f"{counted(lost, 'damaged line')} of {METRICS_NAME} left out")
    if bad_steps:
        remarks.append(f"{counted(len(bad_steps), 'bad step')}, marked in the plots; {BAD_STEPS_NAME} has the rows")
    return {
        "name": folder.resolve().name,
        "complete": manifest is not None,
        "head": _head(folder, manifest, config, train),
        "panels": draw_panels(records, bad_steps),
        "samples": _samples_of(folder),
        "tables": {
            "Result": _flat((manifest or {}).get("results", {}).get("final", {}), ("per_source",)),
            "Model": _flat((manifest or {}).get("model", {})),
            "Training": _flat((manifest or {}).get("training", {})),
            "Config": _flat(config),
            "Environment": _flat(environment, ("identity",)),
        },
        "remarks": remarks,
    }


def _check_record(record: dict[str, Any]) -> None:
    if type(record.get("step")) is not int or type(record.get("tokens")) not in (int, float):
        raise ValueError("no step, or no tokens")


def _check_sample(row: dict[str, Any]) -> None:
    if [type(row.get(name)) for name in ("step", "prompt", "text")] != [int, str, str]:
        raise ValueError("no step, no prompt or no text")


def _num_damaged(path: Path, num_records: int) -> int:
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # the last one may still be written
    return max(0, sum(bool(line.strip()) for line in lines) - num_records)


def _config_of(folder: Path, manifest: dict[str, Any] | None) -> dict[str, Any]:
    try:
        return read_mapping(folder / CONFIG_NAME)
    except (InputError, OSError):  # absent, or damaged
        found = (manifest or {}).get("config")
        return dict(found) if isinstance(found, dict) else {}


def _environment_of(folder: Path) -> dict[str, Any]:
    try:
        return parse_record((folder / ENVIRONMENT_NAME).read_bytes())
    except (OSError, ValueError):
        return {}


def _head(
    folder: Path, manifest: dict[str, Any] | None, config: dict[str, Any], train: list[dict[str, Any]]
) -> dict[str, str]:
    """Return the few figures at the top of the page, each with its name."""
    if not train:
        return {"state": "complete" if manifest else "begun; the first figures come with the first log line"}
    last = train[-1]
    tokens_per_step = last["tokens"] / last["step"] if last["step"] else None
    max_tokens = config.get("max_tokens") or (config.get("max_steps") or 0) * (tokens_per_step or 0)
    done = f" of {max_tokens / tokens_per_step:,.0f}" if max_tokens and tokens_per_step else ""
    head = {"step": f"{last['step']:,}{done}", "tokens": shown(last["tokens"])}
    if manifest is None:
        age = max(0, time.time() - (folder / METRICS_NAME).stat().st_mtime)
        head = {"state": f"not complete; newest figures {timedelta(seconds=int(age))} before this page", **head}
        speed = statistics.median(each.get("tokens_per_second") or 0 for each in train[-_RECENT:])
        if max_tokens > last["tokens"] and speed > 0:
            head["steps left take about"] = str(timedelta(seconds=int((max_tokens - last["tokens"]) / speed)))
    else:
        head = {"state": f"complete ({manifest['stage']})", **head}
    figures = (("loss", "loss", ".4f"), ("train_bits_per_byte", "training bits per byte", ".4f"),
               ("tokens_per_second", "tokens/s", ",.0f"), ("kwh", "kWh", ".4g"), ("usd", "USD", ".2f"))  # fmt: skip
    for name, title, form in figures:
        if _is_figure(last.get(name)):
            end = last.get(f"projected_{name}")
            goal = f" of {format(end, form)}" if manifest is None and _is_figure(end) else ""
            head[title] = format(last[name], form) + goal
    return head


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _points(records: Iterable[dict[str, Any]], name: str, factor: float = 1.0) -> tuple[tuple[float, float], ...]:
    found = {record["tokens"]: record[name] * factor for record in records if _is_figure(record.get(name))}
    return tuple(sorted(found.items()))


def draw_panels(records: list[dict[str, Any]], bad_steps: list[dict[str, Any]]) -> list[Panel]:
    """Return the plots of a run, those that have points.

    Args:
        records: of `metrics.jsonl`.
        bad_steps: of `bad_steps.jsonl`.
    """
    train = [record for record in records if "loss" in record]
    held_out = [record for record in records if "loss" not in record]
    # The last score can be of all held-out documents, those before of a part: no point of the same curve.
    usual = [record for record in held_out if record.get("documents") == held_out[0].get("documents")]
    whole = [record for record in held_out if record.get("documents") != held_out[0].get("documents")]
    tokens_at = {record["step"]: record["tokens"] for record in records}
    marks = [(tokens_at[bad["step"]], f"bad step {bad['step']}: {bad.get('reason', '')}")
             for bad in bad_steps if bad.get("step") in tokens_at]  # fmt: skip

    def of_training(name: str) -> list[Curve]:
        points = _points(train, name)
        smooth = running_mean(points)
        return [Curve("training", points, "c0 faint" if smooth else "c0"), Curve("its running mean", smooth)]

    def of_held_out(name: str, factor: float = 1) -> list[Curve]:
        return [Curve("held out", _points(usual, name, factor), "c1", dotted=True),
                Curve("all held-out documents", _points(whole, name, factor), "c1")]  # fmt: skip

    pairs = any("margins" in record for record in train)
    loss, score = ("-log sigmoid of the margin", "preference_loss") if pairs else ("nats per token", "nats_per_token")
    falls: Any = {"marks": marks, "leaves_out_start": True}
    wanted = [
        draw_panel(f"loss ({loss})", [*of_training("loss"), *of_held_out(score)], **falls),
        draw_panel("bits per byte", [*of_training("train_bits_per_byte"), *of_held_out("bits_per_byte")], **falls),
        draw_panel("accuracy of preferences", [*of_training("accuracies"), *of_held_out("accuracy")]),
        draw_panel("margin of preferences", [*of_training("margins"), *of_held_out("margin")]),
        draw_panel("learning rate", [Curve("learning rate", _points(train, "learning_rate"))], marks),
        draw_panel("gradient norm", of_training("grad_norm"), marks, can_be_log=True),
        draw_panel("tokens/s", [Curve("tokens/s", _points(train, "tokens_per_second"))]),
        draw_panel("MFU (%)", [Curve("6N+12LhT", _points(train, "mfu", 100)),
                               Curve("matrix products alone", _points(train, "mfu_matrix_products", 100), "c1")]),
        draw_panel("energy (kWh)", [Curve("so far", _points(records, "kwh")),
                                    Curve("projected to the end", _points(train, "projected_kwh"), "c1")]),
        draw_panel("missing words found (%)", of_held_out("cloze_acc", 100)),
    ]  # fmt: skip
    return [panel for panel in wanted if panel is not None]


def _samples_of(folder: Path) -> list[dict[str, Any]]:
    """Return each prompt with its texts, the newest first, of at most a dozen steps at even distances."""
    rows = read_jsonl_records(folder / SAMPLES_NAME, _check_sample)
    steps = sorted({row["step"] for row in rows})
    if len(steps) > _MOST_SAMPLED_STEPS:
        last = _MOST_SAMPLED_STEPS - 1
        steps = [steps[round(place * (len(steps) - 1) / last)] for place in range(_MOST_SAMPLED_STEPS)]
    prompts = dict.fromkeys(row["prompt"] for row in rows)
    return [
        {
            "prompt": prompt,
            "texts": [
                {"step": row["step"], "text": row["text"][:_MOST_CHARACTERS]}
                for row in sorted(rows, key=lambda row: -row["step"])
                if row["prompt"] == prompt and row["step"] in steps
            ],
        }
        for prompt in prompts
    ]


def _flat(content: Any, without: tuple[str, ...] = (), prefix: str = "") -> dict[str, str]:
    """Return a nested mapping as dotted names with texts."""
    found: dict[str, str] = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if name in without or value is None:
            continue
        if isinstance(value, dict):
            found |= _flat(value, without, f"{prefix}{name}.")
        elif isinstance(value, float):
            found[prefix + name] = f"{value:.6g}"
        else:
            found[prefix + name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
    return found


def render_page(facts: dict[str, Any], refresh: float | None) -> str:
    """Return the page; everything on it is escaped.

    Args:
        facts: see `read_facts`.
        refresh: seconds after which the browser reads the page again; None for never.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("teenytinyllama.watching"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    readings = json.dumps([panel.readings for panel in facts["panels"]]).replace("<", "\\u003c")
    return environment.get_template("report.html.jinja").render(
        **facts, refresh=refresh, readings=readings, mark=_MARK, made=utc_now(), version=__version__
    )
