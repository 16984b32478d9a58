"""The fast engine: all steps of a layer at once, in the narrowest exact numbers, bit for bit the reference."""
