"""Instead of the network: what would be uploaded as a list, or written into a folder."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..checks import InputError, counted, ensure, ensure_disk_space, ensure_folder
from ..locks import scratch_folder
from .safety import check_upload
from .uploads import Upload

# Of `--to`: what follows is a folder of this machine.
FOLDER_PREFIX = "folder:"
REVISIONS_FOLDER = "revisions"


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
        head = f"{place}, {upload.revision}: {counted(len(upload.files), 'file')}, {total:,} bytes, {upload.message!r}"
        width = max(len(file.path) for file in upload.files)
        lines = [f"  {file.path:{width}}  {file.size_bytes:>15,} bytes" for file in upload.files]
        parts.append("\n".join([head, *lines]))
        for file in upload.files:
            if file.path == "README.md" and isinstance(file.source, bytes):
                parts.append(f"README.md of {upload.revision}:\n\n{file.source.decode()}")
    return "\n\n".join(parts)
