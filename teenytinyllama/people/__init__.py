"""What people say of models: a blind comparison of answers, its page, its votes and its figures (`ttl compare`)."""
