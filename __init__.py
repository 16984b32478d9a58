"""lapilli: what you train is what the chip runs, bit for bit, and you know what it costs before you own the chip."""

__version__ = "0.1.0"
