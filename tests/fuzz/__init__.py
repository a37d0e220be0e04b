"""Inputs by the ten thousand at the two doors that strangers have: the message and the picture."""
