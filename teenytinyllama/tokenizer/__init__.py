"""The Portuguese tokenizer: learnt (train), read and written (files), applied (encode), measured (audit)."""
