"""Several jobs on one device at a time: each trains as it would alone, and they share passes."""
