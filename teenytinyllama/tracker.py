"""codecarbon's tracker as every measurement here starts it: offline, and by our configs alone.

codecarbon takes what it is not told from `~/.codecarbon.config`, `./.codecarbon.config` and variables CODECARBON_*.
Such a file can send figures over the network (`emissions_endpoint`, an Electricity Maps token), change them (`pue`,
`force_cpu_power`), make a second tracker measure nothing and say so in a log only (`allow_multiple_runs=false`), or
take over the signals of the process (the same key). So it is told everything.
"""

import configparser
import contextlib
import importlib
import inspect
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .checks import InputError
from .grid import GridSettings

_MEASURE_SECONDS = 15  # codecarbon's own default interval


def make_tracker(folder: Path, file_name: str, grid: GridSettings, gpu_ids: list[Any] | None) -> Any:
    """Return a tracker, not started, that appends to a file of a folder.

    Args:
        folder: exists.
        file_name: of the CSV.
        grid: where the machine stands.
        gpu_ids: whose energy counts, as codecarbon names them; None for all that it finds.
    """
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output import OutputMethod

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    # codecarbon 3.3 keeps what the first tracker of a process found, and takes "no GPU" for "all" the next time.
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("codecarbon.core.hardware_cache").clear_cache()
    ours = {
        "project_name": folder.name or "run",
        "country_iso_code": grid.country_iso_code,
        "region": grid.region,
        "pue": grid.pue,
        "output_dir": str(folder),
        "output_file": file_name,
        "output_methods": [OutputMethod.CSV],
        "output_handlers": [],  # the tracker fills it
        "gpu_ids": gpu_ids,
        "measure_power_secs": _MEASURE_SECONDS,
        "log_level": "error",
    }
    # An argument that another version does not know would end its start without a word.
    bases = [base for base in OfflineEmissionsTracker.__mro__ if base is not object]
    known = {name for base in bases for name in inspect.signature(base).parameters}
    return OfflineEmissionsTracker(**{name: value for name, value in {**NEUTRAL, **ours}.items() if name in known})


# Every other argument of codecarbon 3.3.2's tracker, at its default or without effect. The tokens are empty rather than
# None, which would let a user's older key in (`_configure_electricitymaps_token`).
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("cloud_provider", "cloud_region", "country_2letter_iso_code", "force_carbon_intensity_g_co2e_kwh",
                     "emissions_endpoint", "force_cpu_power", "force_ram_power", "logging_logger", "metadata")),
    **dict.fromkeys(("api_endpoint", "api_key", "electricitymaps_api_token", "prometheus_url", "logger_preamble"), ""),
    **dict.fromkeys(("force_mode_cpu_load", "rapl_include_dram", "rapl_prefer_psys"), False),
    "allow_multiple_runs": True,
    "api_call_interval": -1,
    "experiment_id": "",
    "experiment_name": "",
    "on_csv_write": "append",
    "tracking_mode": "machine",
    "wue": 0.0,
}  # fmt: skip


def ignored_settings() -> list[str]:
    """Return the keys of the user's own codecarbon configuration, none of which is used here; never their values.

    Raises:
        InputError: a file cannot be read, which would end codecarbon's start halfway and without a word.
    """
    from codecarbon.core.config import get_hierarchical_config

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    try:
        return sorted(get_hierarchical_config())
    except (configparser.Error, OSError, UnicodeDecodeError) as error:  # their texts may hold a token
        raise InputError(
            f".codecarbon.config: cannot be read ({type(error).__name__}), in the home folder or here. Mend or delete "
            "it; nothing in it is used here."
        ) from None


class Neighbours:
    """Counts the other measurements of this user on this machine; each has a locked file for as long as it lasts.

    Trackers outside this package cannot be seen, unless codecarbon's own lock file says that there is one.
    """

    def __init__(self) -> None:
        """Lock a file of our own, in the system's folder for temporary files."""
        self._folder = Path(tempfile.gettempdir()) / f"teenytinyllama-meters-{getattr(os, 'getuid', lambda: 0)()}"
        self._own: FileLock | None = None
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._is_ours():
            handle, name = tempfile.mkstemp(suffix=".lock", dir=self._folder)
            os.close(handle)
            self._own = FileLock(name)
            self._own.acquire()

    def _is_ours(self) -> bool:
        """Return whether nobody else made the folder, as a trap for those who write into it."""
        state = self._folder.lstat()
        return not self._folder.is_symlink() and (not hasattr(os, "getuid") or state.st_uid == os.getuid())

    def count(self) -> int:
        """Return how many others there are; files that a kill has left are taken away."""
        if self._own is None:
            return 0
        others = 0
        for path in self._folder.glob("*.lock"):
            if str(path) == self._own.lock_file:
                continue
            lock = FileLock(path)
            try:
                with lock.acquire(timeout=0):
                    path.unlink(missing_ok=True)
            except Timeout:
                others += 1
        return others

    def leave(self) -> None:
        """Take our file away."""
        if self._own is not None:
            Path(self._own.lock_file).unlink(missing_ok=True)
            self._own.release()
            self._own = None

    @staticmethod
    def foreign() -> bool:
        """Return whether codecarbon's lock file says that a tracker outside this package runs, or was killed."""
        from codecarbon.lock import LOCKFILE

        return Path(LOCKFILE).exists()
