"""From whatever holds a network to a description: checkpoints, ONNX, NIR and lava-dl files (``lapilli export``)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FileFormatError, RecipeError, UnsupportedError
from .network import Network
from .recipe import Recipe
from .whole_file import write_texts

if TYPE_CHECKING:
    from .export.bit_search import MixedPrecision
    from .export.sensitivity import QuantizationReport

FILES = (".onnx", ".nir", ".net")
WIDTHS = (8, 6, 5, 4, 3, 2)


@dataclass(frozen=True)
class Converted:
    """A description, and what was found out on the way.

    Attributes
    ----------
    network : Network
    warnings : tuple of str
        What the formats read or written cannot say.
    report : QuantizationReport or None
    search : MixedPrecision or None
        Only where they were asked for.
    """

    network: Network
    warnings: tuple[str, ...] = ()
    report: QuantizationReport | None = None
    search: MixedPrecision | None = None


def convert(
    source: str, out: Path, options: Mapping[str, Any], *, report: bool = False, max_loss: float | None = None
) -> Converted:
    """Read a checkpoint, NIR, lava-dl or ONNX file, and write it as the suffix of ``out`` says.

    Parameters
    ----------
    source : str
    out : Path
    options : mapping
        What the user gave: ``bits``, ``steps``, ``dt``, ``reset``, ``discretization``, ``input_shape``, ``strict``,
        ``external_data``.
    report, max_loss
        Of float checkpoints: see :func:`convert_checkpoint`.

    Raises
    ------
    UnsupportedError
        If an option does not belong to the formats read and written.
    """
    from .export import load, save

    reading: dict[str, Any] = dict(options)
    writing = {"external_data": reading.pop("external_data")} if "external_data" in reading else {}
    if out.suffix.lower() == ".nir":
        shared = source.lower().endswith(".nir")  # then dt and strict are meant for both
        for name in ("dt", "strict"):
            if name in reading:
                writing[name] = reading[name] if shared else reading.pop(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if Path(source).suffix.lower() in FILES:
            if report or max_loss is not None:
                raise UnsupportedError(f"{source}: --report and --max-loss need a float checkpoint, to quantize it")
            if "bits" in reading:
                reading["weight_bits"] = reading.pop("bits")
            made = Converted(load(source, **reading))
        else:
            bits = reading.pop("bits", None)
            if reading:
                raise UnsupportedError(f"{source}: {', '.join(reading)}: a checkpoint says this itself; leave it out")
            made = convert_checkpoint(source, bits, report=report, max_loss=max_loss)
        save(made.network, out, **writing)
    ours = __name__.partition(".")[0]
    texts = tuple(str(w.message) for w in said if w.category.__module__.partition(".")[0] == ours)
    return Converted(made.network, texts, made.report, made.search)


def convert_checkpoint(
    path: str, bits: int | None = None, *, report: bool = False, max_loss: float | None = None
) -> Converted:
    """The description of a checkpoint: exact for bit-true ones, folded and quantized for float ones.

    With ``max_loss`` the bits of each layer are searched for on every second test sample, and the report is measured
    on the others; without, it is measured on the whole test set. (The training samples would hide the loss: a network
    knows them by heart.)

    Parameters
    ----------
    path : str
    bits : int, optional
        Weight bits; by default the recipe's.
    report : bool
        Measure what quantization costs each layer.
    max_loss : float, optional
        Search for the fewest bits of each layer that lose at most this share of the samples.

    Raises
    ------
    FileFormatError
        If the file is not a checkpoint of ours.
    RecipeError
        If ``bits``, ``report`` or ``max_loss`` is given for a bit-true checkpoint, whose bits are part of its training.
    """
    from .export.calibration import calibrate
    from .export.lowering import lower
    from .export.quantization import quantize_with_latent
    from .sim.executors import find
    from .train.bit_true import BitTrueNetwork
    from .train.checkpoint import load
    from .train.data import load as load_data
    from .train.model import build

    found = load(path)
    try:
        recipe = Recipe.model_validate(found.header.recipe)
    except ValueError as error:
        raise FileFormatError(f"{path}: holds no recipe that this lapilli reads ({error})") from None
    if found.header.stage == "relu":
        raise FileFormatError(
            f"{path}: holds a ReLU network, which has no thresholds; give float.safetensors beside it"
        )
    if found.header.stage == "bit-true":
        asked = {"--bits": bits is not None, "--report": report, "--max-loss": max_loss is not None}
        if any(asked.values()):
            raise RecipeError(
                f"{path}: is bit-true; its weight bits are part of its training. Export without "
                f"{', '.join(name for name, given in asked.items() if given)}, or give the float checkpoint"
            )
        trained = BitTrueNetwork.from_state(path, found.kept)
        said = {"recipe": recipe.provenance(), "method": f"{recipe.method}, then bit-true fine-tuning"}
        return Converted(trained.to_network({**trained.network.metadata, **said}))
    data = load_data(recipe.data, recipe.network.steps)
    calibration = data.train.calibration()
    model = build(recipe.network, data.shape, data.n_classes, seed=recipe.train.seed)
    model.load_state_dict(found.kept)
    folded = lower(model.double(), name=recipe.name, labels=data.labels, reset=recipe.quantize.reset)
    config = recipe.quantize if bits is None else recipe.quantize.model_copy(update={"weight_bits": bits})
    yardstick = folded
    if max_loss is None:  # the search calibrates for itself, at every width
        folded, config = calibrate(folded, config, calibration, execute=find("fast"))
    measured, search = None, None
    if report or max_loss is not None:
        from .export.bit_search import mixed_precision
        from .export.sensitivity import quantization_report

        fast, judged = find("fast"), data.test
        if max_loss is not None:
            widths = [w for w in WIDTHS if bits is None or w <= bits]
            choosing, judged = judged.take(slice(0, None, 2)), judged.take(slice(1, None, 2))
            search = mixed_precision(
                folded, config, choosing.values(), choosing.y,
                calibration=calibration, execute=fast, max_loss=max_loss, candidates=widths,
            )  # fmt: skip
            folded, config = search.folded, search.config
        if report:
            made = quantize_with_latent(folded, config, calibration)
            measured = quantization_report(yardstick, config, judged.values(), judged.y, made=made, execute=fast)
    network = quantize_with_latent(folded, config, calibration).network
    metadata = {**network.metadata, "recipe": recipe.provenance(), "method": f"{recipe.method}, quantized"}
    return Converted(BitTrueNetwork(network).to_network(metadata), (), measured, search)


def save_figures(made: Converted, folder: Path) -> list[Path]:
    """Draw what was measured: ``report.svg`` and ``search.svg``, as far as there is a report or a search.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    FileFormatError
        If a figure cannot be written.
    """
    from .export.quantization_plots import plot, plot_search

    drawn = {"report.svg": made.report and plot(made.report), "search.svg": made.search and plot_search(made.search)}
    return write_texts(folder, [(name, svg) for name, svg in drawn.items() if svg is not None])
