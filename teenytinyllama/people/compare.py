"""`ttl compare`: systems answer the same prompts once, people judge pairs of answers blindly, figures are written.

The folder of a comparison is what `study.read_study` reads. Once somebody has voted, nothing that a vote is about can
change: further systems can be added, other prompts or answers need another folder.
"""

import contextlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..chat.generation import Sampling
from ..checks import InputError, counted, ensure, ensure_file, ensure_folder, ensure_packages
from ..disk import replace_file
from ..energy.emissions import GridSettings
from ..energy.meter import check_energy
from ..stage_folder import command_line, parse_record, sha256_content, sha256_file, take_lock, write_json
from .answers import (
    AnswerPlan,
    System,
    answers_path,
    check_lengths,
    dump_answers,
    has_chat_template,
    identify,
    is_adapter_here,
    parse_system,
    read_given,
    write_answers_of,
)
from .judge import JUDGE_NAME, check_judge, judge_study
from .study import (
    ANSWERS_FOLDER,
    OWN_FORMS,
    PAGE_LOCK_NAME,
    PROMPTS_NAME,
    STUDY_FORMAT,
    STUDY_NAME,
    Prompt,
    Study,
    dump_prompts,
    read_prompts,
    read_study,
    spread,
)
from .votes import JUDGE_VOTES_NAME, VOTES_NAME, VoteFile, ensure_votes_of

LOCK_NAME = "compare.lock"
MAKING_NAME = "making.json"  # what `study.json` will say, while answers are written: a stopped start goes on from it


@dataclass
class CompareConfig(Sampling, GridSettings):
    """`ttl compare MODEL MODEL ...`: who answers what, how, and where people judge the answers."""

    output_dir: str = field(default="comparison", metadata={"help": "folder of the comparison, new or gone on with"})
    prompts: str = field(
        default="auto",
        metadata={"help": "chat or base: the 120 of this project in that form; auto: chat where all models have a chat "
                          "template; or a file of prompts, of instructions, or a tuning's answers.jsonl"},
    )  # fmt: skip
    n_prompts: int | None = field(
        default=None, metadata={"help": "so many of them, evenly over the kinds; default all"}
    )
    max_new_tokens: int = field(default=160, metadata={"help": "most tokens of an answer: people read all of them"})
    base_model: str | None = field(
        default=None, metadata={"help": "for adapters: their base model, if it is not where it was"}
    )
    use_cpu: bool = field(default=False, metadata={"help": "answer on the processor, also where there is a GPU"})
    serve: bool = field(
        default=True, metadata={"help": "false: only write answers, and the report of the votes so far"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "0.0.0.0 lets everybody on the network vote"})
    port: int = field(default=7861, metadata={"help": "of the page; 0: one that is free"})
    space_dir: str | None = field(default=None, metadata={"help": "write the page as a Space into this new folder"})
    merge: list[str] = field(
        default_factory=list, metadata={"help": "votes.jsonl of other copies of this folder, to add"}
    )
    judge: str | None = field(
        default=None,
        metadata={
            "help": "a chat model that judges the answers as well, in both orders; kept apart from people's votes"
        },
    )

    def __post_init__(self) -> None:
        """Refuse values before anything is loaded.

        Raises:
            InputError: a number out of range, a grid that is not known.
        """
        super().__post_init__()
        ensure(0 <= self.port <= 65535, f"port={self.port}: must lie between 0 and 65535.")
        check_energy(self)

    @property
    def sampling(self) -> Sampling:
        """Return how tokens are chosen."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.__dataclass_fields__})


def run_compare(config: CompareConfig, words: list[str]) -> int:
    """Let the systems answer, serve the page until Ctrl-C, and write the report.

    Args:
        config: see `CompareConfig`.
        words: the systems, as `answers.parse_system` reads them; empty: go on with the comparison in the folder.

    Raises:
        InputError: see `plan_study`; a port in use; vote files of other prompts or answers.
    """
    folder = Path(config.output_dir)
    ensure_packages("people", *(("fastapi", "uvicorn") if config.serve else ()), "evalica", "scipy")
    for path in config.merge:
        file = ensure_file("merge", path, "Give the votes.jsonl of another copy of this comparison.")
        ensure(file.is_file(), f"merge={path}: is no file. Give the votes.jsonl of another copy of this comparison.")
    if config.serve:
        from .voting import check_address

        check_address(config.host, config.port)
    known = words or (folder / STUDY_NAME).is_file()
    is_stopped = not known and (folder / MAKING_NAME).is_file()
    ensure(not is_stopped, f"output_dir={folder}: was stopped while answers were written. Name its systems as before.")
    ensure(known, f"ttl compare: needs two systems or more, or output_dir={folder} with a comparison to go on with.")
    if config.judge:
        check_judge(config.judge)
    if config.space_dir:
        from .share import check_space

        check_space(Path(config.space_dir))
    if words:
        make_study(config, words)
    study = read_study(folder)
    votes = VoteFile(folder / VOTES_NAME, study.prompts_sha256)
    if config.merge:
        others = [Path(path) for path in config.merge]
        for other in others:
            ensure_votes_of(study, VoteFile(other, study.prompts_sha256).read(), other)
        added, there = votes.merge(others)
        print(f"merged     {counted(added, 'vote')} added, {there} were here already", flush=True)
    if config.judge:
        print(judge_study(study, config.judge, config.use_cpu), flush=True)
    if config.space_dir:
        from .share import write_space

        place = write_space(study, Path(config.space_dir))
        print(f"{place} is a Space. Look at it, then: hf upload --repo-type space owner/name {place}", flush=True)
        return 0
    if config.serve:
        from .voting import serve_votes

        serve_votes(folder, config.host, config.port, config.seed)
    report(study)
    return 0


def report(study: Study) -> None:
    """Write the report of the votes so far and print where, or that nobody has voted."""
    from .study_report import write_report

    if not VoteFile(study.folder / VOTES_NAME, study.prompts_sha256).read():
        what = f"{counted(len(study.systems), 'system')}, {counted(len(study.prompts), 'prompt')}"
        print(f"answers    {study.folder}: {what}; nobody has voted yet", flush=True)
        return
    path = write_report(study.folder)
    print(path.read_text(encoding="utf-8"))
    print(path)


@dataclass(frozen=True)
class StudyPlan:
    """What a comparison is to hold, checked before anything is written.

    Attributes:
        kind: `chat`, `base`, or `file`.
        prompts: what is asked.
        systems: who answers.
        plans: what decides the answers of those that answer here, by name.
    """

    kind: str
    prompts: list[Prompt]
    systems: list[System]
    plans: dict[str, AnswerPlan]

    @property
    def prompts_bytes(self) -> bytes:
        """Return the file of prompts."""
        return dump_prompts(self.prompts)


def plan_study(config: CompareConfig, words: list[str]) -> StudyPlan:
    """Find systems and prompts, and check that they belong together; loads no model and writes nothing.

    Raises:
        InputError: fewer than two systems, two of one name, something that is not there, or answers to other prompts.
    """
    ensure(len(words) >= 2, f"ttl compare: {counted(len(words), 'system')} given, and a comparison needs two or more.")
    systems = [parse_system(word) for word in words]
    names = [system.name for system in systems]
    folded = [name.casefold() for name in names]  # on some disks `Lhama` and `lhama` are one file
    twice = sorted({name for name in names if folded.count(name.casefold()) > 1})
    ensure(not twice, f"MODEL: two systems are called {', '.join(twice)}. Write NAME=SOURCE for one of them.")
    identities = {system.name: identify(system, config.base_model) for system in systems if system.is_model}
    ensure(
        config.base_model is None or any(map(is_adapter_here, systems)),
        f"base_model={config.base_model}: no system is an adapter. Leave it out.",
    )
    chatty = {system.name: has_chat_template(system) for system in systems if system.is_model}
    kind = config.prompts
    if kind == "auto":
        kind = "chat" if all(chatty.values()) else "base"
    prompts = spread(read_prompts(kind), config.n_prompts)
    kind = kind if kind in OWN_FORMS else "file"
    for system in systems:
        if not system.is_model:
            read_given(system, prompts)
    plans = {
        name: AnswerPlan(
            identity, sha256_content(dump_prompts(prompts)), chatty[name] and kind != "base", asdict(config.sampling)
        )
        for name, identity in identities.items()
    }
    for system in systems:
        if system.name in plans:
            check_lengths(system, prompts, plans[system.name].is_chat, config.sampling)
    return StudyPlan(kind, prompts, systems, plans)


def make_study(config: CompareConfig, words: list[str]) -> None:
    """Write what the folder of a comparison lacks: prompts, the answers of each system, and at last `study.json`.

    Answers of the same weights, prompts and sampling are kept as they are, those of other systems in the folder too.

    Raises:
        InputError: see `plan_study`; or the folder holds something else, votes on other prompts or answers, or answers
            of another sampling; or its page is open and other answers are asked for.
    """
    folder = Path(config.output_dir)
    plan = plan_study(config, words)
    ensure_folder("output_dir", folder)
    for path in config.merge:
        VoteFile(Path(path), sha256_content(plan.prompts_bytes)).read()
    _check_before(folder, _read_before(folder), plan, config.sampling)
    (folder / ANSWERS_FOLDER).mkdir(parents=True, exist_ok=True)
    refusal = f"output_dir={folder}: another process writes this comparison. Wait for it."
    with contextlib.ExitStack() as held:
        held.enter_context(take_lock(folder / LOCK_NAME, refusal))
        before = _read_before(folder)  # another process may have written it meanwhile
        if is_other := _changes(before, plan):
            refusal = f"output_dir={folder}: its page is open, and people see the old answers. End it (Ctrl-C) first."
            held.enter_context(take_lock(folder / PAGE_LOCK_NAME, refusal))
        _check_before(folder, before, plan, config.sampling)
        prompts_sha256 = sha256_content(plan.prompts_bytes)
        is_same = before.get("prompts_sha256") == prompts_sha256
        described = {one["name"]: one for one in before["systems"]} if is_same else {}
        content = {
            "format": STUDY_FORMAT,
            "kind": plan.kind,
            "seed": config.seed,
            "prompts_sha256": prompts_sha256,
            "command": command_line(),
            "sampling": asdict(config.sampling),
            "systems": list(described.values()),
        }
        if is_same and not plan.plans:  # nobody answers here: what is there was sampled as it was
            content["sampling"] = before.get("sampling")
        write_json(folder / MAKING_NAME, content)
        if is_other:  # until the last answer is there, the folder holds no comparison
            for name in (STUDY_NAME, JUDGE_VOTES_NAME, JUDGE_NAME):
                (folder / name).unlink(missing_ok=True)
        replace_file(folder / PROMPTS_NAME, plan.prompts_bytes)
        for system in plan.systems:
            described[system.name] = _answered(system, plan, described.get(system.name), folder, config)
            content["systems"] = list(described.values())
            write_json(folder / MAKING_NAME, content)
        write_json(folder / STUDY_NAME, content)
        (folder / MAKING_NAME).unlink()


def _answered(
    system: System, plan: StudyPlan, before: dict[str, Any] | None, folder: Path, config: CompareConfig
) -> dict[str, Any]:
    """Return the description of a system whose answers are in the folder, written now where they were not."""
    path = answers_path(folder, system.name)
    of_model = plan.plans.get(system.name)
    if of_model is None:
        answers = read_given(system, plan.prompts)
        replace_file(path, dump_answers(answers))
        tokens, kwh, identity = sum(one.tokens for one in answers) or None, None, None  # 0: nobody counted
    elif (
        before
        and before.get("plan_sha256") == of_model.sha256
        and path.is_file()
        and sha256_file(path) == before["sha256"]
    ):
        print(f"answers    {system.name}: are there", flush=True)
        return before
    else:
        tokens, kwh = write_answers_of(system, plan.prompts, of_model, folder, config.sampling, config)
        identity = of_model.sha256
    return {
        "name": system.name, "source": system.source, "revision": system.revision, "sha256": sha256_file(path),
        "human": system.form == "references", "tokens": tokens, "energy_kwh": kwh, "plan_sha256": identity,
        "asked": "chat" if of_model and of_model.is_chat else "text" if of_model else None,
    }  # fmt: skip


def _read_before(folder: Path) -> dict[str, Any]:
    """Return what is known of a comparison that is there, whole or stopped while it was made, or nothing.

    Raises:
        InputError: the folder holds something that is no comparison, or the record is damaged.
    """
    making, path = folder / MAKING_NAME, folder / STUDY_NAME
    found: dict[str, Any] = {}
    if path.is_file():
        read_study(folder)
        found = parse_record(path.read_bytes())
    elif folder.is_dir() and not making.is_file():
        ours = {PROMPTS_NAME, ANSWERS_FOLDER, "energy", LOCK_NAME, f"{MAKING_NAME}.partial"}
        others = sorted(one.name for one in folder.iterdir() if one.name not in ours)
        ensure(
            not others, f"output_dir={folder}: holds {', '.join(others[:3])} and no comparison. Choose a new folder."
        )
    if not making.is_file():
        return found
    try:
        begun = parse_record(making.read_bytes())
        _ = begun["prompts_sha256"], [(one["name"], one["sha256"], one["plan_sha256"]) for one in begun["systems"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{making}: is damaged ({error!r}). Delete it: the answers are then written anew.") from error
    is_of_another = found and found["prompts_sha256"] != begun["prompts_sha256"]  # stopped before anything was changed
    return found if is_of_another else begun


def _changed_systems(before: dict[str, Any], plan: StudyPlan) -> list[str]:
    """Return the systems that are described and whose answers are to be others."""
    known = {one["name"]: one for one in before["systems"]}
    changed = []
    for system in plan.systems:
        if system.name in known:
            of_model = plan.plans.get(system.name)
            same = (
                known[system.name].get("plan_sha256") == of_model.sha256
                if of_model
                else sha256_content(dump_answers(read_given(system, plan.prompts))) == known[system.name]["sha256"]
            )
            changed += [] if same else [system.name]
    return changed


def _changes(before: dict[str, Any], plan: StudyPlan) -> bool:
    """Return whether something that `study.json` describes is to be written anew."""
    if not before:
        return False
    return sha256_content(plan.prompts_bytes) != before["prompts_sha256"] or bool(_changed_systems(before, plan))


def _check_before(folder: Path, before: dict[str, Any], plan: StudyPlan, sampling: Sampling) -> None:
    """Check that what is asked for fits to what is there.

    Raises:
        InputError: see `_check_votes`; or models would answer with another sampling than those that stay.
    """
    _check_votes(folder, before, plan)
    if not plan.plans or before.get("prompts_sha256") != sha256_content(plan.prompts_bytes):
        return
    named = {system.name for system in plan.systems}
    stay = [one["name"] for one in before["systems"] if one.get("plan_sha256") and one["name"] not in named]
    then, now = before.get("sampling") or {}, asdict(sampling)
    other = [f"{key}={value}" for key, value in then.items() if now.get(key) != value]
    ensure(
        not (stay and other),
        f"output_dir={folder}: {', '.join(stay)} answered with {', '.join(other)}. Give the same: all share it.",
    )


def _check_votes(folder: Path, before: dict[str, Any], plan: StudyPlan) -> None:
    """Refuse to change what somebody has voted on, or has and took it back: the file of votes is of these prompts.

    Raises:
        InputError: there are votes, and prompts or answers would change; or the file of votes is damaged.
    """
    path = folder / VOTES_NAME
    if not before or not path.is_file() or not path.read_bytes().strip():
        return
    VoteFile(path, before["prompts_sha256"]).read()
    fix = "Choose another output_dir, or leave the models out to go on with the votes."
    ensure(
        sha256_content(plan.prompts_bytes) == before["prompts_sha256"],
        f"output_dir={folder}: holds votes on other prompts. {fix}",
    )
    for name in _changed_systems(before, plan):
        raise InputError(f"output_dir={folder}: holds votes on other answers of {name}. {fix}")
