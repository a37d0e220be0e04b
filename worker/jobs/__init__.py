"""One job's life in the supervisor."""
