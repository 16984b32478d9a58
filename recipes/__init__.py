"""Recipes that come with lapilli (``lapilli run NAME``), and networks trained with them (``lapilli inspect NAME``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def trained_networks() -> dict[str, Path]:
    """Files of the trained networks, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.onnx"))}


def shipped_networks() -> list[dict[str, Any]]:
    """What the trained networks that come with lapilli are, as JSON values: from the files alone, nothing is run."""
    from ..export import load, summarize

    listed: list[dict[str, Any]] = []
    for name, path in trained_networks().items():
        network = load(path)
        summary = summarize(network)
        measured = network.metadata["accuracy"]
        listed.append(
            {
                "name": name,
                "description": network.metadata["recipe"]["description"],
                "method": network.metadata["method"],
                "data": measured["data"],
                "test_samples": measured["samples"],
                "accuracy": measured["bit-true"],
                "steps": network.steps,
                "parameters": sum(connection.parameters for connection in summary.connections),
                "bytes": path.stat().st_size,
                "sha256": network.digest(),
            }
        )
    return listed
