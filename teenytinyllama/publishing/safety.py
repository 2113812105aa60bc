"""What is never published: secrets, pickles, caches, and files from outside the run's folder."""

import re
from pathlib import Path, PurePosixPath

from ..checks import InputError, ensure
from .refusals import check_repository, check_revision
from .uploads import Upload, UploadFile

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
