"""What people say of models: answers side by side, votes, and figures of the votes with their intervals."""
