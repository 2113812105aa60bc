"""`ttl publish FOLDER_OR_FILES --to owner/name` for a dataset: to the Hub, into a folder, or only as a list."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ...checks import RunFailedError
from ..folder import check_folder, describe_uploads, folder_of, write_folder
from ..hub import open_hub
from ..publish import PublishConfig, push_and_say
from .build import dataset_uploads, default_staging
from .options import DatasetOptions
from .shards import discard_staging

_OF_RUNS = ("follow", "checkpoints", "optimizer_state", "base_model", "skip_damaged", "poll_seconds")


@dataclass
class PublishDatasetConfig(DatasetOptions, PublishConfig):
    """`ttl publish` of a dataset: where to, who may see it, and what it is made of."""

    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **PublishConfig.REFUSED_KEYS,
        **dict.fromkeys(_OF_RUNS, "concerns runs, and this is a dataset. Leave it out."),
    }

    staging: str | None = field(
        default=None,
        metadata={"help": "folder for the parquet files until they are sent; null: NAME.publish beside the source"},
    )

    def __post_init__(self) -> None:
        """Refuse what neither a publication nor a dataset can have.

        Raises:
            InputError: see `PublishConfig` and `DatasetOptions`.
        """
        PublishConfig.__post_init__(self)
        DatasetOptions.__post_init__(self)


def publish_dataset(source: list[str], config: PublishDatasetConfig) -> None:
    """Publish a dataset, or say what would be published.

    The token is tried before the shards are written, which can take hours. They are deleted once they have arrived; a
    failure and a dry run leave them for the next start.

    Raises:
        InputError: see `dataset_uploads` and `hub.push`.
        RunFailedError: the Hub gives no good answer in time.
    """
    if config.is_folder:
        check_folder(folder_of(config.to))
    hub = None if config.dry_run or config.is_folder else open_hub(config.limits())
    staging = Path(config.staging).expanduser() if config.staging else default_staging(source)
    upload = dataset_uploads(source, config.repository, staging, config)
    if config.dry_run:
        print(describe_uploads([upload]))
        print(f"the files are kept in {staging} for the publication itself")
        return
    if hub is None:
        print(write_folder([upload], folder_of(config.to)))
    else:
        try:
            push_and_say(hub, upload, config)
        except RunFailedError as error:
            raise RunFailedError(
                f"{error} {staging} keeps what is written; the same command goes on from there."
            ) from error
    discard_staging(staging)
