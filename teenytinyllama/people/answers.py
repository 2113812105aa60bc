"""Answers: what each system of a comparison says to the prompts, written once and kept in files.

Models answer one prompt at a time with the sampling and the seed that all share, so an answer depends neither on a
batch nor on what was written before a stop. A file that is half written is gone on with.
"""

import contextlib
import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..chat.generation import Chat, Sampling, context_of, fit_message
from ..chat.template import ConversationEncoder
from ..checks import InputError, ensure, ensure_file
from ..data.readers import read_records
from ..disk import replace_file
from ..energy.emissions import GridSettings
from ..energy.ledger import read_ledger
from ..energy.recorder import StageMeter
from ..model_files import (
    ADAPTER_CONFIG_NAME,
    TOKENIZER_FILES,
    check_config,
    check_weights,
    is_adapter,
    locate,
    read_json_file,
)
from ..models import from_pretrained, load_config, load_tokenizer, place_for_answers, weights_identity
from ..progress import progress
from ..stage_folder import parse_record, sha256_content, sha256_file, sha256_json
from ..tokenizer.encode import compose
from .study import ANSWERS_FOLDER, Prompt

REFERENCES = "references"  # the word for people's answers, those of the prompts' file
_NAME = re.compile(r"[\w][\w .+-]{0,63}")
_ENERGY_FOLDER = "energy"
# Files of a model, beside its weights, that decide what it answers.
_DECIDING_FILES = ("config.json", "generation_config.json", ADAPTER_CONFIG_NAME, *TOKENIZER_FILES, "merges.txt",
                   "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
                   "chat_template.json")  # fmt: skip

# Says an answer to a prompt; and how many tokens it has, and whether the system ended it.
Answerer = Callable[[str], tuple[str, int, bool]]


@dataclass(frozen=True)
class Answer:
    """What a system said to one prompt.

    Attributes:
        id: of the prompt.
        prompt_sha256: of the prompt's text, in hex.
        answer: the text.
        tokens: of the answer, with its end token; 0 where nobody counted them.
        ended: whether the system ended it; False: it was cut off.
    """

    id: str
    prompt_sha256: str
    answer: str
    tokens: int = 0
    ended: bool = True


@dataclass(frozen=True)
class System:
    """Who answers.

    Attributes:
        name: in results and file names; voters do not see it.
        source: folder, Hub repository, GGUF file, file of answers, or `references`.
        form: which of these it is.
        revision: of a Hub repository, or None.
    """

    name: str
    source: str
    form: Literal["model", "gguf", "answers", "references"]
    revision: str | None = None

    @property
    def is_model(self) -> bool:
        """Return whether answers are written here."""
        return self.form in ("model", "gguf")


def parse_system(word: str) -> System:
    """Return the system that a word of the command line names: SOURCE or NAME=SOURCE, a branch behind @.

    Raises:
        InputError: nothing of that kind is there, or the name cannot be a file's.
    """
    named, _, rest = word.partition("=")
    name, source = (named, rest) if rest and not Path(word).exists() else ("", word)
    revision: str | None = None
    path = Path(source).expanduser()
    if source == REFERENCES:
        form: Literal["model", "gguf", "answers", "references"] = "references"
    elif path.suffix == ".gguf" or path.suffix in (".jsonl", ".json", ".csv", ".parquet"):
        form = "gguf" if path.suffix == ".gguf" else "answers"
        ensure_file("MODEL", path, "Give a GGUF file, a file of answers, a folder or a Hub repository.")
        ensure(path.is_file(), f"MODEL={path}: is no file. Give a GGUF file, or a file of answers.")
    else:
        form = "model"
        if "@" in source and not path.exists():
            source, _, revision = source.rpartition("@")
    name = name or re.sub(r"[^\w.+-]+", "-", f"{Path(source).stem if form != 'model' else _short(source)}"
                          f"{f'-{revision}' if revision else ''}").strip("-.")  # fmt: skip
    ensure(
        _NAME.fullmatch(name) and not name.endswith((".", " ")),
        f"MODEL={word[:200]}: {name[:80]!r} cannot be the name of a system: letters, digits, and . + - _ inside, at "
        "most 64. Write NAME=SOURCE.",
    )
    return System(name, source, form, revision)


def _short(source: str) -> str:
    """Return the two last parts of a model's name, without what all runs share: outputs/tiny/base is tiny-base."""
    return "-".join(part for part in Path(source).expanduser().parts[-2:] if part not in ("/", ".", ".."))


def read_given(system: System, prompts: Sequence[Prompt]) -> list[Answer]:
    """Return the answers of a file that was made elsewhere, or people's references, in the order of the prompts.

    Raises:
        InputError: a prompt has no answer or two, an answer belongs to none or to another text, or a row is damaged.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    if system.form == REFERENCES:
        lacking = [prompt.id for prompt in prompts if not prompt.reference]
        ensure(
            not lacking,
            f"MODEL=references: {len(lacking)} prompts have no reference, first {lacking[:3]}. Leave it out.",
        )
        return [Answer(prompt.id, sha256_content(prompt.prompt), str(prompt.reference)) for prompt in prompts]
    by_text = {prompt.prompt.strip(): prompt.id for prompt in prompts}
    found: dict[str, Answer] = {}
    others: list[str] = []
    for number, row in enumerate(read_records("MODEL", Path(system.source)), start=1):
        where = f"MODEL={system.source}: row {number}: "
        text = next((row[key] for key in ("prompt", "question") if isinstance(row.get(key), str)), None)
        name = None if row.get("id") is None else str(row["id"])
        if name not in by_id and text is not None:  # the file may have numbers of its own
            name = by_text.get(compose(text).strip())
        answer = row.get("answer")
        ensure(isinstance(answer, str), f"{where}has no text in answer. A row has id (or prompt) and answer.")
        ensure(name is not None or text is not None, f"{where}has neither id nor prompt. A row has one, and answer.")
        if name not in by_id:
            others.append(str(name or text)[:60])
            continue
        ensure(name not in found, f"{where}answers the prompt {name!r} again. Leave one of the answers out.")
        sha256 = sha256_content(by_id[name].prompt)
        same = row.get("prompt_sha256", sha256) == sha256 and (
            not isinstance(row.get("prompt"), str) or compose(row["prompt"]).strip() == by_id[name].prompt.strip()
        )
        ensure(same, f"{where}was given to another text than the prompt {name!r} has here. Let the system answer anew.")
        tokens = row.get("tokens")
        found[name] = Answer(name, sha256, str(answer).strip(), tokens if type(tokens) is int and tokens >= 0 else 0,
                             row.get("ended") is not False)  # fmt: skip
    lacking = [name for name in by_id if name not in found]
    strangers = f"; {len(others)} rows belong to none of them, such as {others[0]!r}" if others else ""
    ensure(
        not lacking,
        f"MODEL={system.source}: answers {len(found)} of the {len(by_id)} prompts (none to {', '.join(lacking[:3])})"
        f"{strangers}. Give answers to these prompts, or other prompts: `prompts`, `n_prompts`.",
    )
    return [found[name] for name in by_id]


def identify(system: System, base_model: str | None = None) -> str:
    """Return what identifies a system that answers here, without loading it: weights, tokenizer, template, settings.

    Args:
        system: a model or a GGUF file.
        base_model: of an adapter, if it is not where the adapter says.

    Raises:
        InputError: there is no such model, or it is none that writes.
    """
    if system.form == "gguf":
        return sha256_file(Path(system.source))
    source = locate(system.source, system.revision)
    parts = {"weights": weights_identity(system.source, system.revision)}
    if is_adapter(source):
        found = source.find(ADAPTER_CONFIG_NAME)
        assert found is not None
        adapter = read_json_file("MODEL", system.source, found)
        name, revision = base_model or adapter.get("base_model_name_or_path"), adapter.get("revision")
        ensure(isinstance(name, str) and name, f"MODEL={system.source}: {found.name} names no base model.")
        base = System("base", str(name), "model", None if base_model else revision)
        try:
            ensure(not is_adapter_here(base), f"{name} is an adapter itself, and not a whole model.")
            parts["base"] = identify(base)
        except InputError as error:
            where = f"base_model={name}" if base_model else f"MODEL={system.source}: its base model is {name}"
            raise InputError(f"{where}: {error} Give its place with --base_model.") from error
    else:
        check_config(source)
        check_weights(source)
    if source.folder is not None:  # a commit of the Hub fixes all files
        parts |= {name: sha256_file(path) for name in _DECIDING_FILES if (path := source.folder / name).is_file()}
    return sha256_json(parts)


def is_adapter_here(system: System) -> bool:
    """Return whether a system that answers here is an adapter, which has a base model."""
    return system.form == "model" and is_adapter(locate(system.source, system.revision))


@dataclass(frozen=True)
class AnswerPlan:
    """What decides the answers of a model here: two plans that are equal have equal answers.

    Attributes:
        identity: of the weights.
        prompts_sha256: of the file of prompts.
        is_chat: whether prompts are asked in the chat template.
        sampling: how tokens are chosen.
    """

    identity: str
    prompts_sha256: str
    is_chat: bool
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Return the hash of all of it."""
        return sha256_json(asdict(self))


def answers_path(folder: Path, name: str) -> Path:
    """Return where the answers of a system are kept."""
    return folder / ANSWERS_FOLDER / f"{name}.jsonl"


def dump_answers(answers: Sequence[Answer]) -> bytes:
    """Return the lines of a file of answers."""
    return "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers).encode()


def write_answers_of(
    system: System, prompts: Sequence[Prompt], plan: AnswerPlan, folder: Path, sampling: Sampling, config: Any
) -> tuple[int, float | None]:
    """Let a model answer all prompts into `folder`, and return its tokens and its energy in kWh, None if not measured.

    Args:
        system: a model or a GGUF file.
        prompts: what is asked.
        plan: what decides the answers.
        folder: of the study.
        sampling: how tokens are chosen.
        config: with `use_cpu` and `base_model`, and the grid.

    Raises:
        InputError: the model cannot be loaded, or a prompt does not fit into its context.
    """
    path = answers_path(folder, system.name)
    partial = path.with_name(f"{path.name}.partial")
    done = _resumed(partial, plan, prompts)
    energy = folder / _ENERGY_FOLDER / system.name
    if not done:  # of answers that are not kept
        shutil.rmtree(energy, ignore_errors=True)
    energy.mkdir(parents=True, exist_ok=True)
    grid = GridSettings(country_iso_code=config.country_iso_code, region=config.region, pue=config.pue)
    with (
        StageMeter(energy, grid) as meter,
        _answering(system, plan.is_chat, sampling, config) as answer,
        partial.open("a", encoding="utf-8") as file,
    ):
        if file.tell() == 0:
            file.write(json.dumps({"plan": plan.sha256}) + "\n")
        name, begun = f"{system.name} answers", len(done)
        for prompt in progress(prompts[begun:], name, "prompts", total=len(prompts), done=begun):
            try:
                text, tokens, ended = answer(prompt.prompt)
            except InputError as error:
                raise InputError(f"prompts: {prompt.id}: {error} (asked of {system.name})") from error
            done.append(Answer(prompt.id, sha256_content(prompt.prompt), text, tokens, ended))
            file.write(json.dumps(asdict(done[-1]), ensure_ascii=False) + "\n")
            file.flush()
            meter.tick()
    replace_file(path, dump_answers(done), ".new")  # beside `partial`, which a stop here still needs
    partial.unlink()
    account = read_ledger(energy)
    return sum(one.tokens for one in done), account.total.energy_kwh if account is not None else None


def _resumed(partial: Path, plan: AnswerPlan, prompts: Sequence[Prompt]) -> list[Answer]:
    """Return the answers that an interrupted start of this plan left, and cut the file behind the last whole one."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    lines = partial.read_bytes().splitlines(keepends=True) if partial.is_file() else []
    done: list[Answer] = []
    kept = 0
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        if parse_record(lines[0])["plan"] == plan.sha256:
            kept = 1
            for line in lines[1:]:
                if not line.endswith(b"\n"):
                    break
                answer = Answer(**parse_record(line))
                if answer.id != prompts[len(done)].id:
                    break
                done.append(answer)
                kept += 1
    partial.write_bytes(b"".join(lines[:kept]))
    return done


@contextlib.contextmanager
def _answering(system: System, is_chat: bool, sampling: Sampling, config: Any) -> Iterator[Answerer]:
    """Load a system for the block, and give what asks it."""
    if system.form == "gguf":
        from ..export.llama_cpp import opened

        with opened(Path(system.source), scores=False) as gguf:
            yield lambda text: gguf.answer(text, sampling, is_chat)
        return
    model, tokenizer = from_pretrained(
        system.source, system.revision, config.base_model if is_adapter_here(system) else None
    )
    placed, note = place_for_answers(model, config.use_cpu)
    if note:
        print(note, flush=True)
    if not is_chat:
        tokenizer.chat_template = None  # the prompt is the beginning of a text
    chat = Chat(placed, tokenizer, sampling)

    def answer(text: str) -> tuple[str, int, bool]:
        chat.reset()
        reply = chat.answer(text)
        for _ in reply:
            pass  # the pieces are for readers who wait; letters whose bytes are two tokens are whole only at the end
        written = str(tokenizer.decode(reply.ids, skip_special_tokens=True))
        return written.strip(), len(reply.ids), reply.ended  # a space in front would tell a model from a person

    yield answer


def check_lengths(system: System, prompts: Sequence[Prompt], is_chat: bool, sampling: Sampling) -> None:
    """Check that every prompt fits into the context of a model here, with an answer behind it; reads no weights.

    Raises:
        InputError: one does not.
    """
    with contextlib.ExitStack() as held:
        if system.form == "gguf":
            from ..export.llama_cpp import opened

            gguf = held.enter_context(opened(Path(system.source), scores=False))
            check: Callable[[str], object] = lambda text: gguf.check_length(text, sampling, is_chat)  # noqa: E731
        else:
            name, revision = system.source, system.revision
            if is_adapter(locate(name, revision)):  # of an unknown base: its prompts are checked as they are asked
                return
            tokenizer = load_tokenizer("MODEL", name, revision)
            encoder = ConversationEncoder(tokenizer) if is_chat else None
            context = context_of(load_config("MODEL", name, revision))
            check = functools.partial(fit_message, tokenizer, encoder, context, sampling)
        for prompt in prompts:
            try:
                check(prompt.prompt)
            except InputError as error:
                raise InputError(f"prompts: {prompt.id}: {error} (asked of {system.name})") from error


def has_chat_template(system: System) -> bool:
    """Return whether a model that answers here has a chat template."""
    if system.form == "gguf":
        from ..export.llama_cpp import opened

        with opened(Path(system.source), vocabulary_only=True) as gguf:
            return bool(gguf.is_chat)
    source = locate(system.source, system.revision)
    if source.find("chat_template.jinja") is not None:
        return True
    path = source.find("tokenizer_config.json")
    template = read_json_file("MODEL", system.source, path).get("chat_template") if path is not None else None
    ensure(
        template is None or isinstance(template, str | list),
        f"MODEL={system.source}: tokenizer_config.json has a chat_template that is no text. Copy the model again.",
    )
    return bool(template)
