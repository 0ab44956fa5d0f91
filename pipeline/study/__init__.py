"""The dose x overlap x gridsize study: from a base scan to a proven bundle for each dose, view and gridsize."""
