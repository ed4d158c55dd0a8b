"""Files of clouds, by format: numpy arrays, PLY, OFF, text."""
