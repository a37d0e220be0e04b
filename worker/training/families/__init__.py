"""One file a kind of base model: what differs between them. Everything else is one loop."""
