"""The main job on one machine, with every real part made on the fly."""
