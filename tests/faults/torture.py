"""Faults that must not lose a run: a table of them, one case after the other, and what each lost and said.

    python tests/faults/torture.py 200            # as `make torture N=200`; goes on where it was stopped
    python tests/faults/torture.py 0 --fixed      # the fixed points instead of random ones
    python tests/faults/torture.py 0              # the table of what was tried so far

A case: start the real command, strike it, look at what is left, give the same command again until it ends with 0, and
compare its result with that of an undisturbed one. Each random case has its number as seed. A line of JSON a case goes
to `FOLDER/results.jsonl`; a case that is there is not run again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1
from typing import Any

from strikes import (
    CHECKPOINT_FILES,
    INPUT_FILES,
    RUN_FILES,
    Damage,
    Moment,
    Strike,
    Struck,
    at_point,
    by_full_disk,
    by_little_room,
    by_signals,
    flip_a_bit,
    truncate,
)
from works import REPOSITORY, SAVE_STEPS, Bench, Work, faults_of_checkpoints, lost_steps

# A signal before `ttl` has begun, or after its work is done, ends it as any process: with minus the signal's number.
KILLED, STOPPED, REFUSED, FAILED = -SIGKILL, 75, 2, 1


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: for the table.
        work: what it strikes.
        strike: how.
        codes: exit codes of the struck command that are right.
        told: what the user must be told, by the struck command or by the next one: a regular expression.
        ranks: of a training.
        exact: whether the result is the same to the last bit.
        small_disk: megabytes of the disk that holds the case, a tmpfs of its own; 0: any disk.
    """

    name: str
    work: str
    strike: Strike
    codes: Sequence[int]
    told: str = ""
    ranks: int = 1
    exact: bool = True
    small_disk: int = 0


def _step(number: int) -> Moment:
    return Moment("step", step=number)


_SAVE = "{out}/checkpoint-8/"
_KILLED_RANK = "was killed by SIGKILL .often: out of memory."
_HALF = "skipped    checkpoint-8: has no complete.json: it was not saved to its end"
_ASKED = "{}: asking the training to save and stop; send it again to kill"
_CHECKPOINTS, _TRAINER, _OPTIMIZER = (f"teenytinyllama.{name}" for name in (
    "checkpointing.checkpoints", "training.trainer:Pretrainer", "checkpointing.optimizer_state"))  # fmt: skip

FIXED = (
    Fault("kill -9 in a step", "pretrain", at_point("step 7", place=f"{_TRAINER}.training_step", call=7), [FAILED], _KILLED_RANK),
    Fault("kill -9 in the weights' save", "pretrain",
          at_point("half of them", place=f"{_TRAINER}._save_optimizer_and_scheduler", call=2, cut=[_SAVE + "model.safetensors"]),
          [FAILED], _HALF),
    Fault("kill -9 in the optimizer's save", "pretrain",
          at_point("half of it", place=f"{_OPTIMIZER}:save_optimizer", call=2, when="after",
                   cut=[_SAVE + "optimizer/00001.safetensors"], remove=[_SAVE + "optimizer/state.json"]), [FAILED], _HALF),
    Fault("kill -9 before the marker", "pretrain", at_point("all written", place=f"{_CHECKPOINTS}:write_marker", call=2), [FAILED], _HALF),
    Fault("kill -9 in the marker", "pretrain",
          at_point("half of it", place=f"{_CHECKPOINTS}:write_marker", call=2, append={_SAVE + "complete.json.partial": '{"step": 8, "wor'}),
          [FAILED], _HALF),
    Fault("kill -9 in rotation", "pretrain",
          at_point("half of checkpoint-4 deleted", place="shutil:rmtree", match="checkpoint-4", remove=["{out}/checkpoint-4/model.safetensors"]),
          [FAILED], _KILLED_RANK),
    Fault("kill -9 before the manifest", "pretrain", at_point("all done", place="teenytinyllama.stage_folder:StageFolder.finish"),
          [FAILED], _KILLED_RANK),
    Fault("TERM", "pretrain", by_signals("ttl", SIGTERM, moment=_step(6)), [STOPPED], _ASKED.format("SIGTERM")),
    Fault("INT", "pretrain", by_signals("ttl", SIGINT, moment=_step(9)), [STOPPED], _ASKED.format("SIGINT")),
    Fault("USR1", "pretrain", by_signals("ttl", SIGUSR1, moment=_step(3)), [STOPPED], _ASKED.format("SIGUSR1")),
    Fault("SIGSTOP of a rank, TERM twice", "pretrain", by_signals("rank, ttl", SIGSTOP, SIGTERM, SIGTERM, moment=_step(6)),
          [FAILED], "killed at the second signal"),
    Fault("out of memory in a step", "pretrain", at_point("step 7", place=f"{_TRAINER}.training_step", call=7, what="memory"),
          [FAILED], "failed: out of memory in training with micro-batches of 8 rows.*goes on from checkpoint-4", exact=False),
    Fault("full disk in a training", "pretrain", by_full_disk, [FAILED], "not saved  step|No space left", small_disk=8),
    Fault("kill -9 in packing", "pack",
          at_point("half a chunk", place="teenytinyllama.data.pack:Journal.append", call=4,
                   set={"teenytinyllama.data.pack:CHUNK_BYTES": 5_000},
                   append={"{out}/.partial/train.bin": "half", "{out}/.partial/validation.bin": "half"}), [KILLED]),
    Fault("kill -9 in the corpus stage", "corpus", at_point("a shard", place="teenytinyllama.corpus.phases:finish_shard", call=1),
          [FAILED, KILLED], "a process was killed, most likely because memory was short"),
    Fault("kill -9 in publishing", "publish", at_point("after a commit", place="teenytinyllama.publishing.hub:_commit", when="after"), [KILLED]),
)  # fmt: skip

# At moments and with files that are drawn; the first two are what a fast suite tries.
RANDOM = (
    Fault("kill -9 of a rank at a random moment", "pretrain", by_signals("rank", SIGKILL), [FAILED, KILLED]),
    Fault("kill -9 of ttl at a random moment", "pretrain", by_signals("ttl", SIGKILL), [KILLED]),
    Fault("TERM at a random moment", "pretrain", by_signals("ttl", SIGTERM), [STOPPED, -SIGTERM]),
    Fault("a bit of a checkpoint flipped", "pretrain", Damage(flip_a_bit, CHECKPOINT_FILES), [KILLED]),
    Fault("a file of a checkpoint truncated", "pretrain", Damage(truncate, CHECKPOINT_FILES), [KILLED]),
    Fault("kill -9 of ttl at a random moment", "pretrain", by_signals("ttl", SIGKILL), [KILLED]),
    Fault("INT at a random moment", "pretrain", by_signals("ttl", SIGINT), [STOPPED, -SIGINT]),
    Fault("a bit of another file of the run flipped", "pretrain", Damage(flip_a_bit, RUN_FILES), [KILLED]),
    Fault("another file of the run truncated", "pretrain", Damage(truncate, RUN_FILES), [KILLED]),
    Fault("kill -9 of a rank at a random moment", "pretrain", by_signals("rank", SIGKILL), [FAILED, KILLED]),
    Fault("USR1 at a random moment", "pretrain", by_signals("ttl", SIGUSR1), [STOPPED, -SIGUSR1]),
    Fault("a bit of rows or tokenizer flipped", "pretrain", Damage(flip_a_bit, INPUT_FILES), [KILLED]),
    Fault("rows or tokenizer truncated", "pretrain", Damage(truncate, INPUT_FILES), [KILLED]),
    Fault("full disk at a random moment", "pretrain", by_full_disk, [FAILED], small_disk=8),
    Fault("kill -9 of packing at a random moment", "pack", by_signals("ttl", SIGKILL), [KILLED]),
    Fault("SIGSTOP of a rank, then CONT", "pretrain", by_signals("rank", SIGSTOP, SIGCONT, is_fine=True), [0]),
    Fault("TERM to packing at a random moment", "pack", by_signals("ttl", SIGTERM), [STOPPED, -SIGTERM]),
    Fault("packing with little room", "pack", by_little_room(0.4), [REFUSED, FAILED], small_disk=4),
    Fault("kill -9 of the corpus stage at a random moment", "corpus", by_signals("ttl", SIGKILL), [KILLED]),
    Fault("the corpus stage with little room", "corpus", by_little_room(0.5), [REFUSED, FAILED], small_disk=4),
    Fault("kill -9 of publishing at a random moment", "publish", by_signals("ttl", SIGKILL), [KILLED]),
    Fault("kill -9 of one of two ranks", "pretrain", by_signals("rank", SIGKILL), [FAILED, KILLED], ranks=2),
    Fault("SIGSTOP of one of two ranks, TERM twice", "pretrain", by_signals("rank, ttl", SIGSTOP, SIGTERM, SIGTERM, moment=_step(6)),
          [FAILED], "killed at the second signal", ranks=2),
)  # fmt: skip


def run_case(bench: Bench, fault: Fault, seed: int, place: Path) -> dict[str, Any]:
    """Run a case in a folder that is deleted afterwards where nothing was wrong, and return its record."""
    draw, twin, begun = Random(seed), bench.twin(fault.work, fault.ranks), time.time()
    for _ in range(4):  # a moment that came after the command had ended is drawn again, from a shorter time
        shutil.rmtree(place, ignore_errors=True)
        work = bench.work(fault.work, place, fault.ranks)
        if fault.small_disk:  # what is said must not fail on the full disk
            work.logs = Path(tempfile.mkdtemp(prefix="faults-"))
        try:
            struck = fault.strike(work, draw, twin)
            if struck.code == 0 and not struck.is_fine:
                twin["seconds"] *= 0.6
                continue
            record = _what_came_of_it(fault, work, struck, twin)
        finally:
            work.close()
            if work.logs:
                shutil.rmtree(work.logs)
        break
    else:
        record = {"where": "nowhere", "lost_steps": 0, "wrong": ["struck four times after its end"]}
    if not record["wrong"]:
        shutil.rmtree(place)
    return {"fault": fault.name, "seed": seed, **record, "seconds": round(time.time() - begun, 1)}


def _what_came_of_it(fault: Fault, work: Work, struck: Struck, twin: dict[str, Any]) -> dict[str, Any]:
    """Look at what a fault has left, give the same command again, compare; return a record with all that is wrong."""
    is_training, lost = work.name == "pretrain", 0
    wrong = [] if struck.code in fault.codes else [f"the struck command ended with {struck.code}"]
    if is_training:
        wrong += faults_of_checkpoints(work.out) if struck.damaged is None else []
        lost = lost_steps(work.out) if work.out.is_dir() else 0
        limit = 2 * SAVE_STEPS if struck.damaged else SAVE_STEPS
        wrong += [f"{lost} steps are lost"] if lost > limit and not struck.loses_more else []
    codes, texts = [struck.code], [_lines(work, "start")]
    for number in range(2):
        if number or struck.damaged is None:
            struck.mend()
        codes.append(work.run(name=f"again{number}"))
        texts.append(_lines(work, f"again{number}"))
        if codes[-1] == 0:
            break
        if struck.damaged is None or struck.damaged.name not in texts[-1]:
            wrong.append(f"the same command ended with {codes[-1]}: {texts[-1][-300:]}")
    told = "\n".join(texts)
    wrong += ["a traceback"] if "Traceback" in told else []
    wrong += [f"nobody said {fault.told!r}"] if not re.search(fault.told, told, re.DOTALL) else []
    is_same = codes[-1] == 0 and _is_same(fault, struck, json.loads(json.dumps(work.digest())), twin["digest"])
    wrong += [] if is_same else ["the result is another one"]
    return {"where": struck.where, "codes": codes, "lost_steps": lost, "same": is_same,
            "told": _short(told, work.place), "wrong": wrong}  # fmt: skip


def _is_same(fault: Fault, struck: Struck, found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether a result is that of the undisturbed twin."""
    if struck.damaged is not None and struck.damaged.name == "metrics.jsonl":  # what was logged is lost, no more
        return found["weights"] == expected["weights"]
    if not fault.exact:  # other micro-batches: other sums of the same rows
        return all(abs(a - b) < 1e-4 for a, b in zip(found["losses"], expected["losses"], strict=True))
    return found == expected


def _lines(work: Work, name: str) -> str:
    """Return what a user was told by a start: stderr without bars, and the lines of stdout that speak of faults."""
    said = [line.split("\r")[-1] for line in work.said(name).splitlines()]
    printed = re.findall("^(?:skipped|not saved|warning|resumed|start |going on).*", work.printed(name), re.MULTILINE)
    return "\n".join([*[line for line in said if line.strip() and "it/s]" not in line], *printed])


_NO_NEWS = re.compile(r"^(start +from|.*documents/s|warning    .*(other measurements|learning))")


def _short(text: str, place: Path) -> list[str]:
    """Return the lines of a text without the case's folder and without lines that are no news."""
    lines = [line.replace(f"{place}/", "").strip() for line in text.splitlines()]
    return list(dict.fromkeys(line[:400] for line in lines if not _NO_NEWS.match(line)))[-12:]


def on_small_disk(bench: Bench, index: str, fault: Fault, seed: int, place: Path) -> dict[str, Any]:
    """Run a case in a process of its own whose folder is a small disk that nobody else sees (a tmpfs)."""
    bench.twin(fault.work, fault.ranks)
    place.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={fault.small_disk}m tmpfs "$0" && exec "$@"'
    words = [*unshare(), "sh", "-c", script, str(place), sys.executable, __file__, "0", "--folder",
             str(bench.folder.parent), "--one", f"{index}:{seed}:{place}/case"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"fault": fault.name, "seed": seed, "where": "", "wrong": [done.stderr[-1000:]], "lost_steps": 0}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def unshare() -> list[str]:
    """Return the words that give a command a mount table of its own."""
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]


def can_mount() -> bool:
    """Return whether a process here may have a small disk of its own."""
    if not shutil.which("unshare"):
        return False
    words = [*unshare(), "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /tmp"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def one(bench: Bench, index: str, seed: int, place: Path) -> dict[str, Any]:
    """Run the case of a table's row, such as `random3`, on a small disk where it needs one."""
    fault = ({"fixed": FIXED, "random": RANDOM}[index.rstrip("0123456789")])[
        int(index.lstrip("abcdefghijklmnopqrstuvwxyz"))
    ]
    if fault.small_disk and place.name != "case":
        return on_small_disk(bench, index, fault, seed, place)
    return run_case(bench, fault, seed, place)


def table(records: list[dict[str, Any]], counts: Callable[[dict[str, Any]], bool] = lambda record: True) -> str:
    """Return the Markdown table of cases: a row a fault."""
    rows = ["| fault | cases | steps lost, at most | same result | what the user was told |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(record["fault"] for record in records if counts(record)):
        cases = [record for record in records if record["fault"] == name]
        told = max((record.get("told", []) for record in cases), key=len)
        lost, same = max(record["lost_steps"] for record in cases), sum(bool(record.get("same")) for record in cases)
        said = " ⏎ ".join(told).replace("|", "\\|")
        rows.append(f"| {name} | {len(cases)} | {lost} | {same} of {len(cases)} | {said[:600]} |")
    return "\n".join(rows)


def main() -> int:
    """Run the cases that are not on record yet, and print the table of all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=int, help="random cases in all")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "torture")
    parser.add_argument("--fixed", action="store_true", help="the fixed points first")
    parser.add_argument("--one", default="", help="TABLE-ROW:SEED:FOLDER, as a case on a small disk is run")
    options = parser.parse_args()
    bench, results = Bench(options.folder.resolve() / "bench"), options.folder / "results.jsonl"
    bench.prepare()
    if options.one:
        index, seed, place = options.one.split(":")
        print(json.dumps(one(bench, index, int(seed), Path(place))))
        return 0
    records = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    known = {record["case"] for record in records}
    cases = [(f"fixed{row}", row) for row in range(len(FIXED))] if options.fixed else []
    cases += [(f"random{number}", number) for number in range(options.cases)]
    can_fill = can_mount()
    for case, seed in cases:
        index = case if case.startswith("fixed") else f"random{seed % len(RANDOM)}"
        fault = ({"f": FIXED, "r": RANDOM}[index[0]])[int(index.lstrip("abcdefghijklmnopqrstuvwxyz"))]
        if case in known or (fault.small_disk and not can_fill):
            continue
        record = {"case": case, **one(bench, index, seed, options.folder.resolve() / case)}
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)
        print(f"{case}: {fault.name}, {record['where']}: {'; '.join(record['wrong']) or 'nothing lost'}", flush=True)
    print(table(records))
    wrong = [record["case"] for record in records if record["wrong"]]
    print(f"{len(records)} cases, {len(wrong)} of them wrong: {', '.join(wrong)}" if wrong else f"{len(records)} cases")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
