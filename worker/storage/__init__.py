"""Objects in and out of a store: one protocol, S3 and local files behind it."""
