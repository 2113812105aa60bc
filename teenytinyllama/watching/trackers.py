"""Trackers: TensorBoard, Trackio, Weights & Biases and the like get the figures of metrics.jsonl, and one line a run.

transformers has a callback for each tracker; alone they would get the Trainer's few figures, and a resumed run would
begin a second line. Here they stand behind one callback of ours: it hands them our records, keeps one name for all
starts of a run, and sends no step twice. What fails in a tracker is a warning, because no result depends on it.
"""

import copy
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from ..checks import beside_the_model
from ..stage_folder import TRACKERS_NAME, parse_record, write_json

_PROJECT = "teenytinyllama"
_LIBRARY_PROJECT = "huggingface"  # TrainingArguments' default of `project`
_MOST_FAILURES = 3  # after so many a tracker gets nothing more: each call may have waited for a network
_NOT_SENT = {"step", "seconds", "epoch"}


class Records(Protocol):
    """What writes the records of a run.

    Attributes:
        record: the newest one of `metrics.jsonl`, or None.
    """

    record: dict[str, Any] | None


def take_reporters(trainer: Any) -> list[TrainerCallback]:
    """Take off a Trainer the callbacks that print, and those of trackers, which `report_to` has made; return these."""
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    made_by = "transformers.integrations"
    found = [each for each in trainer.callback_handler.callbacks if type(each).__module__.startswith(made_by)]
    for tracker in found:
        trainer.remove_callback(tracker)
    return found


def figures_of(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a record by name; of each source of held-out text its bits per byte."""
    found = {prefix + name: value for name, value in record.items()
             if type(value) in (int, float) and name not in _NOT_SENT}  # fmt: skip
    per_source = record.get("per_source")
    for source, scores in per_source.items() if isinstance(per_source, dict) else ():
        if type(scores.get("bits_per_byte")) in (int, float):
            found[f"{prefix}bits_per_byte_of_{source}"] = scores["bits_per_byte"]
    return found


class TrackersCallback(TrainerCallback):
    """Hand a run's records to the callbacks of trackers. Must come after the callback that writes the records."""

    def __init__(self, folder: Path, trackers: Sequence[TrainerCallback], records: Records) -> None:
        """Report about the run in `folder`, whose `records` are sent to `trackers`."""
        self.folder, self.trackers, self.records = folder, list(trackers), records
        self._failures: Counter[str] = Counter()
        self._set: list[str] = []  # variables of the environment that are ours
        self._sent: dict[str, Any] = {}
        self._scored_step = -1
        self._last: tuple[Any, ...] = ()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Give the run its name, the same at every start, and begin."""
        if not self.trackers:
            return
        if state.is_world_process_zero:
            with beside_the_model(f"reading or writing {TRACKERS_NAME}"):
                self._sent = self._read()
                self._write()
            self._name_run()
        self._call("on_train_begin", args, state, control, **kwargs)

    def _read(self) -> dict[str, Any]:
        """Return the run's `id`, and the last `step` and `scored` step that earlier starts have sent."""
        path = self.folder / TRACKERS_NAME
        known: dict[str, Any] = {}
        if path.is_file():
            try:
                known = parse_record(path.read_bytes())
            except ValueError:  # a new line then begins, which is better than no line
                known = {}
        numbers = {name: known[name] if type(known.get(name)) is int else -1 for name in ("step", "scored")}
        run_id = known.get("id")
        return {"id": run_id if isinstance(run_id, str) and run_id.isalnum() else secrets.token_hex(4), **numbers}

    def _write(self) -> None:
        write_json(self.folder / TRACKERS_NAME, self._sent)

    def _name_run(self) -> None:
        """Tell trackers that read the environment which run goes on; what the user has set there stays."""
        wanted = {"WANDB_RUN_ID": self._sent.get("id", ""), "WANDB_RESUME": "allow", "WANDB_PROJECT": _PROJECT}
        self._set = [name for name, value in wanted.items() if value and name not in os.environ]
        os.environ.update({name: wanted[name] for name in self._set})
        for tracker in self.trackers:
            if getattr(tracker, "logging_dir", "") is None:  # TensorBoard's: else a folder of each start
                tracker.logging_dir = str(self.folder / "tensorboard")  # type: ignore[attr-defined]

    def _call(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call an event of all trackers, with a copy of the settings that names the run."""
        named = copy.copy(args)
        named.run_name = args.run_name or f"{self.folder.resolve().name}-{self._sent.get('id', '')}"
        if getattr(args, "project", None) == _LIBRARY_PROJECT:
            named.project = _PROJECT
        self._last = (args, state, control, kwargs.get("model"), kwargs.get("processing_class"))
        for tracker in list(self.trackers):
            name = type(tracker).__name__.removesuffix("Callback")
            with beside_the_model(f"the tracker {name}", lambda _, name=name: self._failures.update([name])):  # type: ignore[misc]
                getattr(tracker, event)(named, state, control, **kwargs)
            if self._failures[name] >= _MOST_FAILURES:
                print(
                    f"warning    the tracker {name} has failed {_MOST_FAILURES} times and gets nothing more.",
                    flush=True,
                )
                self.trackers.remove(tracker)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Send the newest record with what the Trainer logs, unless an earlier start has sent that step."""
        record = self.records.record
        if not self.trackers or not logs or "loss" not in logs or not state.is_world_process_zero or record is None:
            return
        if state.global_step > self._sent.get("step", -1):
            self._call("on_log", args, state, control, logs={**figures_of(logs), **figures_of(record)}, **kwargs)
            self._remember("step", state.global_step)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Send the newest held-out score; a second one of the same step is the final one, of all documents."""
        record, step = self.records.record, state.global_step
        if not self.trackers or not state.is_world_process_zero or record is None:
            return
        is_final = step == self._scored_step
        if step > self._sent.get("scored", -1) or is_final:
            kwargs.pop("metrics", None)
            figures = figures_of(record, "eval_final_" if is_final else "eval_")
            self._call("on_log", args, state, control, logs=figures, **kwargs)
            self._scored_step = step
            self._remember("scored", step)

    def _remember(self, what: str, step: int) -> None:
        self._sent[what] = step
        with beside_the_model(f"writing {TRACKERS_NAME}"):
            self._write()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Hand the event on."""
        self._call("on_step_end", args, state, control, **kwargs)

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Hand the event on."""
        self._call("on_epoch_end", args, state, control, **kwargs)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Hand the event on."""
        self._call("on_save", args, state, control, **kwargs)

    def close(self) -> None:
        """End the trackers' part of this start: after the final score, or when the run is given up."""
        if self._last:
            args, state, control, model, processing_class = self._last
            self._call("on_train_end", args, state, control, model=model, processing_class=processing_class)
        self.trackers, self._last = [], ()
        for name in self._set:
            os.environ.pop(name, None)
        self._set = []
