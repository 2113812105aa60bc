"""Publishing a finished run: `ttl publish RUN --to owner/name` sends it and its checkpoints, or writes or lists them.

Each complete checkpoint becomes a branch `stepN` of its own and a line of the list of checkpoints on main. With
`--to folder:PATH` the same files are written into a folder, and with `--dry_run` they are only listed. With
`--to bucket:owner/name` they go to a bucket, the Hub's storage without history, which mirrors what the run keeps.
"""

import logging
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from ..checkpointing.checkpoints import checkpoint_faults, complete_checkpoints, lease
from ..checks import InputError, RunFailedError, ensure, ensure_disk_space
from ..disk import scratch_folder
from ..export.export_card import export_upload
from ..stage_folder import BUCKET_NAME, CHECKPOINTS_NAME, MARKER_NAME, PROGRESS_FOLDER, write_json
from .connection import Hub, HubLimits, open_hub
from .contents import (
    Checkpoint,
    index_upload,
    main_upload,
    read_checkpoint,
    resumable_upload,
    run_identity,
    run_records,
)
from .hub import check_distinct, kept_entries, merge_entries, prepare, push
from .safety import (
    BUCKET_PREFIX,
    FOLDER_PREFIX,
    Upload,
    UploadFile,
    check_bucket_client,
    check_folder,
    check_repository,
    check_revision,
    check_token,
    check_upload,
    describe_uploads,
    folder_of,
)
from .wording import card_languages

logger = logging.getLogger(__name__)

REVISIONS_FOLDER = "revisions"
# In a bucket: the finished run's folder. A checkpoint has the name that it has in the run's folder.
_MODEL_FOLDER = "model"
_NO_REPLACING = "a bucket keeps no old files, so no other run's are ever replaced there. Leave it out."
_NO_TOKEN = (
    "tokens are never given on the command line or in a file, where others can read them. Use `hf auth login` or the "
    "HF_TOKEN variable; revoke this one if it was real."
)


@dataclass
class PublishConfig:
    """`ttl publish RUN`: where to, who may see it, and what of the run."""

    REFUSED_KEYS: ClassVar[dict[str, str]] = {"token": _NO_TOKEN, "hub_token": _NO_TOKEN}

    to: str = field(
        metadata={
            "help": "repository owner/name; bucket:owner/name, storage without history that holds the checkpoints the "
            "run keeps; or folder:PATH, a new folder"
        }
    )
    public: bool = field(default=False, metadata={"help": "let everybody see a repository or bucket that is made"})
    dry_run: bool = field(default=False, metadata={"help": "only list every file with its size, and show the card"})
    follow: bool = field(
        default=False, metadata={"help": "publish each checkpoint as it is completed, and the run when it ends"}
    )
    checkpoints: bool = field(
        default=True,
        metadata={"help": "publish the kept checkpoints: each on a branch stepN, in a bucket each in a folder"},
    )
    optimizer_state: bool = field(
        default=False,
        metadata={"help": "with checkpoints: what resuming needs, from a bucket too; pickles, about twice the weights"},
    )
    language: str | None = field(
        default=None, metadata={"help": "of the card: en, pt or both; null: the run's card_language"}
    )
    base_model: str = field(default="", metadata={"help": "for an adapter: the repository of its base model"})
    revision: str = field(
        default="main", metadata={"help": "of an export: the branch, such as gguf in the model's own repository"}
    )
    license: list[str] = field(
        default_factory=list, metadata={"help": "of a comparison: its answers' and votes' licence, such as cc-by-4.0"}
    )
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
            check_repository(self.to, with_buckets=True)
        if self.is_bucket:
            check_bucket_client(self.to)
            ensure(not self.replace, f"replace, to={self.to}: {_NO_REPLACING}")
            ensure(self.revision == "main", f"revision, to={self.to}: a bucket has folders, no branches. Leave it out.")
        card_languages(self.language)
        check_revision(self.revision)
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
    def is_bucket(self) -> bool:
        """Return whether it goes to a bucket, which has no branches and no history."""
        return self.to.startswith(BUCKET_PREFIX)

    @property
    def repository(self) -> str:
        """Return `owner/name`, of a bucket too, or an empty string for a folder."""
        return "" if self.is_folder else self.to.removeprefix(BUCKET_PREFIX)

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
    ensure(config.revision == "main", f"revision={config.revision}: a run has branches of its own. Leave it out.")
    if config.is_folder:
        check_folder(folder_of(config.to), run)
    found = sound_checkpoints(run, config.skip_damaged) if config.checkpoints else []
    checkpoints = [
        read_checkpoint(run, folder, config.repository, config.base_model, config.optimizer_state) for folder in found
    ]
    entries = [checkpoint.entry for checkpoint in checkpoints]
    check_distinct(entries)
    main = main_with_config(run, [] if config.is_bucket else entries, config)
    if config.is_bucket:
        publish_to_bucket(run, config, checkpoints, main)
        return
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
        state = prepare(hub, main, private=not config.public, replace=config.replace)
        if config.public and state.private:
            logger.warning("%s is private and stays so: it is made public in its settings", config.to)
        entries = merge_entries(state.entries(), entries)
        check_distinct(entries)
        for checkpoint in checkpoints:
            with lease(checkpoint.folder):  # against its deletion
                push_and_say(hub, checkpoint.upload, config)
        push_and_say(hub, main_with_config(run, entries, config), config)


def publish_to_bucket(run: Path, config: PublishConfig, checkpoints: list[Checkpoint], main: Upload) -> None:
    """Send a finished run and its checkpoints to a bucket, or list the files.

    Raises:
        InputError: see `open_bucket`; no token.
        RunFailedError: the Hub gives no good answer in time.
    """
    if config.dry_run:
        whole = [in_folder(resumable_upload(found), found.folder.name, config) for found in checkpoints]
        if any(upload.last for upload in whole):
            whole.append(Upload(config.repository, "bucket", "records", tuple(run_records(run)), "to go on from"))
        print(describe_uploads([*whole, in_folder(main, _MODEL_FOLDER, config)]))
        return
    check_token()
    with finishing_command(run, config):
        bucket = open_bucket(open_hub(config.limits()), run, config)
        for checkpoint in checkpoints:
            with lease(checkpoint.folder):  # against its deletion
                bucket.send_checkpoint(checkpoint)
        bucket.send_model()


@dataclass
class RunBucket:
    """A bucket and what it holds of a run.

    Attributes:
        hub: see `open_hub`.
        run: its folder.
        config: how it is published.
        entries: of the checkpoints that are in the bucket whole, by step.
        paths: of all files of the run in the bucket.
    """

    hub: Hub
    run: Path
    config: PublishConfig
    entries: list[dict[str, Any]]
    paths: list[str]

    def send_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Send a complete checkpoint, then take out those that the run keeps no longer; see `hub.push` for errors.

        One that is in the bucket with its optimizer state is sent with it again: its marker is of all of them.
        """
        folder = checkpoint.folder.name
        entry = {key: value for key, value in checkpoint.entry.items() if key != "branch"} | {"folder": folder}
        if entry in self.entries and f"{folder}/{MARKER_NAME}" in self.paths and not checkpoint.upload.pickles:
            config = self.config
            checkpoint = read_checkpoint(self.run, checkpoint.folder, config.repository, config.base_model, True)
        upload = in_folder(resumable_upload(checkpoint), folder, self.config)
        self._send(upload, merge_entries(self.entries, [entry]))

    def send_model(self) -> None:
        """Send the finished run: model, card and records, as they would stand on main of a repository."""
        main = main_with_config(self.run, [], self.config)  # only now: its card names the bucket
        self._send(in_folder(main, _MODEL_FOLDER, self.config), self.entries)

    def tidy(self) -> None:
        """Take out the checkpoints that the run keeps no longer."""
        self._send(index_of_bucket(self.run, self.config, [], []), self.entries)

    def _send(self, upload: Upload, entries: list[dict[str, Any]]) -> None:
        if self.config.checkpoints:
            entries = kept_entries(self.run, entries)
        check_distinct(entries)
        files = [file for file in upload.files if file.path != CHECKPOINTS_NAME]
        kept = {entry["folder"] for entry in entries if entry in self.entries}  # with its optimizer state, sent before
        kept |= {_MODEL_FOLDER} - {upload.revision}
        paths = [path for path in self.paths if path.split("/")[0] in kept] + [file.path for file in files]
        if any(path.endswith(f"/{MARKER_NAME}") for path in paths):
            records = self._records(entries)
            files = [*records, *files]
            paths += [file.path for file in records] or [path for path in self.paths if "/" not in path]
        index = index_of_bucket(self.run, self.config, entries, paths)
        push_and_say(self.hub, replace(upload, files=(*files, *index.files), record=index.record), self.config)
        self.entries, self.paths = entries, paths

    def _records(self, entries: list[dict[str, Any]]) -> list[UploadFile]:
        """Return the run's records, none if the newest checkpoint was written elsewhere: those there are of its run."""
        newest = max(entry["step"] for entry in entries)
        return run_records(self.run) if newest in {step for step, _ in complete_checkpoints(self.run)} else []


def index_of_bucket(run: Path, config: PublishConfig, entries: list[dict[str, Any]], paths: list[str]) -> Upload:
    """Return the upload of the record alone: the checkpoints in a bucket, and all paths of the run's files there."""
    return replace(index_upload(run, config.repository, entries, paths), repo_type="bucket", revision="index")


def in_folder(upload: Upload, folder: str, config: PublishConfig) -> Upload:
    """Return an upload to a branch as one to a folder of a bucket, without the list of branches."""
    files = [file for file in upload.files if file.path != upload.record]
    moved = tuple(replace(file, path=f"{folder}/{file.path}") for file in files)
    pickles, last = (tuple(f"{folder}/{path}" for path in paths) for paths in (upload.pickles, upload.last))
    return Upload(config.repository, "bucket", folder, moved, upload.message, pickles=pickles, last=last)


def open_bucket(hub: Hub, run: Path, config: PublishConfig) -> RunBucket:
    """Make a run's bucket if it is missing, and return it with what it holds of the run.

    Raises:
        InputError: it holds another run or other files, is somebody else's, or public although private is wanted.
        RunFailedError: no good answer in time.
    """
    state = prepare(hub, index_of_bucket(run, config, [], []), private=not config.public)
    if config.public and state.private:
        logger.warning("%s is private and stays so: it is made public in its settings", config.to)
    note = run / PROGRESS_FOLDER / BUCKET_NAME
    with suppress(OSError):  # of a folder that may only be read, the card names no bucket
        note.parent.mkdir(exist_ok=True)
        write_json(note, [] if state.private else [config.repository])
    paths = [path for path in (state.record or {"files": []})["files"] if path != CHECKPOINTS_NAME]
    return RunBucket(hub, run, config, [entry for entry in state.entries() if "folder" in entry], paths)


def publish_export(folder: Path, config: PublishConfig) -> None:
    """Publish the files of `ttl export`, on main or on a branch of a repository, or say what would be published.

    Raises:
        InputError: see `export_upload`, `hub.push`; no token; keys that are for a run.
        RunFailedError: the Hub gives no good answer in time.
    """
    refuse_bucket(config, f"{folder} is an export")
    given = [key for key in ("follow", "optimizer_state", "base_model") if getattr(config, key)]
    ensure(not given, f"{', '.join(given)}: for a run; {folder} is an export. Leave it out.")
    revision = "main" if config.is_folder else config.revision
    _publish_upload(export_upload(folder, config.repository, revision, config.language), folder, config)


def publish_study(folder: Path, config: PublishConfig) -> None:
    """Publish the answers and votes of `ttl compare` as a dataset, or say what would be published.

    Raises:
        InputError: no licence, see `study_upload`, `hub.push`; no token; keys that are for a run.
        RunFailedError: the Hub gives no good answer in time.
    """
    from ..people.share import study_upload

    refuse_bucket(config, f"{folder} is a comparison")
    runs_only = {"follow": False, "optimizer_state": False, "base_model": "", "revision": "main"}
    given = [key for key, value in runs_only.items() if getattr(config, key) != value]
    ensure(not given, f"{', '.join(given)}: for a run; {folder} is a comparison. Leave it out.")
    ensure(len(config.license) == 1, f"license: {folder} needs one, for answers and votes: --license cc-by-4.0")
    _publish_upload(study_upload(folder, config.repository, config.license[0], config.language), folder, config)


def refuse_bucket(config: PublishConfig, what: str) -> None:
    """Refuse a bucket for what is no run.

    Raises:
        InputError: it goes to a bucket; `what` says which thing is none.
    """
    ensure(not config.is_bucket, f"to={config.to}: a bucket takes runs, and {what}. Give a repository: --to owner/name")


def _publish_upload(upload: Upload, folder: Path, config: PublishConfig) -> None:
    if config.is_folder:
        check_folder(folder_of(config.to), folder)
    if config.dry_run:
        print(describe_uploads([upload]))
    elif config.is_folder:
        print(write_folder([upload], folder_of(config.to)))
    else:
        check_token()
        with finishing_command(folder, config):
            push_and_say(open_hub(config.limits()), upload, config)


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


def main_with_config(run: Path, entries: list[dict[str, Any]], config: PublishConfig) -> Upload:
    """Return what is to be published on main (see `main_upload`); nothing can be loaded by the name of a bucket."""
    return main_upload(run, "" if config.is_bucket else config.repository, entries, config.base_model, config.language)


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
    """Return the command that publishes this run with these settings; no key of a config is a secret."""
    words = ["ttl", "publish", str(run), "--to", config.to]
    for item, value in ((item, getattr(config, item.name)) for item in fields(config)):
        if item.name != "to" and value not in (item.default, []):
            many = value if isinstance(value, list) else [] if value is True else [str(value).replace("False", "false")]
            words += [f"--{item.name}", *many]
    return shlex.join(words)


def write_folder(uploads: Iterable[Upload], folder: Path) -> Path:
    """Write uploads as they would lie on the Hub and return the folder: main at the top, others in `revisions/NAME/`.

    Args:
        uploads: one with the revision main, and any others.
        folder: new or empty; it appears whole or not at all.

    Raises:
        InputError: it holds something already, the disk is too full, or an upload is refused (see `check_upload`).
    """
    uploads = list(uploads)
    for upload in uploads:
        check_upload(upload)
    needed = sum(file.size_bytes for upload in uploads for file in upload.files)
    ensure_disk_space("to", folder, needed, "Free some, or publish without checkpoints: --checkpoints false")
    check_folder(folder)
    place = folder.resolve()  # of a link, where it leads
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place.parent) as scratch:  # on the same disk, so that the folder appears at once
        for upload in uploads:
            top = scratch if upload.revision == "main" else scratch / REVISIONS_FOLDER / upload.revision
            for file in upload.files:
                target = top / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file.source, bytes):
                    target.write_bytes(file.source)
                else:
                    shutil.copyfile(file.source, target)
        os.replace(scratch, place)  # of another folder it takes the place only if that is empty
    return folder
