"""Draw learning curves from the CSV logs of finished trainings.

python benchmarks/curves.py --out docs/curves.svg "MNIST, DSR=runs/mnist" "MNIST, TSSL-BP=runs/mnist-tssl"

Curves that belong together stand next to each other, the first of each two in a darker color.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def read(folder: Path) -> list[tuple[int, bool, float]]:
    """Epoch, whether it was one of rates, error on the test set in percent."""
    with (folder / "float.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(int(r["epoch"]), r["rates"] == "1", 100 - 100 * float(r["test_accuracy"])) for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="+", metavar="LABEL=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lapilli", "font.size": 10})
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    for number, curve in enumerate(given.curves):
        label, folder = curve.split("=", 1)
        points = read(Path(folder))
        color = mpl.colormaps["tab20"](number % 20)  # two in a row are a dark and a light one of a hue
        axis.plot([e for e, _, _ in points], [error for _, _, error in points], color=color, linewidth=1.2, label=label)
        for rates, face in ((True, "white"), (False, color)):
            some = [(e, error) for e, of_rates, error in points if of_rates is rates]
            axis.plot(*zip(*some, strict=True), "o", ms=4, color=color, mfc=face) if some else None
    axis.set_yscale("log")
    axis.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axis.minorticks_off()
    axis.set_xlabel("epoch (hollow: trained at the level of rates)")
    axis.set_ylabel("error on the test set (%)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(given.out, format="svg", metadata={"Date": None})
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
