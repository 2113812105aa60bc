"""What people say of models: a blind comparison of answers, its votes, and the figures made of them."""
