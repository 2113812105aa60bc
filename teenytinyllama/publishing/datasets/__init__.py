"""Publishing data: kinds, shards, licences and the card of a dataset repository."""
