"""Looking inside a simulation: traces of chosen neurons, their files and figures, and where states overflow."""
