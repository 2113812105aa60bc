"""Instead of the network: what would be uploaded as a list, or written into a folder."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..checks import ensure, ensure_disk_space
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
    ensure(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        f"to={FOLDER_PREFIX}{folder}: is not empty. Give a new folder.",
    )
    needed = sum(file.size_bytes for upload in uploads for file in upload.files)
    ensure_disk_space("to", folder, needed, "Free some, or publish without checkpoints: --checkpoints false")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for upload in uploads:
        top = partial if upload.revision == "main" else partial / REVISIONS_FOLDER / upload.revision
        for file in upload.files:
            target = top / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file.source, bytes):
                target.write_bytes(file.source)
            else:
                shutil.copyfile(file.source, target)
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
    return folder


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
        head = f"{place}, {upload.revision}: {len(upload.files)} files, {total:,} bytes, {upload.message!r}"
        width = max(len(file.path) for file in upload.files)
        lines = [f"  {file.path:{width}}  {file.size_bytes:>15,} bytes" for file in upload.files]
        parts.append("\n".join([head, *lines]))
        for file in upload.files:
            if file.path == "README.md" and isinstance(file.source, bytes):
                parts.append(f"README.md of {upload.revision}:\n\n{file.source.decode()}")
    return "\n\n".join(parts)
