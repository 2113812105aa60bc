"""The Portuguese tokenizer: learnt (learn), trained and audited (train), read and written (files), applied (encode)."""
