"""What may be published: the files of an upload, what is kept back, what they may replace, and the Hub's failures.

Kept back are secrets, pickles, caches and files from outside the run's folder. Nothing here asks the network.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..checks import InputError, ensure

# Tokens of the Hub; also what is left of one that was cut.
_SECRET = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{10,}")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
_QUOTA = re.compile(r"quota|storage limit|storage .*(exceed|reached|full)|payment|billing|plan\b", re.IGNORECASE)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_MESSAGE = 300
# The Hub's refusals that the client raises as plain ValueError: of large files, and of the card's metadata.
_CLIENT_REFUSALS = ("LFS batch API returned errors", "Invalid metadata in README.md")
_XET_STATUS = re.compile(r"HTTP status client error \((\d{3})")
_QUOTA_FIX = " Free some room there, publish to an organisation that has more, or make the repository public."


def check_repository(repository: str, key: str = "to") -> None:
    """Refuse what the Hub would not take as `owner/name`; asks nobody.

    Raises:
        InputError: not two names with one slash, or letters that the Hub does not allow.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, name = repository.partition("/")
    try:
        validate_repo_id(repository)
        is_valid = bool(owner and slash and name)
    except HFValidationError:
        is_valid = False
    ensure(
        is_valid,
        f"{key}={without_tokens(repository)}: is no repository of the Hub. Give owner/name, each of letters, digits, "
        "'-', '_' and '.', without '--' or '..', as ana/meu-modelo.",
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
    ensure(get_token(), f"token: there is none on this machine. {_LOGIN}")


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


class UnansweredError(Exception):
    """A call to the Hub that failed for a reason that may pass.

    Attributes:
        wait_seconds: what the Hub asks to wait (Retry-After), or 0.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def passing_failure(error: BaseException | None) -> UnansweredError | None:
    """Return the failure that may pass among an exception and its causes, or None."""
    while error is not None:
        if isinstance(error, UnansweredError):
            return error
        if isinstance(error, json.JSONDecodeError):  # the client reads an answer before it looks at its status
            return UnansweredError("an answer that is no JSON")
        if type(error) is ConnectionError and not _xet_status(error):
            return UnansweredError(one_clean_line(str(error)))
        error = error.__cause__
    return None


def explain(error: Exception, what: str, repository: str, user: str) -> InputError | None:
    """Return the refusal that an exception of the Hub client means, or None for what is no refusal of the Hub.

    Args:
        error: as raised by the client.
        what: was being done, as `ana/modelo: the commit to main`.
        repository: where to.
        user: who the token belongs to; empty if that is not known yet.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HfHubHTTPError):  # from a thread that uploads
        error = error.__cause__
    said = ""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = one_clean_line(error.server_message or error.response.headers.get("X-Error-Message") or "")
    elif isinstance(error, ValueError) and str(error).startswith(_CLIENT_REFUSALS):
        said = one_clean_line(str(error))
        return InputError(f"{what}: the Hub refuses it: {said}{_QUOTA_FIX if _QUOTA.search(said) else ''}")
    elif (status := _xet_status(error)) == 0:
        return None
    who = f"as {user}" if user else "with this token"
    if isinstance(error, GatedRepoError):
        reason = f"access to {repository} has to be granted. Ask for it at {repository_page(repository)}."
    elif status == 401 or (status == 403 and not user):
        reason = f"the Hub does not accept the token (HTTP {status}). It may be mistyped or expired. {_LOGIN}"
    elif status in (402, 413, 507) or _QUOTA.search(said):
        reason = f"the Hub has no room for it (HTTP {status}): {said}.{_QUOTA_FIX}"
    elif status == 403:
        reason = (
            f"you may not write to {repository} {who} (HTTP 403): {said}. Use a token with write permission for it, "
            "or your own repository."
        )
    elif isinstance(error, RepositoryNotFoundError) or status == 404:
        reason = f"{repository} does not exist, or you may not see it {who} (HTTP {status})."
    else:
        reason = f"the Hub refuses it (HTTP {status}): {said}."
    return InputError(f"{what}: {reason}")


def _xet_status(error: BaseException) -> int:
    """Return the status with which Xet was refused for good, or 0; it raises a ConnectionError for everything."""
    found = _XET_STATUS.search(str(error)) if type(error) is ConnectionError else None
    return int(found[1]) if found and found[1] not in ("408", "429") else 0


def repository_page(repository: str, repo_type: str = "model") -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repository}"


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
    """The whole content of one revision of a repository, sent as one commit.

    Attributes:
        repository: `owner/name`.
        repo_type: `model` or `dataset`.
        revision: `main`, or the branch of a checkpoint such as `step100000`.
        files: in the order in which they are listed to the user.
        message: of the commit.
        record: path of the one of these files that says what was put there, see `record_file`. The record that the
            revision holds already decides what may be replaced: nothing of another identity, and of the files that
            are no longer part of the upload only those that it lists. None: nothing is ever deleted.
        fixed: paths whose content never changes on this revision, such as the weights of a checkpoint.
        pickles: paths of optimizer state, which is pickled, that the user asked for.
    """

    repository: str
    repo_type: Literal["model", "dataset"]
    revision: str
    files: tuple[UploadFile, ...]
    message: str
    record: str | None = None
    fixed: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()


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
    where = f"to={upload.repository}: its {upload.revision}"
    fix = "Choose another repository, or say --replace if this one is to take its place (git keeps the old commits)."
    if record is None:
        others = sorted(path for path in there if not _HARMLESS.fullmatch(path))
        ensure(not others, f"{where} holds files that were not published from here ({', '.join(others[:3])}). {fix}")
        return
    ensure(
        same_identity(upload, record),
        f"{where} holds another {'run' if upload.repo_type == 'model' else 'data set'}; different: "
        f"{_differences(record['identity'], _own_record(upload)['identity'])}. {fix}",
    )


def stale_paths(upload: Upload, there: Iterable[str], record: dict[str, Any] | None) -> list[str]:
    """Return the files of a branch that the record of an earlier upload lists and this one's has no longer."""
    if record is None:
        return []
    kept = {*_own_record(upload)["files"], *(file.path for file in upload.files)}
    return sorted(path for path in there if path in record["files"] and path not in kept)


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
