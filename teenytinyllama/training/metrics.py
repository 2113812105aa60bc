"""Metrics: what a run reports while it trains, in metrics.jsonl, in console lines and in loss.png.

`MetricsCallback` writes a record a logging step and one an evaluation, and counts tokens/s and MFU (model FLOPs
utilisation: the share of the device's peak that training reaches) by both `presets.MFU_CONVENTIONS`. Below it is what
is read from the records after the last step: mean speeds, the best held-out score, and whether the score got worse
before the end.
"""

import itertools
import json
import math
import statistics
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpointing.checkpoints import complete_checkpoints
from ..checks import RunFailedError, beside_the_model
from ..disk import replace_file
from ..energy.emissions import close_line
from ..gpus import device_name, peak_flops
from ..planning.memory import mean_step_speed
from ..presets import MFU_CONVENTIONS, flops_per_token, matrix_flops_per_token
from ..stage_folder import METRICS_NAME, PLOT_NAME, numbered_jsonl_records, read_jsonl_records
from .caps import SpendingCallback

# What the message of a loss that is not finite says, by which others tell such an end from other failures.
DIVERGED = "training has diverged"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl or samples.jsonl without the damaged ones.

    A training goes on although some of them are lost: people read these records, and no result depends on them.
    """
    return read_jsonl_records(path, _check_figures)


def _check_figures(record: dict[str, Any]) -> None:
    """Check that a record has a step, and that its figures are numbers.

    Raises:
        ValueError: it is damaged.
    """
    figures = [record.get(name, 0) for name in ("tokens", "loss", "tokens_per_second", "bits_per_byte", "accuracy")]
    if type(record.get("step")) is not int or not all(type(value) in (int, float) for value in figures):
        raise ValueError("no step, or a figure that is no number")


def rewind_jsonl(path: Path, step: int) -> None:
    """Drop the records after `step`: the resumed run makes them again.

    Damaged lines between records that are kept stay in the file, so that readers see the gap.
    """
    steps = {number: record["step"] for number, record in numbered_jsonl_records(path, _check_figures)}
    last = max((number for number, found in steps.items() if found <= step), default=0)
    lines = path.read_bytes().split(b"\n")[:last] if path.is_file() else []
    kept = [line for number, line in enumerate(lines, start=1) if steps.get(number, step) <= step]
    replace_file(path, b"".join(line + b"\n" for line in kept))


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one record to a jsonl file."""
    close_line(path)  # a disk that was full may have cut off the record before
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def plot_loss(
    metrics_path: Path,
    plot_path: Path,
    held_out_key: str = "bits_per_byte",
    held_out_label: str = "held-out bits per byte",
    loss_unit: str = "nats per token",
) -> None:
    """Draw the training loss and a held-out score against tokens.

    Both are in bits per byte where the training loss is known in that unit (pretraining), else in nats a token. A
    held-out score in neither unit, such as a share of pairs, has an axis of its own on the right.
    """
    from matplotlib.figure import Figure  # without pyplot: no display is needed
    from matplotlib.ticker import EngFormatter

    records = read_jsonl(metrics_path)
    losses = [record for record in records if "loss" in record]
    loss_key, loss_name = "loss", f"training loss ({loss_unit})"
    one_unit = held_out_key == "bits_per_byte"
    if one_unit and losses and all(record.get("train_bits_per_byte") is not None for record in losses):
        loss_key, loss_name = "train_bits_per_byte", "bits per byte"
    elif one_unit:
        held_out_key, loss_name = "nats_per_token", "nats per token"
        held_out_label = held_out_label.replace("bits per byte", "nats per token")
    train = [(record["tokens"], record[loss_key]) for record in losses]
    points = [(r["tokens"], r[held_out_key], r.get("documents")) for r in records if r.get(held_out_key) is not None]
    held_out, whole = (
        [point[:2] for point in points if (point[2] == points[0][2]) is alike] for alike in (True, False)
    )
    figure = Figure(figsize=(8, 4.5), dpi=120)
    axis = figure.subplots()
    lines: list[Any] = []
    if train:
        lines += axis.plot(*zip(*_with_breaks(train), strict=True), color="tab:blue", label="training loss")
    gaps = [axis.axvspan(start, end, color="0.85", label="records lost") for start, end in gaps_of(train)]
    axis.set_xlabel("tokens")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_ylabel(loss_name, color="black" if one_unit else "tab:blue")
    axis.grid(alpha=0.3)
    if held_out and one_unit:
        for some, look, name in ((held_out, "o-", held_out_label), (whole, "D", "all documents held out")):
            lines += axis.plot(*zip(*some, strict=True), look, color="tab:red", label=name) if some else []
    elif held_out:
        right = axis.twinx()
        lines += right.plot(*zip(*held_out, strict=True), "o-", color="tab:red", label=held_out_label)
        right.set_ylabel(held_out_label, color="tab:red")
        right.set_ylim(bottom=0)
    axis.set_ylim(bottom=0)
    lines += gaps[:1]
    axis.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    figure.tight_layout()
    partial = plot_path.with_name("partial-" + plot_path.name)
    figure.savefig(partial)
    partial.replace(plot_path)


def gaps_of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return where records are missing, as (tokens, tokens): between neighbours that are further apart than most are.

    Args:
        points: (tokens, value) in order. Records may also be missing before the first one.
    """
    places = [0.0, *(tokens for tokens, _ in points)]
    distances = [after - before for before, after in itertools.pairwise(places)]
    usual = statistics.median(distances[1:]) if len(distances) > 2 else math.inf
    return [
        pair for pair, distance in zip(itertools.pairwise(places), distances, strict=True) if distance > 1.5 * usual
    ]


def _with_breaks(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points, and in each gap between them one that is not drawn, so that no line crosses the gap."""
    breaks = [((start + end) / 2, math.nan) for start, end in gaps_of(points) if start]
    return sorted([*points, *breaks], key=lambda point: point[0])


class Evaluation(Protocol):
    """What the metrics callback needs of a held-out evaluation.

    Attributes:
        last: the newest summary, or None.
        last_step: the step of that summary.
        plot_key: the figure of a summary that is drawn.
        plot_label: its name and unit.
    """

    last: dict[str, Any] | None
    last_step: int
    plot_key: str
    plot_label: str

    def describe(self) -> str:
        """Return the newest summary as a line."""


class MetricsCallback(TrainerCallback):
    """Write `metrics.jsonl` and one console line per logging step, draw `loss.png`, stop on a loss that is not finite.

    Time spent in evaluation, sampling and saving is not counted in tokens/s.
    """

    def __init__(
        self,
        folder: Path,
        tokens_per_step: int,
        evaluation: Evaluation,
        spending: SpendingCallback,
        bytes_per_token: float | None = None,
        logged: tuple[str, ...] = (),
        knows_flops: bool = True,
        loss_unit: str = "nats per token",
    ) -> None:
        """Report about the run in `folder`.

        Args:
            folder: the run's folder.
            tokens_per_step: tokens of one optimizer step, over all ranks.
            evaluation: scores held-out data.
            spending: counts what was spent so far.
            bytes_per_token: of the training text, to state the loss in bits per byte; None: the loss has another unit.
            logged: names of more figures that the Trainer logs and that are recorded.
            knows_flops: whether all parameters are trained, so that the FLOPs of MFU are known.
            loss_unit: unit of the training loss.
        """
        self.path, self.plot_path = folder / METRICS_NAME, folder / PLOT_NAME
        self.tokens_per_step, self.evaluation, self.spending = tokens_per_step, evaluation, spending
        self.bytes_per_token, self.logged = bytes_per_token, logged
        self.knows_flops, self.loss_unit = knows_flops, loss_unit
        self.record: dict[str, Any] | None = None  # the newest one, for trackers
        self._saving = False
        self._bar: Any = None
        self._plotted_step = 0
        self._eval_bar: Any = None
        self._flops_per_token: dict[str, int] = {}  # by convention
        self._peak = 1.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Drop the records after the resumed step, and start the clock and the bar."""
        if not state.is_world_process_zero:
            return
        with beside_the_model(f"cutting back {METRICS_NAME}"):
            rewind_jsonl(self.path, state.global_step)
        config = kwargs["model"].config
        counted = (flops_per_token(config), matrix_flops_per_token(config))
        self._flops_per_token = dict(zip(MFU_CONVENTIONS, counted, strict=True))
        self._peak = peak_flops(device_name())[0] * args.world_size
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps", disable=None)
        self._logged_step = state.global_step
        self._start = self._logged_time = self._step_end = time.perf_counter()
        self._paused = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar; the last step is always logged."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self._bar is not None:
            self._bar.update(1)
            self._step_end = time.perf_counter()

    def _pause(self) -> None:
        """Leave the time since the last event out of the speed."""
        now = time.perf_counter()
        self._paused += now - self._step_end
        self._step_end = now

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Record and print the training loss with speed, MFU, energy and money.

        Raises:
            RunFailedError: the loss is not finite. Every rank sees the same loss, so all of them stop.
        """
        if not logs or "loss" not in logs:
            return
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise RunFailedError(
                f"loss={loss} at step {state.global_step}: {DIVERGED}. The last complete checkpoint is from "
                "before; lower learning_rate or lengthen warmup_steps and start in a new folder."
            )
        if not state.is_world_process_zero:
            return
        now = time.perf_counter()
        seconds = max(now - self._logged_time - self._paused, 1e-9)
        tokens_per_second = (state.global_step - self._logged_step) * self.tokens_per_step / seconds
        steps_left = state.max_steps - state.global_step
        record = {
            "step": state.global_step,
            "tokens": state.global_step * self.tokens_per_step,
            "loss": loss,
            **({"train_bits_per_byte": loss / math.log(2) / self.bytes_per_token} if self.bytes_per_token else {}),
            **{name.removeprefix("rewards/").replace("/", "_"): logs[name] for name in self.logged if name in logs},
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": tokens_per_second,
            **self.mfu(tokens_per_second),
            **self.spending.record(steps_left),
            "seconds": now - self._start,
        }
        self.record = record
        with beside_the_model(f"writing {METRICS_NAME}"):
            append_jsonl(self.path, record)
        self._logged_time, self._logged_step, self._paused = now, state.global_step, 0.0
        self._bar.write(_console_line(record, state.max_steps, self.spending.seconds_left(steps_left)))

    def mfu(self, tokens_per_second: float) -> dict[str, float | None]:
        """Return the share of the ranks' peak that a speed reaches (MFU) by each convention; None if it is not known.

        A share above 1 shows that the peak was measured too low; from then on MFU counts as not known.
        """
        shares = {name: tokens_per_second * flops / self._peak for name, flops in self._flops_per_token.items()}
        if self.knows_flops and shares["mfu"] > 1:
            self.knows_flops = False
            self._bar.write(f"MFU        n/a from here on: a step reached {100 * shares['mfu']:.0f} % of the measured "
                            "peak, which was therefore taken beside other work")  # fmt: skip
        return {name: share if self.knows_flops else None for name, share in shares.items()}

    def on_prediction_step(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Advance the evaluation's bar."""
        if not state.is_world_process_zero:
            return
        if self._eval_bar is None:
            self._eval_bar = tqdm(
                total=len(kwargs["eval_dataloader"]), desc="evaluating", unit=" batches", leave=False, disable=None
            )
        self._eval_bar.update(1)

    def on_evaluate(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Record and print the held-out score, and draw the curve."""
        if self._eval_bar is not None:
            self._eval_bar.close()
            self._eval_bar = None
        self.evaluation.last_step = state.global_step
        if not state.is_world_process_zero:
            return
        tokens, spent = state.global_step * self.tokens_per_step, self.spending.now
        self.record = {"step": state.global_step, "tokens": tokens, **(self.evaluation.last or {}),
                       "kwh": spent.kwh, "kg_co2e": spent.kg}  # fmt: skip
        with beside_the_model(f"writing {METRICS_NAME}"):
            append_jsonl(self.path, self.record)
        if self._bar is not None:
            self._bar.write(f"held out  step {state.global_step}  {self.evaluation.describe()}")
            self._plot(state.global_step)
            self._pause()

    def on_save(self, *_: Any, **kwargs: Any) -> None:
        """Begin a pause, which lasts until the callbacks after this one have saved too."""
        self._saving = True

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        """End the pause of a save."""
        if self._saving and self._bar is not None:
            self._pause()
        self._saving = False

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Close the bar and draw the curve."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._plot(state.global_step)

    def _plot(self, step: int) -> None:
        """Draw the curve up to a step, once; before the first step there is none."""
        if step == self._plotted_step:
            return
        with beside_the_model(f"the plot {PLOT_NAME}"):
            plot_loss(self.path, self.plot_path, self.evaluation.plot_key, self.evaluation.plot_label, self.loss_unit)
            self._plotted_step = step


def _console_line(record: dict[str, Any], max_steps: int, eta_seconds: float | None) -> str:
    step, grad_norm = record["step"], record["grad_norm"]
    return (
        f"step {step:>6}/{max_steps}  {100 * step / max_steps:5.1f} %  {record['tokens'] / 1e6:9.2f}M tokens  "
        f"loss {record['loss']:.4f}  {_some(record, 'train_bits_per_byte', 'bpb {:.3f}  ')}"
        f"{_some(record, 'margins', 'margin {:.3f}  ')}{_some(record, 'accuracies', 'accuracy {:.3f}  ')}"
        f"lr {record['learning_rate']:.2e}  grad {grad_norm if grad_norm is None else format(grad_norm, '.2f')}  "
        f"{record['tokens_per_second']:,.0f} tok/s  {_some(record, 'mfu', 'MFU {:.1%} of 6N+12LhT, ')}"
        f"{_some(record, 'mfu_matrix_products', '{:.1%} of matrix products  ')}"
        f"{_so_far_and_projected(record)}"
        f"{'' if eta_seconds is None else f'ETA {timedelta(seconds=int(eta_seconds))}'}"
    )


def _so_far_and_projected(record: dict[str, Any]) -> str:
    """Return energy, emissions and money so far and at the end, as `0.0123 of 0.0500 kWh  `, without unknown ones."""
    parts = []
    for name, unit, factor, form in (
        ("kwh", "kWh", 1, ".4f"),
        ("kg_co2e", "g CO2e", 1000, ".1f"),
        ("usd", "USD", 1, ".2f"),
    ):
        if record.get(name) is not None:
            end = record.get(f"projected_{name}")
            parts.append(f"{format(record[name] * factor, form)}"
                         + (f" of {format(end * factor, form)}" if end is not None else "") + f" {unit}  ")  # fmt: skip
    return "".join(parts)


def _some(record: dict[str, Any], name: str, form: str) -> str:
    """Return a figure of a record in a format, or an empty text where the record has none."""
    value = record.get(name)
    return "" if value is None else form.format(value).replace("%", " %")


RISE_WORTH_TELLING = 0.005  # share of the lowest held-out score; evaluations near the end of a good run differ by less


def comparable_scores(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the held-out records by step that scored the same text as the newest evaluations did.

    The final score is left out, because it is of all documents, and so are the scores of a shorter run that was made
    longer, because its evaluations read fewer tokens.

    Args:
        records: of `metrics.jsonl`.
    """
    scored = [record for record in records if record.get("bits_per_byte") is not None]
    sizes = [record.get("scored_bytes") for record in scored]
    newest = next((size for size in reversed(sizes) if sizes.count(size) > 1), None)
    return [record for record, size in zip(scored, sizes, strict=True) if newest is not None and size == newest]


def lowest_held_out(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return step, tokens and bits per byte of the best evaluation during a run; None if there is none to compare.

    Args:
        records: of `metrics.jsonl`.
    """
    best = min(comparable_scores(records), key=lambda record: record["bits_per_byte"], default=None)
    return best and {name: best[name] for name in ("step", "tokens", "bits_per_byte")}


def describe_turn(folder: Path, records: list[dict[str, Any]], epochs: float) -> str | None:
    """Return a warning about a run whose held-out score got worse before its end, with the best checkpoint, or None.

    Args:
        folder: the run's folder.
        records: of its `metrics.jsonl`.
        epochs: how often the run read its rows.
    """
    scores = comparable_scores(records)
    lowest = lowest_held_out(records)
    if lowest is None or scores[-1]["step"] != max(record["step"] for record in records):
        return None
    end = scores[-1]["bits_per_byte"]
    if end <= (1 + RISE_WORTH_TELLING) * lowest["bits_per_byte"]:
        return None
    cause = f"the rows were read {epochs:.1f} times, which was too often. Train on more text, or end near that step."
    if epochs <= 1 or lowest["step"] == 0:
        cause = "the learning rate may be too high, or the held-out text of another kind."
    score_of = {record["step"]: record["bits_per_byte"] for record in scores}
    kept = [(score_of[step], path.name) for step, path in complete_checkpoints(folder) if step in score_of]
    score, name = min(kept, default=(math.inf, ""))
    better = f"{name} has {score:.4f}." if score < end else "No checkpoint with a better score was kept."
    return (
        f"best at step {lowest['step']:,} of {scores[-1]['step']:,} ({lowest['bits_per_byte']:.4f} bits per byte; "
        f"{end:.4f} at the end): {cause} {better}"
    )


def speeds_of_steps(train: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and median of the speed of the steps, and their mean MFU; None where it is not known throughout."""
    speeds = [record["tokens_per_second"] for record in train]
    mean = mean_step_speed(train)

    def mean_mfu(name: str) -> float | None:  # it is the speed times a constant
        known = bool(train) and all(record.get(name) is not None for record in train)
        return train[-1][name] / train[-1]["tokens_per_second"] * mean if known and mean else None

    return {
        "steps_tokens_per_second": mean,
        "median_tokens_per_second": statistics.median(speeds) if speeds else None,
        **{name: mean_mfu(name) for name in MFU_CONVENTIONS},
    }
