"""`ttl corpus`: the phases of the corpus stage one after the other, each in a folder that its settings name."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..arguments import write_yaml
from ..checks import ensure, ensure_packages
from ..data.input_files import SourceFile, hash_files, resolve_files
from ..stage_folder import StageFolder, lock_run_folder, sha256_file, sha256_json
from .chain import build_chain, ensure_packages_of
from .config import STEP_NAMES, BuildConfig
from .funnel import Funnel
from .passport import make_passport, read_statistics, write_passport
from .phases import CONFIG_FILE, PLAN_FILE, duplicates_config, evaluation_index, forget_indexes
from .shards import WorkShard, plan_shards, read_seconds, write_plan

_WORK = "work"
# Settings that change how the work is done, and not what comes out.
_NOT_THE_RESULT = ("executor", "workers", "slurm", "output_dir")


def build_corpus(config: BuildConfig) -> Path:
    """Make the corpus, or go on where a start was stopped, and return its folder.

    Raises:
        InputError: a source, a step or a setting is refused, before work starts; or nothing is left of the corpus.
        RunFailedError: a task failed.
    """
    ensure_packages("corpus", "datatrove")
    chains = [build_chain(config, name) for name in config.source_configs]
    for chain in chains:
        ensure_packages_of(chain)
    if config.duplicates is not False:
        duplicates_config(config)
    forget_indexes()
    has_sets = evaluation_index(config) is not None
    sets = _evaluation_files(config) if has_sets else []
    shards = plan_shards(config)
    _refuse_evaluation_data(shards, sets)
    folder = Path(config.output_dir)
    lock = lock_run_folder(folder)
    try:
        hashes = hash_files([SourceFile(shard.name, Path(shard.path)) for shard in shards], recognise=False)
        places = _write_plan(config, shards, hashes, hash_files(sets, recognise=False), folder)
        complete = _run_phases(config, places, len(shards), has_sets=has_sets)
        if complete:
            _finish(config, places, folder, hashes)
    finally:
        lock.release()
    return folder


def _evaluation_files(config: BuildConfig) -> list[SourceFile]:
    """Return the files of the evaluation sets, each under the names of its set and its own."""
    return [
        SourceFile(f"{name}/{file.name}", file.path)
        for name, place in config.decontamination["sets"].items()
        for file in resolve_files(f"decontamination.sets.{name}.inputs", list(place["inputs"]))
    ]


def _refuse_evaluation_data(shards: list[WorkShard], sets: list[SourceFile]) -> None:
    """Refuse a source whose files are those of an evaluation set.

    Raises:
        InputError: a file is both.
    """
    names = {file.path.resolve(): file.name.partition("/")[0] for file in sets}
    for shard in shards:
        name = names.get(Path(shard.path).resolve())
        ensure(
            name is None,
            f"sources.{shard.source}.inputs: {shard.name} is a file of the evaluation set {name}. A corpus must not "
            "hold what models are measured by. Leave it out.",
        )


def _write_plan(
    config: BuildConfig, shards: list[WorkShard], hashes: dict[str, str], sets: dict[str, str], folder: Path
) -> dict[str, Path]:
    """Write config and shards into the folder of this work, and return the folders of its phases.

    The name of a phase's folder ends with a hash of all that decides what the phase makes, the phases before included.
    """
    values = {name: value for name, value in asdict(config).items() if name not in _NOT_THE_RESULT}
    reading = {"sources": {name: {key: value for key, value in vars(source).items()
                                  if key not in ("weight", "share", "max_epochs", "url", "revision", "register")}
                           for name, source in config.source_configs.items()},
               "files": hashes, "shards": [asdict(shard) for shard in shards], "sample": config.sample}  # fmt: skip
    cleaning = {name: values[name] for name in STEP_NAMES[:-3]}
    decided: dict[str, Any] = {
        "clean": [reading, cleaning, values["duplicates"]],
        "duplicates": values["duplicates"],
        "phrases": [values["decontamination"], sets],
        "finish": [values["toxicity"], values["mixing"].get("tokenizer")],
        "mix": [values["mixing"], {name: [source.weight, source.share, source.max_epochs] for name, source in
                                   config.source_configs.items()}],
    }  # fmt: skip
    places: dict[str, Path] = {}
    digest = ""
    for phase, content in decided.items():
        digest = sha256_json([digest, content])
        places[phase] = folder / _WORK / f"{phase}-{digest[:12]}"
    work = folder / _WORK / f"plan-{digest[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    write_yaml(work / CONFIG_FILE, {**values, "output_dir": str(folder)})
    write_plan(work / PLAN_FILE, shards)
    return {"plan": work, **places}


def _run_phases(config: BuildConfig, places: dict[str, Path], tasks: int, *, has_sets: bool) -> bool:
    """Run the phases; return whether all is done, which under Slurm it is not when the jobs are handed in."""
    from .engine import make_executor, missing_tasks, run_executor

    text = {name: str(place) for name, place in places.items()}
    duplicates = text["duplicates"] if config.duplicates is not False else ""
    common = {"work": text["plan"], "clean": text["clean"]}
    phases: list[tuple[str, str, int, dict[str, Any]]] = [("clean", "clean_shard", tasks, common)]
    if duplicates:
        phases.append(("duplicates", "find_all_duplicates", 1, {**common, "duplicates": duplicates}))
    if has_sets:
        counting = {**common, "duplicates": duplicates, "phrases": text["phrases"]}
        phases.append(("phrases", "count_phrases", tasks, counting))
    finishing = {**common, "duplicates": duplicates, "phrases": text["phrases"], "finish": text["finish"]}
    phases.append(("finish", "finish_shard", tasks, finishing))
    phases.append(("mix", "mix", 1, {"work": text["plan"], "finish": text["finish"], "output": text["mix"]}))
    before = None
    for phase, function, count, arguments in phases:
        executor = make_executor(config.executor, places[phase], f"corpus.phases:{function}", count, arguments,
                                 config.workers, config.slurm, before)  # fmt: skip
        run_executor(executor, phase)
        before = executor
        if phase == "clean" and config.executor != "slurm":
            check_broken_rows(config, places["clean"])
    return not any(missing_tasks(places[phase], count) for phase, _, count, _ in phases)


def check_broken_rows(config: BuildConfig, clean: Path) -> None:
    """Check that few rows of each source cannot be read.

    Raises:
        InputError: more than `max_broken_share` of a source; where the first are stands in the message.
    """
    funnel = Funnel()
    for path in sorted(clean.glob("[0-9]*.json")):
        funnel.add(Funnel.read(path))
    for name, steps in funnel.counts.items():
        count = steps["read"]
        broken = count.reasons["broken row"]
        where = ", ".join(sample["place"] for sample in funnel.samples(name, "read", "broken row")[:3])
        ensure(
            broken <= config.max_broken_share * count.documents_in,
            f"sources.{name}: {broken:,} of {count.documents_in:,} rows cannot be read, more than "
            f"max_broken_share={config.max_broken_share:g}; such as {where}. Repair them, or raise the share.",
        )


def _finish(config: BuildConfig, places: dict[str, Path], folder: Path, hashes: dict[str, str]) -> None:
    """Move the corpus to its place and write its manifest."""
    funnel = Funnel()
    for phase in ("clean", "finish"):
        for path in sorted(places[phase].glob("[0-9]*.json")):
            funnel.add(Funnel.read(path))
    for split in ("train", "validation"):
        if (places["mix"] / split).is_dir():
            target = folder / split
            target.mkdir(exist_ok=True)
            for path in target.glob("*.parquet"):
                path.unlink()
            for path in sorted((places["mix"] / split).glob("*.parquet")):
                (target / path.name).hardlink_to(path)
    figures = json.loads((places["mix"] / "shares.json").read_text(encoding="utf-8"))
    if config.duplicates is not False:
        figures["duplicates"] = json.loads((places["duplicates"] / "counts.json").read_text(encoding="utf-8"))
    seconds = {phase: read_seconds(place) for phase, place in places.items() if phase != "plan"}
    files = {str(path.relative_to(folder)): sha256_file(path) for split in ("train", "validation")
             for path in sorted((folder / split).glob("*.parquet"))}  # fmt: skip
    write_passport(folder, make_passport(config, funnel, read_statistics(places["finish"]), figures, files), funnel)
    StageFolder(folder, "corpus", "corpus").finish(
        {"config": asdict(config), "inputs": hashes, **figures, "seconds": seconds}
    )
