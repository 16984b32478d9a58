"""Energy and latency from counted events and published constants."""
