"""What the worker says about itself: log lines, health, metrics."""
