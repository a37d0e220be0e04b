"""What is said to receivers over HTTP, and to whom it may be said."""
