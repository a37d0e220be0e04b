"""Torch lives here and nowhere else; knows the contract alone."""
