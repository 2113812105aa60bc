"""What of a run is published already, kept in the run's folder, so that publishing can end at any moment and go on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..manifest import write_json
from .contents import run_identity

PROGRESS_FOLDER, PROGRESS_NAME = ".publish", "progress.json"


@dataclass
class Progress:
    """What of a run is published already, kept in the run's folder.

    Attributes:
        path: of the file.
        repository: where to.
        identity: of the run.
        entries: of the checkpoints that are on the Hub.
        main: whether the finished run is on main.
    """

    path: Path
    repository: str
    identity: dict[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    main: bool = False

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {"repository": self.repository, "identity": self.identity, "checkpoints": self.entries}
        write_json(self.path, {**content, "main": self.main})


def read_progress(run: Path, repository: str) -> Progress:
    """Return what is published of a run in a repository; nothing, if the file is of another run or repository."""
    path = run / PROGRESS_FOLDER / PROGRESS_NAME
    new = Progress(path, repository, run_identity(run))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["repository"], content["identity"]) == (repository, new.identity):
            return Progress(path, repository, new.identity, list(content["checkpoints"]), False)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # none yet, or one that nobody can use: what is on the Hub is found there
    return new
