"""What a corpus is, said to its readers: the passport, the page of a sample, licences, and whom the texts name."""
