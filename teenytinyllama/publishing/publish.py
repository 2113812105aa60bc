"""`ttl publish RUN --to owner/name`: a finished run and its checkpoints on the Hub, in a folder, or only as a list."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ..checkpoints import checkpoint_faults, complete_checkpoints, lease
from ..checks import InputError, RunFailedError, ensure
from .branches import Checkpoint, check_distinct, merge_entries, read_checkpoint
from .contents import main_upload, run_identity
from .folder import FOLDER_PREFIX, check_folder, describe_uploads, folder_of, write_folder
from .hub import Hub, Standing, open_hub, prepare, push
from .hub_calls import HubLimits
from .refusals import check_repository, check_token
from .uploads import Upload
from .wording import card_languages

logger = logging.getLogger(__name__)

_NO_TOKEN = (
    "tokens are never given on the command line or in a file, where others can read them. Use `hf auth login` or the "
    "HF_TOKEN variable; revoke this one if it was real."
)


@dataclass
class PublishConfig:
    """`ttl publish RUN`: where to, who may see it, and what of the run."""

    REFUSED_KEYS: ClassVar[dict[str, str]] = {"token": _NO_TOKEN, "hub_token": _NO_TOKEN}

    to: str = field(metadata={"help": "repository owner/name, or folder:PATH for the same files in a new folder"})
    public: bool = field(default=False, metadata={"help": "let everybody see a repository that is made"})
    dry_run: bool = field(default=False, metadata={"help": "only list every file with its size, and show the card"})
    follow: bool = field(
        default=False, metadata={"help": "publish each checkpoint as it is completed, and the run when it ends"}
    )
    checkpoints: bool = field(default=True, metadata={"help": "publish the kept checkpoints, each on a branch stepN"})
    optimizer_state: bool = field(
        default=False, metadata={"help": "with the checkpoints: what resuming needs; pickles, about twice the weights"}
    )
    language: str | None = field(
        default=None, metadata={"help": "of the card: en, pt or both; null: the run's card_language"}
    )
    base_model: str = field(default="", metadata={"help": "for an adapter: the repository of its base model"})
    replace: bool = field(
        default=False, metadata={"help": "go on although main holds another run or files of others; git keeps them"}
    )
    skip_damaged: bool = field(default=False, metadata={"help": "leave damaged checkpoints out instead of stopping"})
    answer_seconds: float = field(default=120.0, metadata={"help": "how long one answer of the Hub is waited for"})
    give_up_seconds: float = field(default=600.0, metadata={"help": "how long is tried again without any progress"})
    poll_seconds: float = field(default=5.0, metadata={"help": "with follow: time between two looks at the run"})

    def __post_init__(self) -> None:
        """Refuse what cannot be published to, and what contradicts itself.

        Raises:
            InputError: no valid repository or folder, a time that is not positive, or keys that exclude each other.
        """
        if self.is_folder:
            ensure(self.to != FOLDER_PREFIX, f"to={self.to}: names no folder. Give folder:PATH.")
            ensure(not self.follow, f"follow, to={self.to}: following needs a repository. Leave one of them out.")
        else:
            check_repository(self.to)
        card_languages(self.language)
        if self.base_model:
            check_repository(self.base_model, "base_model")
        ensure(not (self.follow and self.dry_run), "follow, dry_run: exclude each other. Leave one of them out.")
        ensure(self.checkpoints or not self.follow, "checkpoints=false: with follow there is nothing else to publish.")
        for name in ("answer_seconds", "give_up_seconds", "poll_seconds"):
            ensure(getattr(self, name) > 0, f"{name}={getattr(self, name)}: must be positive.")

    @property
    def is_folder(self) -> bool:
        """Return whether nothing is sent to a Hub."""
        return self.to.startswith(FOLDER_PREFIX)

    @property
    def repository(self) -> str:
        """Return `owner/name`, or an empty string for a folder."""
        return "" if self.is_folder else self.to

    def limits(self) -> HubLimits:
        """Return how long is waited for the Hub."""
        return HubLimits(answer_seconds=self.answer_seconds, give_up_seconds=self.give_up_seconds)


def publish(run: Path, config: PublishConfig) -> None:
    """Publish a finished run, or say what would be published.

    Everything that can be checked here is checked before the Hub is asked anything. The branches go first, then main
    with the list of them, so that the list never names what is not there.

    Raises:
        InputError: see `main_upload`, `hub.push`; damaged checkpoints; checkpoints with equal weights; no token.
        RunFailedError: the Hub gives no good answer in time.
    """
    run_identity(run)
    if config.is_folder:
        check_folder(folder_of(config.to), run)
    found = sound_checkpoints(run, config.skip_damaged) if config.checkpoints else []
    checkpoints = [read_with_config(run, folder, config) for folder in found]
    entries = [checkpoint.entry for checkpoint in checkpoints]
    check_distinct(entries)
    main = main_with_config(run, entries, config)
    uploads = [main, *(checkpoint.upload for checkpoint in checkpoints)]
    if config.dry_run:
        print(describe_uploads(uploads))
        return
    if config.is_folder:
        print(write_folder(uploads, folder_of(config.to)))
        return
    check_token()
    with finishing_command(run, config):
        hub = open_hub(config.limits())
        standing = prepare(hub, main, private=not config.public, replace=config.replace)
        if config.public and standing.private:
            logger.warning("%s is private and stays so: it is made public in its settings", config.to)
        entries = merge_entries(published_entries(standing), entries)
        check_distinct(entries)
        for folder, checkpoint in zip(found, checkpoints, strict=True):
            push_checkpoint(hub, folder, checkpoint, config)
        push_and_say(hub, main_with_config(run, entries, config), config)


def sound_checkpoints(run: Path, skip_damaged: bool) -> list[Path]:
    """Return the folders of the complete checkpoints by step.

    Raises:
        InputError: one is damaged and is not to be left out.
    """
    found = []
    for _, folder in complete_checkpoints(run):
        faults = checkpoint_faults(folder)
        if not faults:
            found.append(folder)
            continue
        ensure(
            skip_damaged,
            f"{folder}: is damaged: {'; '.join(faults[:3])}. Restore it or delete it, or leave it out: --skip_damaged",
        )
        logger.warning("%s is damaged and left out: %s", folder, faults[0])
    return found


def read_with_config(run: Path, folder: Path, config: PublishConfig) -> Checkpoint:
    """Return what is to be published of a checkpoint (see `read_checkpoint`)."""
    return read_checkpoint(run, folder, config.repository, config.base_model, config.optimizer_state)


def main_with_config(run: Path, entries: list[dict[str, Any]], config: PublishConfig) -> Upload:
    """Return what is to be published on main (see `main_upload`)."""
    return main_upload(run, config.repository, entries, config.base_model, config.language)


def published_entries(standing: Standing) -> list[dict[str, Any]]:
    """Return what main's list of checkpoints says of those whose branches are there."""
    found = (standing.record or {}).get("checkpoints")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return [
        entry
        for entry in entries
        if isinstance(entry.get("step"), int)
        and isinstance(entry.get("sha256"), dict)
        and entry.get("branch") in standing.branches
    ]


def push_checkpoint(hub: Hub, folder: Path, checkpoint: Checkpoint, config: PublishConfig) -> None:
    """Push a checkpoint to its branch while it is held against deletion."""
    with lease(folder):
        push_and_say(hub, checkpoint.upload, config)


def push_and_say(hub: Hub, upload: Upload, config: PublishConfig) -> None:
    """Push an upload and print what became of it."""
    done = push(hub, upload, private=not config.public, replace=config.replace)
    state = "published" if done.changed else "is there already"
    print(f"{upload.revision:10} {state}, hashes compared: {done.url}", flush=True)


@contextmanager
def finishing_command(run: Path, config: PublishConfig) -> Iterator[None]:
    """Add to a failure the command that finishes the job.

    Raises:
        InputError: as raised inside, with the command.
        RunFailedError: as raised inside, with the command.
    """
    try:
        yield
    except (InputError, RunFailedError) as error:
        message = f"{error} The run's folder still holds everything; this goes on from here: {command_for(run, config)}"
        raise type(error)(message) from error


def command_for(run: Path, config: PublishConfig) -> str:
    """Return the command that publishes this run with these settings."""
    return shlex.join(command_words(run, config))


def command_words(run: Path, config: PublishConfig) -> list[str]:
    """Return the words of `command_for`; no key of a config is a secret."""
    words = ["ttl", "publish", str(run), "--to", config.to]
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name != "to" and value != item.default:
            words += [f"--{item.name}", *([] if value is True else ["false"] if value is False else [str(value)])]
    return words
