"""Models in other forms (GGUF, 8 bits), how fast they answer, and a server for them."""
