"""`ttl corpus`: the phases of the corpus stage one after the other, each in a folder that its settings name."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..arguments import write_yaml
from ..checks import InputError, counted, ensure, ensure_folder, ensure_packages
from ..cleaning.toxicity import ToxicityConfig, ToxicityScorer
from ..data.input_files import SourceFile, hash_files, hub_datasets, resolve_files
from ..evaluation.config import SOURCES
from ..progress import progress
from ..stage_folder import StageFolder, __version__, find_manifest, lock_run_folder, sha256_file, sha256_json
from .chain import build_chain, duplicates_config, ensure_packages_of, evaluation_index, evaluation_sets
from .config import STEP_NAMES, BuildConfig, nested
from .documents import NO_DOCUMENT, Funnel, read_figures, read_seconds, reading
from .passport import (
    AUTHOR,
    SUMMARY_NAME,
    make_passport,
    read_statistics,
    render_training_summary,
    write_passport,
)
from .phases import BYTES_PER_TOKEN, CONFIG_FILE, PLAN_FILE, forget_indexes
from .sample_page import write_sample
from .shards import WorkShard, plan_shards, shard_bytes, write_plan

_WORK, BROKEN_ROWS_NAME = "work", "broken_rows.jsonl"
_FIGURES_FORM = 2  # of the rows and figures that the last phase writes; another one does that phase anew
_SPLITS = ("train", "validation")
_SAME_COMMAND = "When they have ended, the same command writes the corpus's passport, or hands in again what failed."
# Settings that change how the work is done, and not what comes out.
_NOT_THE_RESULT = ("executor", "eu_summary", "workers", "slurm", "output_dir")


def build_corpus(config: BuildConfig) -> Path:
    """Make the corpus, or go on where a start was stopped, and return its folder.

    With `sample` the steps work on few documents of each source, and the page that shows them is written and returned.
    What else lies in the folder stays as it is.

    Raises:
        InputError: a source, a step or a setting is refused, before work starts; or nothing is left of the corpus.
        RunFailedError: a task failed.
    """
    ensure_packages("corpus", "datatrove")
    from .engine import started_engine

    chains = [build_chain(config, name) for name in config.source_configs]
    for chain in chains:
        ensure_packages_of(chain)
    if config.duplicates is not False:
        duplicates_config(config)
    forget_indexes()
    index = evaluation_index(config)
    models = check_models(config)
    shards = plan_shards(config)
    folder = Path(config.output_dir)
    _ensure_own_folder(folder, shards)
    refuse_benchmarks(config, shards)
    lock = lock_run_folder(folder, "making a corpus there")
    try:
        files = list({shard.path: SourceFile(shard.name, Path(shard.path)) for shard in shards}.values())
        hashes = hash_files(files, recognise=False)
        by_path = dict(zip((str(file.path) for file in files), hashes.values(), strict=True))
        sets = _evaluation_files(config)
        _refuse_evaluation_data(shards, by_path, sets)
        places = _write_plan(config, shards, hashes, {"sets": sets, **models}, folder)
        with started_engine(config.executor, config.workers, config.slurm):
            sizes = [shard_bytes(shard, unpacked=True) for shard in shards]
            complete = _run_phases(config, places, sizes, has_sets=index is not None)
        if complete and config.sample is not None:
            return write_sample(config, places, shards, folder)
        if complete:
            _finish(config, places, folder, hashes)
    finally:
        lock.release()
    return folder


def _ensure_own_folder(folder: Path, shards: list[WorkShard]) -> None:
    """Check that the corpus may be written to a folder: what lies in `train` and `validation` there is replaced.

    Raises:
        InputError: it cannot be written to, holds files of a source or what another stage made, or has shards that no
            corpus stage made.
    """
    ensure_folder("output_dir", folder)
    fix = "Choose an empty or new folder."
    stage = (find_manifest(folder) or {}).get("stage")
    ensure(stage in (None, "corpus"), f"output_dir={folder}: was made by {stage!r}, not by 'corpus'. {fix}")
    for shard in shards:
        inside = folder.resolve() in Path(shard.path).resolve().parents
        ensure(not inside, f"output_dir={folder}: holds {shard.path}, a file of sources.{shard.source}. {fix}")
    if stage is None and not (folder / _WORK).is_dir():
        others = [path for split in _SPLITS for path in sorted((folder / split).glob("*.parquet"))]
        ensure(
            not others, f"output_dir={folder}: holds {(others or [folder])[0]}, which `ttl corpus` did not make. {fix}"
        )


def refuse_benchmarks(config: BuildConfig, shards: list[WorkShard]) -> None:
    """Refuse what `ttl evaluate` asks models: its datasets on the Hub, and files that it takes for them by their names.

    Raises:
        InputError: a source has one.
    """
    by_dataset = {source.dataset_id: task for task, source in SOURCES.items() if source.dataset_id}
    by_stem = {stem: task for task, source in SOURCES.items() for stem in source.test.stems}
    why = "A corpus must not hold what models are measured by. Leave it out"
    for name, source in config.source_configs.items():
        for dataset in set(hub_datasets(source.inputs)) & set(by_dataset):
            raise InputError(f"sources.{name}.inputs={dataset}: is the benchmark {by_dataset[dataset]} of `ttl "
                             f"evaluate`. {why}, or give its training split as a local file.")  # fmt: skip
    for shard in shards:
        stem = Path(shard.name).name.partition(".")[0].lower()
        if stem in by_stem and stem != "cloze":
            raise InputError(
                f"sources.{shard.source}.inputs={shard.path}: has the name under which `ttl evaluate` looks for the "
                f"benchmark {by_stem[stem]}. {why}; if it is something else, give the file another name."
            )


def check_models(config: BuildConfig) -> dict[str, str]:
    """Return an identity of each model that the config names, by its key; all are loaded once.

    Raises:
        InputError: one is not there, or is of another kind; before any work, and not when its step begins.
    """
    found: dict[str, str] = {}
    if config.toxicity is not False:
        from ..models import weights_identity

        settings = nested(ToxicityConfig, "toxicity", config.toxicity)
        try:
            found["toxicity.model"] = weights_identity(settings.model, settings.revision)
            ToxicityScorer(settings)
        except InputError as error:  # of a stage whose key of the model has another name
            raise type(error)(str(error).replace("name_or_path=", "toxicity.model=", 1)) from error
    else:
        print("warning: toxicity is left out: no classifier is named. The passport says so.", flush=True)
    if config.decontamination is False:
        print("warning: decontamination is left out: no evaluation set is named. The passport says so.", flush=True)
    name = config.mixing_config.tokenizer
    if name is not None:
        from ..models import load_tokenizer
        from ..tokenizer.encode import tokenizer_fingerprint

        found["mixing.tokenizer"] = tokenizer_fingerprint(load_tokenizer("mixing.tokenizer", name))
    return found


def _evaluation_files(config: BuildConfig) -> dict[str, dict[str, str]]:
    """Return the sha256 of the files of each evaluation set, by their paths."""
    return {
        name: {str(file.path): sha256_file(file.path)
               for file in resolve_files(f"decontamination.sets.{name}.inputs", place.inputs)}
        for name, place in evaluation_sets(config).items()
    }  # fmt: skip


def _refuse_evaluation_data(shards: list[WorkShard], hashes: dict[str, str], sets: dict[str, dict[str, str]]) -> None:
    """Refuse a source with a file of an evaluation set, or with a copy of one under whatever name.

    Args:
        shards: of all sources.
        hashes: sha256 of their files by path.
        sets: sha256 of the files of each evaluation set by path.

    Raises:
        InputError: a file is both.
    """
    known = {digest: (name, path) for name, files in sets.items() for path, digest in files.items()}
    for shard in shards:
        if hashes[shard.path] in known:
            name, path = known[hashes[shard.path]]
            what = "a file" if Path(path).resolve() == Path(shard.path).resolve() else f"a copy of {path}, a file"
            raise InputError(
                f"sources.{shard.source}.inputs={shard.path}: is {what} of the evaluation set {name}. A corpus must "
                "not hold what models are measured by. Leave it out."
            )


def _write_plan(
    config: BuildConfig, shards: list[WorkShard], hashes: dict[str, str], more: dict[str, Any], folder: Path
) -> dict[str, Path]:
    """Write config and shards into the folder of this work, and return the folders of its phases.

    The name of a phase's folder ends with a hash of all that decides what the phase makes, the phases before included.

    Args:
        config: of the corpus.
        shards: of all sources.
        hashes: sha256 of their files.
        more: hashes of what else decides: `sets`, and models by their keys.
        folder: of the corpus.
    """
    values = {name: value for name, value in asdict(config).items() if name not in _NOT_THE_RESULT}
    reading = {"sources": {name: {key: value for key, value in vars(source).items()
                                  if key not in ("weight", "share", "max_epochs", "url", "revision", "register")}
                           for name, source in config.source_configs.items()},
               "files": hashes, "shards": [asdict(shard) for shard in shards], "sample": config.sample,
               "version": __version__}  # fmt: skip
    cleaning = {name: values[name] for name in STEP_NAMES[:-3]}
    decided: dict[str, Any] = {
        "clean": [reading, cleaning, values["duplicates"]],
        "duplicates": values["duplicates"],
        "phrases": [values["decontamination"], more["sets"]],
        "finish": [values["toxicity"], values["mixing"].get("tokenizer") or BYTES_PER_TOKEN, more],
        "mix": [_FIGURES_FORM, values["mixing"],
                {name: [source.weight, source.share, source.max_epochs] for name, source in
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


def _run_phases(config: BuildConfig, places: dict[str, Path], sizes: list[float], *, has_sets: bool) -> bool:
    """Run the phases; return whether all is done, which under Slurm it is not when the jobs are handed in."""
    from .engine import jobs_in_queue, make_executor, missing_tasks, note_jobs, run_executor, say_failures

    text, tasks = {name: str(place) for name, place in places.items()}, len(sizes)
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
    if config.sample is None:
        phases.append(("mix", "mix", 1, {"work": text["plan"], "finish": text["finish"], "output": text["mix"]}))
    executors: list[Any] = []
    jobs_file, total = places["plan"] / "jobs.json", sum(count for _, _, count, _ in phases)

    def missing() -> int:
        return sum(missing_tasks(places[phase], count) for phase, _, count, _ in phases)

    if config.executor == "slurm" and (waiting := jobs_in_queue(jobs_file)):
        where = f"{counted(len(waiting), 'job')} of this corpus in its queue ({', '.join(waiting)})"
        done = f"{total - missing():,} of {counted(total, 'task')} are complete"
        print(f"Slurm still has {where}; {done}. {_SAME_COMMAND}", flush=True)
        return False
    for phase, function, count, arguments in phases:
        if config.executor == "slurm":
            say_failures(places[phase], phase)
        if phase == "mix" and not missing_tasks(places["finish"], tasks):
            check_not_empty(config, read_funnel(places))
        executors.append(make_executor(config.executor, places[phase], f"corpus.phases:{function}", count, arguments,
                                       config.workers, config.slurm, executors[-1] if executors else None))  # fmt: skip
        run_executor(executors[-1], phase, sizes if count == tasks else [sum(sizes)])
        if phase == "clean" and config.sample is None and not missing_tasks(places[phase], count):
            check_broken_rows(config, places["clean"])
    if config.executor == "slurm" and (jobs := note_jobs(jobs_file, executors)):
        print(f"Handed in to Slurm: {counted(len(jobs), 'job')}, {', '.join(jobs)}, each waiting for the one before; "
              f"`squeue --me` shows them. {_SAME_COMMAND}", flush=True)  # fmt: skip
    return not missing()


def check_broken_rows(config: BuildConfig, clean: Path) -> None:
    """Check that few rows of each source cannot be read, and write those into one file, with the reason of each.

    Raises:
        InputError: more than `max_broken_share` of a source; where the first are stands in the message.
    """
    funnel = Funnel()
    for path in sorted(clean.glob("[0-9]*.json")):
        funnel.add(Funnel.read(path))
    target = Path(config.output_dir) / _WORK / BROKEN_ROWS_NAME
    lines = [line for path in sorted(clean.glob("[0-9]*.broken")) for line in path.read_text("utf-8").splitlines()]
    target.unlink(missing_ok=True)
    if lines:
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{counted(len(lines), 'row')} cannot be read, and are kept aside in {target}", flush=True)
    for name, steps in funnel.counts.items():
        count = steps["read"]
        broken = count.reasons["broken row"]
        if broken <= config.max_broken_share * count.documents_in:
            continue
        places = {sample["place"] for sample in funnel.samples(name, "read", "broken row")}
        own = [row for row in map(json.loads, lines) if row["place"] in places]
        where = ", ".join(f"{row['place']} ({row['reason']})" for row in own[:3])
        raise InputError(
            f"sources.{name}: {broken:,} of {count.documents_in:,} rows cannot be read, more than "
            f"max_broken_share={config.max_broken_share:g}; such as {where}. All of them are in {target}. Repair them, "
            "or raise the share."
        )


def read_funnel(places: dict[str, Path]) -> Funnel:
    """Return the funnel of all phases."""
    funnel = Funnel()
    for phase in ("clean", "finish"):
        for path in sorted(places[phase].glob("[0-9]*.json")):
            funnel.add(Funnel.read(path))
    return funnel


def check_not_empty(config: BuildConfig, funnel: Funnel) -> None:
    """Check that documents are left: of any source, and of each one that has a share.

    Raises:
        InputError: none are; the message names the step that dropped the last ones.
    """
    empty = {name: funnel.emptied_by(name) for name in config.source_configs if not funnel.left_of(name)}
    with_share = [name for name in empty if config.source_configs[name].share is not None]
    fix = "Loosen that step (--sample 50 shows what it drops), or leave the source out."
    if all(step == NO_DOCUMENT for step in empty.values()):
        fix = "Check what its files hold."
    if len(empty) == len(config.source_configs):
        by = "; ".join(f"{name}: {step}" for name, step in empty.items())
        raise InputError(f"sources: no document is left of any source. The last ones were dropped by {by}. {fix}")
    if with_share:
        name = with_share[0]
        raise InputError(f"sources.{name}: no document is left, and it has a share. The last ones were dropped by "
                         f"{empty[name]}. {fix}")  # fmt: skip


def _finish(config: BuildConfig, places: dict[str, Path], folder: Path, hashes: dict[str, str]) -> None:
    """Move the corpus to its place and write its manifest."""
    funnel = read_funnel(places)
    for split in _SPLITS:
        target, made = folder / split, sorted((places["mix"] / split).glob("*.parquet"))
        for path in target.glob("*.parquet"):  # also of a config that held documents out
            path.unlink()
        if made:
            target.mkdir(exist_ok=True)
        elif target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        for path in made:
            (target / path.name).hardlink_to(path)
    figures = read_figures(places["mix"] / "shares.json")
    if config.duplicates is not False:
        figures["duplicates"] = read_figures(places["duplicates"] / "counts.json")
    with reading(places["finish"]):
        statistics = read_statistics(places["finish"])
    seconds = {phase: read_seconds(place) for phase, place in places.items() if phase != "plan"}
    made = [path for split in _SPLITS for path in sorted((folder / split).glob("*.parquet"))]
    with progress(None, "hashing the corpus", "B", total=sum(path.stat().st_size for path in made)) as bar:
        files = {str(path.relative_to(folder)): sha256_file(path, bar.update) for path in made}
    passport = make_passport(config, funnel, statistics, figures, files)
    for name in config.source_configs:
        if not funnel.left_of(name):
            print(f"warning: sources.{name}: no document is left; the last were dropped by {funnel.emptied_by(name)}; "
                  "--sample 50 shows what it drops.", flush=True)  # fmt: skip
    for warning in passport["licence"]["warnings"]:
        print(f"warning: licence: {warning}", flush=True)
    for warning in passport["warnings"]:
        print(f"warning: {warning}", flush=True)
    write_passport(folder, passport, funnel)
    (folder / SUMMARY_NAME).unlink(missing_ok=True)
    if config.eu_summary:
        text = render_training_summary(passport)
        (folder / SUMMARY_NAME).write_text(text, encoding="utf-8")
        print(f"{folder / SUMMARY_NAME}: a draft; {text.count(AUTHOR) - 1} places are marked for you.", flush=True)
    StageFolder(folder, "corpus", "corpus").finish(
        {"config": asdict(config), "inputs": hashes, **figures, "seconds": seconds}
    )
    print(f"next: {folder / 'train'} as the inputs of `ttl tokenizer` and `ttl pack`", flush=True)
