"""HTTP that leaves the worker for an address out of a message: which one, and for how long."""
