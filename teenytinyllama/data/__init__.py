"""From text files or Hub datasets to documents, and from documents to packed rows of tokens."""
