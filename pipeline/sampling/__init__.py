"""Which frames, in which order. Pure numpy: no I/O, no torch."""
