"""Datasets for the Hub: a corpus, packed rows, instructions or preferences become parquet shards with a card.

Nothing here writes to the network: `dataset_uploads` returns what is to be sent.
"""

from .build import RECORD_NAME, dataset_uploads, default_staging
from .kinds import is_dataset
from .options import DatasetOptions

__all__ = ["RECORD_NAME", "DatasetOptions", "dataset_uploads", "default_staging", "is_dataset"]
