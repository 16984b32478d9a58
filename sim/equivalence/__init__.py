"""Executors compared spike for spike, and the first divergence explained."""
