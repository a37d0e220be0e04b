"""Export: two files, each loaded back and held against the adapter in memory."""
