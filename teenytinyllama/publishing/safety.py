"""What may be published: the files of an upload, what is kept back, what they may replace, and the Hub's failures.

Kept back are secrets, pickles, caches and files from outside the run's folder. Nothing here asks the network.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..checks import InputError, counted, ensure, ensure_folder

# Tokens of the Hub; also what is left of one that was cut.
_SECRET = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{10,}")
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_MESSAGE = 300
# Of `--to`: what follows is a folder of this machine, or a bucket, the Hub's storage without history.
FOLDER_PREFIX, BUCKET_PREFIX = "folder:", "bucket:"


def check_repository(repository: str, key: str = "to", with_buckets: bool = False) -> None:
    """Refuse what the Hub would not take as `owner/name`, or as `bucket:owner/name` where buckets will do; asks nobody.

    Raises:
        InputError: not two names with one slash, or letters that the Hub does not allow.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    is_bucket = repository.startswith(BUCKET_PREFIX)
    owner, slash, name = repository.removeprefix(BUCKET_PREFIX).partition("/")
    try:
        validate_repo_id(f"{owner}/{name}")
        is_valid = bool(owner and slash and name)
    except HFValidationError:
        is_valid = False
    ensure(
        is_valid and is_bucket <= with_buckets,
        f"{key}={without_tokens(repository)}: is no {'bucket' if is_bucket and with_buckets else 'repository'} of the "
        f"Hub. Give {BUCKET_PREFIX if is_bucket and with_buckets else ''}owner/name, each of letters, digits, '-', '_' "
        "and '.', without '--' or '..', as ana/meu-modelo.",
    )


def check_bucket_client(to: str) -> None:
    """Refuse a bucket if the Hub's client here knows none; asks nobody.

    Raises:
        InputError: huggingface_hub is too old, or hf_xet, without which no bucket is written, is missing or too old.
    """
    import huggingface_hub

    try:
        from hf_xet import hash_files
    except ImportError:
        hash_files = None
    ensure(
        hash_files and hasattr(huggingface_hub.HfApi, "batch_bucket_files"),
        f"to={to}: huggingface_hub {huggingface_hub.__version__} knows no buckets, or hf_xet is missing here. Install "
        "both anew: pip install -U huggingface_hub hf_xet; or publish to a repository: --to owner/name",
    )


def check_revision(revision: str) -> None:
    """Refuse a revision that is no plain branch name.

    Raises:
        InputError: other letters, or a name that git treats in its own way.
    """
    ensure(
        _REVISION.fullmatch(revision) and ".." not in revision and not revision.endswith((".lock", ".")),
        f"revision={revision}: is no plain branch name. Use letters, digits, '-', '_' and '.', as step1000.",
    )


def folder_of(to: str) -> Path:
    """Return the folder that `--to folder:PATH` names.

    Raises:
        InputError: `~user` of a user that is not there.
    """
    path = to.removeprefix(FOLDER_PREFIX)
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"to={to}: this machine has no such user. Write the folder's whole path.") from error


def check_folder(folder: Path, source: Path | None = None) -> None:
    """Check that a folder can be made, or is empty, and lies outside of what is published.

    Args:
        folder: to be written.
        source: the run's folder.

    Raises:
        InputError: it holds something, is a file, cannot be made, or lies in the run's folder.
    """
    where = f"to={FOLDER_PREFIX}{folder}"
    ensure_folder("to", folder)
    place = folder.resolve()
    ensure(
        source is None or not (place == source.resolve() or source.resolve() in place.parents),
        f"{where}: lies in the run's own folder {source}. Give a new folder elsewhere.",
    )
    ensure(
        not place.exists() or not any(place.iterdir()),
        f"{where}: is not empty. Give a new folder.",
    )


def check_token() -> None:
    """Refuse to begin without a token or in offline mode; asks nobody.

    Raises:
        InputError: there is no token on this machine, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token

    ensure(
        not constants.HF_HUB_OFFLINE,
        "HF_HUB_OFFLINE: is set, so nothing can be sent. Unset it, or write to a folder: --to folder:PATH",
    )
    ensure(get_token(), f"token: there is none on this machine. {LOGIN}")


def without_tokens(text: str) -> str:
    """Return a text in which nothing that looks like a token of the Hub, and not this machine's own, can be read."""
    from huggingface_hub import get_token

    token = get_token()
    if token and len(token) > 5:
        text = text.replace(token, "<token>")
    return _SECRET.sub("<token>", text)


def one_clean_line(text: str) -> str:
    """Return a text of another's as one short line: no token, no signature of an address, no control character."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return without_tokens(text)[:_LONGEST_MESSAGE]


def repository_page(repository: str, repo_type: str = "model") -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{ {'dataset': 'datasets/', 'bucket': 'buckets/'}.get(repo_type, '') }{repository}"


@dataclass(frozen=True)
class UploadFile:
    """One file of a repository.

    Attributes:
        path: in the repository, with forward slashes.
        source: the local file, or the bytes themselves for what is made on the way (a card, an index).
    """

    path: str
    source: Path | bytes

    @property
    def size_bytes(self) -> int:
        """Return how many bytes will be sent."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def sha256(self) -> str:
        """Return the hash of the content, read piece by piece."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with self.source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def xet_hash(self) -> str:
        """Return the hash by which a bucket knows the content, of its chunks, as hf_xet computes it."""
        from hf_xet import hash_files

        if not isinstance(self.source, bytes):
            return str(hash_files([str(self.source)])[0].hash)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "content").write_bytes(self.source)
            return str(hash_files([f"{folder}/content"])[0].hash)

    def blob_id(self) -> str:
        """Return the id that git gives to the content, by which the Hub knows a file that is not in LFS."""
        digest = hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)
        if isinstance(self.source, bytes):
            digest.update(self.source)
            return digest.hexdigest()
        with self.source.open("rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True)
class Upload:
    """The whole content of one revision of a repository, sent as one commit; or what goes to a bucket at one time.

    Attributes:
        repository: `owner/name`.
        repo_type: `model`, `dataset` or `bucket`.
        revision: `main`, or the branch of a checkpoint such as `step100000`; of a bucket, the folder that is sent.
        files: in the order in which they are listed to the user.
        message: of the commit.
        record: path of the one of these files that says what was put there, see `record_file`. The record that the
            revision holds already decides what may be replaced: nothing of another identity, and of the files that
            are no longer part of the upload only those that it lists. None: nothing is ever deleted.
        fixed: paths whose content never changes on this revision, such as the weights of a checkpoint.
        pickles: paths of optimizer state, which is pickled, that the user asked for.
        last: of a bucket: paths that go after all others, because each of them says that others are whole.
    """

    repository: str
    repo_type: Literal["model", "dataset", "bucket"]
    revision: str
    files: tuple[UploadFile, ...]
    message: str
    record: str | None = None
    fixed: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


def record_file(path: str, identity: Any, names: Iterable[str], more: dict[str, Any]) -> UploadFile:
    """Return the record of an upload: what it belongs to, all its files by name, and what else is worth saying.

    Args:
        path: of the record in the repository.
        identity: any JSON value that tells runs (or datasets) apart and stays the same for one of them.
        names: paths of the other files that we have put there.
        more: further keys.
    """
    content = {"identity": identity, **more, "files": sorted({path, *names})}
    return UploadFile(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5", ".msgpack", ".npz"}
_SECRET_NAMES = re.compile(
    r"\.env.*|.*\.(env|pem|key|p12|pfx|keytab|kdbx)|id_(rsa|dsa|ecdsa|ed25519).*|\.(netrc|git-credentials|npmrc|pypirc)"
    r"|token|stored_tokens|credentials.*|secrets?\..*",
    re.IGNORECASE,
)
_NEVER_FOLDERS = {".git", ".cache", "__pycache__", ".publish", ".ssh", ".huggingface"}
# Not read for tokens: they hold numbers, or compressed text of which nothing could be found.
_OPAQUE = {".safetensors", ".parquet", ".png", ".gguf", *_PICKLES}
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
_PART_BYTES, _OVERLAP_BYTES = 1 << 24, 1 << 10


def check_upload(upload: Upload) -> None:
    """Refuse an upload with anything that must not leave this machine; asks nobody.

    Raises:
        InputError: a repository, revision or path that is not allowed, a path twice, a pickle that was not asked for,
            the name of a secret, or a file with a token in it. The message names the file and never the token.
    """
    if upload.repository:  # a folder has none
        check_repository(upload.repository)
    check_revision(upload.revision)
    paths = [file.path for file in upload.files]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    ensure(not twice, f"{upload.revision}: {', '.join(twice)} would be uploaded twice. Rename one of the files.")
    for file in upload.files:
        check_path(file.path)
        ensure(
            PurePosixPath(file.path).suffix.lower() not in _PICKLES or file.path in upload.pickles,
            f"{file.path}: is a pickle, and reading one can run code, so none is published. Weights go as safetensors.",
        )
        exists = isinstance(file.source, bytes) or file.source.is_file()
        ensure(
            exists,
            f"{file.path}: is no file any more in the folder it came from. Run the same command again.",
        )
        ensure(
            not _holds_token(file),
            f"{file.path}: holds an access token of the Hub, so it is not published. Remove it there, and revoke the "
            "token at https://huggingface.co/settings/tokens: it may have been seen.",
        )


def describe_uploads(uploads: Iterable[Upload]) -> str:
    """Return every file of the uploads with its size and its target, and the whole card, as text.

    Raises:
        InputError: an upload is refused (see `check_upload`).
    """
    parts = []
    for upload in uploads:
        check_upload(upload)
        total = sum(file.size_bytes for file in upload.files)
        place = f"{upload.repository} ({upload.repo_type} repository)" if upload.repository else "folder"
        place = f"{BUCKET_PREFIX}{upload.repository}" if upload.repo_type == "bucket" else place
        head = f"{place}, {upload.revision}: {counted(len(upload.files), 'file')}, {total:,} bytes, {upload.message!r}"
        width = max(len(file.path) for file in upload.files)
        lines = [f"  {file.path:{width}}  {file.size_bytes:>15,} bytes" for file in upload.files]
        parts.append("\n".join([head, *lines]))
        for file in upload.files:
            if Path(file.path).name == "README.md" and isinstance(file.source, bytes):
                parts.append(f"{file.path} of {upload.revision}:\n\n{file.source.decode()}")
    return "\n\n".join(parts)


def check_path(path: str) -> None:
    """Refuse a path that could leave a repository, or that has the name of a secret.

    Raises:
        InputError: it does.
    """
    parts = path.split("/")
    ensure(
        path.isprintable() and "\\" not in path and all(part not in ("", ".", "..") for part in parts),
        f"path={path!r}: is no plain path inside a repository.",
    )
    ensure(
        not _NEVER_FOLDERS.intersection(parts) and not _SECRET_NAMES.fullmatch(parts[-1]),
        f"path={path}: has the name of a secret or of a cache, so it is not published. Move it out of the folder.",
    )


def inside(folder: Path, path: Path) -> Path:
    """Return a file of a folder whose content lies inside the folder as well.

    Raises:
        InputError: a symbolic link leads out of the folder, or it is no plain file.
    """
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Remove it or copy it again.") from error
    ensure(
        target.is_relative_to(folder.resolve()) and target.is_file(),
        f"{path}: leads out of {folder}, to {target}. Only files of the run are published: copy it there, or remove "
        "the link.",
    )
    return path


def _holds_token(file: UploadFile) -> bool:
    """Return whether a file holds what looks like a token of the Hub, or this machine's own, whatever it looks like."""
    from huggingface_hub import get_token

    own = (get_token() or "").encode()
    if PurePosixPath(file.path).suffix.lower() in _OPAQUE:
        return False
    if isinstance(file.source, bytes):
        return _token_in(file.source, own)
    with file.source.open("rb") as stream:
        rest = b""
        while part := stream.read(_PART_BYTES):
            if _token_in(rest + part, own):
                return True
            rest = part[-_OVERLAP_BYTES:]
    return False


def _token_in(content: bytes, own: bytes) -> bool:
    return bool(own and own in content) or bool(_TOKEN.search(content))


# What a repository may hold before we have put anything there: made with it, or written on its page.
_HARMLESS = re.compile(r"\.gitattributes|\.gitignore|README\.md|LICENSE(\.\w+)?", re.IGNORECASE)


def check_replacement(upload: Upload, there: Iterable[str], record: dict[str, Any] | None, replace: bool) -> None:
    """Refuse to put an upload in the place of other things.

    Args:
        upload: what is to be put there.
        there: paths of the files that the branch holds.
        record: of an earlier upload that the branch holds, see `Upload.record`.
        replace: the user said that another run's files or a stranger's may be replaced.

    Raises:
        InputError: another run's record, or files of which there is no record.
    """
    if upload.record is None or replace:
        return
    if upload.repo_type == "bucket":
        where = f"to={BUCKET_PREFIX}{upload.repository}: the bucket"
        fix = (
            f"Choose another bucket, or delete this one first if nobody needs it: hf buckets delete {upload.repository}"
        )
    else:
        where = f"to={upload.repository}: its {upload.revision}"
        fix = (
            "Choose another repository, or say --replace if this one is to take its place (git keeps the old commits)."
        )
    if record is None:
        others = sorted(path for path in there if not _HARMLESS.fullmatch(path))
        ensure(not others, f"{where} holds files that were not published from here ({', '.join(others[:3])}). {fix}")
        return
    ensure(
        same_identity(upload, record),
        f"{where} holds another {'data set' if upload.repo_type == 'dataset' else 'run'}; different: "
        f"{_differences(record['identity'], _own_record(upload)['identity'])}. {fix}",
    )


def stale_paths(upload: Upload, there: Iterable[str], record: dict[str, Any] | None) -> list[str]:
    """Return the files of a branch that the record of an earlier upload lists and this one's has no longer."""
    if record is None:
        return []
    kept = {*_own_record(upload)["files"], *(file.path for file in upload.files)}
    return sorted(path for path in there if path in record["files"] and path not in kept)


def claim_file(upload: Upload, record: dict[str, Any] | None) -> UploadFile:
    """Return the record of a bucket for the time of an upload to it.

    It lists the files of before and of afterwards, so that those of an upload that was broken off are known as ours,
    and of the checkpoints only those that are whole all the time.

    Args:
        upload: what is to be sent.
        record: what the bucket holds so far.
    """
    own, before = _own_record(upload), record or {"files": []}
    steady = [entry for entry in own["checkpoints"] if entry in before.get("checkpoints", [])]
    names = {*own["files"], *before["files"]}
    return record_file(str(upload.record), own["identity"], names, {"checkpoints": steady})


def same_identity(upload: Upload, record: dict[str, Any]) -> bool:
    """Return whether a record is of the run (or data set) that the upload is of."""
    return bool(_own_record(upload)["identity"] == record["identity"])


def _own_record(upload: Upload) -> dict[str, Any]:
    source = next(file.source for file in upload.files if file.path == upload.record)
    assert isinstance(source, bytes)
    return dict(json.loads(source))


def _differences(before: Any, now: Any) -> str:
    """Return which values of two identities differ, at most three."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"identity (there {str(before)[:60]}, here {str(now)[:60]})"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} (there {before.get(name)}, here {now.get(name)})"[:120] for name in names[:3])
