"""The command line: thin click commands over the Python API; heavy imports happen inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from .errors import Error

if TYPE_CHECKING:
    from .network import Network
    from .recording import Executor
    from .samples import Samples
    from .sim import Run
    from .sim.engine.profile import Profiler

EXIT_FAILED = 1  # the check, or the proof, says no
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

DATA_HELP = """

\b
DATA is one of
  digits      the test split of a data set by name (digits:train: the training split)
  FOLDER      a data set's folder, read as the network's recipe reads it (FOLDER:train)
  FILE.npz    arrays x [samples, ...] or [steps, samples, ...] and, for accuracy, y
  FILE.npy    the array x alone
"""


class Commands(click.Group):
    """Commands in the order of the pipeline; every error of ours becomes one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order of their definition."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; our errors end as one line on standard error."""
        try:
            return super().invoke(ctx)
        except Error as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"lapilli: error: {error}", err=True)
            ctx.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            click.echo(
                "lapilli: interrupted; what was finished in the folder --out is kept: go on with --resume", err=True
            )
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lapilli", message="lapilli %(version)s")
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
def main(debug: bool) -> None:
    """Deploy spiking networks on neuromorphic chips.

    What you train is what the chip runs, bit for bit, and you know what it costs before you own the chip.

    \b
    Start with:  lapilli run digits
    """


def _comma_separated(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def _with_data(command: click.Command) -> click.Command:
    """Append what ``DATA`` may be to a command's help."""
    command.help = cleandoc(command.help or "") + DATA_HELP
    return command


def _with_recipes(command: click.Command) -> click.Command:
    """Append what ``RECIPE`` may be to a command's help."""
    from .recipes import FOLDER

    names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))
    listed = fill(names, 76, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    command.help = (
        f"{cleandoc(command.help or '')}\n\n\b\nRECIPE is a .toml file, or one that comes with lapilli:\n{listed}"
    )
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for machines.")
network_argument = click.argument("network")  # a file, or the name of a trained network that comes with lapilli
data_argument = click.argument("data")
samples_option = click.option("--samples", type=click.IntRange(min=1), help="Use the first N samples only.")
overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key: --set network.neuron=lif"
)
resume_option = click.option("--resume", is_flag=True, help="Continue an interrupted training in the same folder.")
device_option = click.option("--device", default="cpu", show_default=True, help="Where to train: cpu, cuda, cuda:1.")
gpu_option = click.option("--device", help="Run on a GPU, in torch: cuda, cuda:1, mps.  [default: cpu]")
jobs_option = click.option("--jobs", type=int, help="Processes to run on.  [default: one for every processor]")
backend_option = click.option(
    "--backend",
    metavar="BACKEND[:ADDRESS]",
    help="Where workers run: joblib (processes here), dask, ray, dask:tcp://HOST:8786, ray:HOST:6379.",
)
tensorboard_option = click.option("--tensorboard", is_flag=True, help="Log training for TensorBoard as well as CSV.")
download_option = click.option(
    "--download", is_flag=True, help="Let torchvision or tonic fetch the recipe's data into data.folder."
)
out_option = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.  [default: runs/RECIPE]"
)


def chip_option(default: str) -> Callable[[Any], Any]:
    """``--chip``: names or TOML files, separated by commas."""
    return click.option(
        "--chip",
        "chips",
        default=default,
        show_default=True,
        metavar="CHIP[,CHIP]",
        callback=_comma_separated,
        help="Chip profiles: loihi1, loihi2, or a TOML file.",
    )


def inside_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``sim``'s options for looking inside."""
    options = (
        click.option(
            "--trace",
            multiple=True,
            metavar="NEURONS",
            help="Keep what neurons do at every step: hidden, 'hidden[0:10]', 'conv2[3,:,:]', 'conv2[3,4,5]'.",
        ),
        click.option(
            "--trace-samples", default="0", show_default=True, metavar="SAMPLES", help="Of which samples: 0:4,17"
        ),
        click.option(
            "--trace-quantities",
            default="spikes,u,v",
            show_default=True,
            callback=_comma_separated,
            help="Of spikes, u, v (membrane after the reset), current (arriving input).",
        ),
        click.option(
            "--trace-out",
            type=click.Path(path_type=Path),
            default="trace.npz",
            show_default=True,
            help="Where to: .npz, .zarr, or .h5 (NIR data).",
        ),
        click.option("--plots", type=click.Path(path_type=Path), help="Folder for figures: rates, raster, membranes."),
        click.option("--plot-format", type=click.Choice(["png", "svg"]), default="png", show_default=True),
        click.option(
            "--events",
            type=click.IntRange(min=0),
            default=5,
            show_default=True,
            help="Where states overflow, or policies differ: show the first N places.",
        ),
        click.option(
            "--policies",
            metavar="CHIP",
            help="Report the inputs on which sources for a chip (loihi1, or a TOML file) treat overflows otherwise.",
        ),
        click.option(
            "--follow",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Run N of these inputs to their end under each policy (slow).",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@_with_recipes
@main.command(short_help="Train, export, verify on Lava, cost: a whole recipe.")
@click.argument("recipe")
@out_option
@overrides_option
@resume_option
@device_option
@tensorboard_option
@download_option
@click.option("--against", callback=_comma_separated, help="Executors to compare.  [default: the recipe's]")
@json_option
def run(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    device: str,
    tensorboard: bool,
    download: bool,
    against: tuple[str, ...] | None,
    as_json: bool,
) -> None:
    """Run a whole RECIPE: train, export, check, simulate, run on Lava, verify, energy, report.

    Exit code 1 if any spike of any executor differs.

    \b
    Example:  lapilli run digits --out runs/digits
              lapilli run digits --set network.neuron=lif --set network.reset=zero
    """
    from .pipeline import run_recipe
    from .recipe import load_recipe
    from .terminal import Narrator, console

    loaded = load_recipe(recipe, overrides)
    narrator = Narrator(console(stderr=True))
    folder = _folder(out, loaded.name)
    finished = run_recipe(
        loaded, folder, resume=resume, executors=against, narrator=narrator, device=device, tensorboard=tensorboard,
        download=download,
    )  # fmt: skip
    if as_json:
        _print_json(finished.summary)
    if not finished.spikes_equal:
        sys.exit(EXIT_FAILED)


@_with_recipes
@main.command(short_help="Train a recipe: float, then bit-true.")
@click.argument("recipe")
@out_option
@overrides_option
@resume_option
@device_option
@tensorboard_option
@download_option
@json_option
def train(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    device: str,
    tensorboard: bool,
    download: bool,
    as_json: bool,
) -> None:
    """Train a RECIPE: float, then bit-true; leaves float.safetensors and checkpoint.safetensors.

    \b
    Example:  lapilli train digits --out runs/digits
              torchrun --nproc-per-node 4 -m lapilli train RECIPE --device cuda
    """
    from .pipeline import CHECKPOINT, train_recipe
    from .recipe import load_recipe
    from .terminal import Narrator, console

    loaded = load_recipe(recipe, overrides)
    folder = _folder(out, loaded.name)
    narrator = Narrator(console(stderr=True))
    trained = train_recipe(
        loaded, folder, resume=resume, narrator=narrator, device=device, tensorboard=tensorboard, download=download
    )
    _emit({"checkpoint": str(folder / CHECKPOINT), **trained.summary()}, as_json, lambda: f"{folder / CHECKPOINT}")


@main.command(short_help="Vary a recipe's settings over a grid.")
@click.argument("recipe")
@click.option(
    "--set",
    "axes",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    help="Vary a recipe key; KEY:KEY=VALUE:VALUE,VALUE:VALUE varies several in step; one value: set it.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Networks for every setting.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results.  [default: runs/RECIPE-sweep]",
)
@click.option("--resume", is_flag=True, help="Take what is finished in the folder; what failed runs again.")
@jobs_option
@backend_option
@device_option
@json_option
def sweep(
    recipe: str,
    axes: tuple[str, ...],
    seeds: int,
    out: Path | None,
    resume: bool,
    jobs: int | None,
    backend: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Train, export and simulate a RECIPE for every combination of settings; exit code 1 if any of them failed.

    Float training runs once for all points that differ only after it. Leaves sweep.csv, sweep.json and sweep.svg, and
    checkpoint and network.onnx of every point.

    \b
    Example:  lapilli sweep digits --set quantize.weight_bits=2,3,4,8 --set network.reset=subtract,zero --seeds 3
              lapilli sweep mnist --set network.neuron:network.threshold=if:2.0,lif:0.3 --jobs 4 --out sweep
    """
    from .scale.backends import Backend
    from .sweep.grid import points_of
    from .sweep.running import run_sweep
    from .sweep.table import document, render, write
    from .terminal import progress_bar

    points = points_of(recipe, axes, seeds)
    workers = Backend.parse(backend or "joblib", jobs)
    folder = _folder(out, f"{points[0].recipe.name}-sweep")
    with progress_bar(f"{len(points)} points ({workers})") as report:
        results = run_sweep(points, folder, backend=workers, resume=resume, device=device, progress=report)
    files = write(results, folder)
    _emit(document(results), as_json, lambda: render(results))
    click.echo(f"wrote {', '.join(str(path) for path in files)}", err=True)
    if any(r.error for r in results):
        sys.exit(EXIT_FAILED)


@main.command(short_help="Turn a checkpoint, NIR or lava-dl file into a network file.")
@click.argument("source")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default="network.onnx", show_default=True)
@click.option("--bits", type=click.IntRange(2, 8), help="Weight bits of a float checkpoint or NIR file.")
@click.option("--steps", type=click.IntRange(min=1), help="Time steps of a sample (NIR, .net).")
@click.option("--dt", type=float, help="Length of a step in the unit of a NIR file, read or written.")
@click.option("--reset", type=click.Choice(["zero", "subtract", "subtract-next"]), help="How neurons reset (NIR).")
@click.option("--discretization", type=click.Choice(["euler", "exponential"]), help="How time is cut into steps (NIR).")
@click.option("--input-shape", metavar="C,Y,X", help="Shape of a sample, where a .net file does not say it.")
@click.option("--external-data", is_flag=True, help="Weights in a file beside the .onnx, as for large networks.")
@click.option("--strict", is_flag=True, help="Refuse what a NIR file cannot say, instead of warning (NIR).")
@click.option("--report", is_flag=True, help="Measure what quantization costs each layer (float checkpoints).")
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 1, max_open=True),
    help="Search for the fewest weight bits of each layer that lose at most this share of the samples.",
)
@click.option(
    "--plots", type=click.Path(file_okay=False, path_type=Path), help="Folder for figures of the report and the search."
)
@json_option
def export(
    source: str,
    out: Path,
    as_json: bool,
    input_shape: str | None,
    report: bool,
    max_loss: float | None,
    plots: Path | None,
    **options: Any,
) -> None:
    """Export SOURCE to the network description.

    SOURCE is a checkpoint (bit-true: exactly; float: folded and quantized), a NIR file, a lava-dl .net file or a
    network.onnx; the suffix of --out says what is written: .onnx (executable ONNX), .nir or .net.

    \b
    Example:  lapilli export runs/digits/checkpoint.safetensors --out network.onnx
              lapilli export net.nir --steps 300 --dt 1e-3 --reset zero --discretization euler
              lapilli export network.onnx --out network.net
              lapilli export runs/digits/float.safetensors --max-loss 0.005 --report --plots figures
    """
    from .conversion import convert, save_figures
    from .export import render, summarize

    if plots is not None and not report and max_loss is None:
        raise click.BadParameter("there is nothing to draw; add --report or --max-loss", param_hint="--plots")
    try:
        shape = tuple(int(axis) for axis in input_shape.split(",")) if input_shape else None
    except ValueError:
        raise click.BadParameter(f"{input_shape!r}: give C,Y,X or N", param_hint="--input-shape") from None
    given = {name: value for name, value in (options | {"input_shape": shape}).items() if value not in (None, False)}
    made = convert(source, out, given, report=report, max_loss=max_loss)
    for warning in made.warnings:
        click.echo(f"lapilli: warning: {warning}", err=True)
    summary = summarize(made.network)
    document = {"file": str(out), **summary.to_json()}
    shown = [render(summary)]
    for name, part in (("search", made.search), ("report", made.report)):
        if part is not None:
            document[name] = part.to_json()
            shown.append(part.render())
    _emit(document, as_json, lambda: shown)
    for written in (out, *(save_figures(made, plots) if plots is not None else ())):
        click.echo(f"wrote {written}", err=True)


@main.command(short_help="List the trained networks that come with lapilli.")
@json_option
def networks(as_json: bool) -> None:
    """List the trained networks that come with lapilli; every command takes their names for NETWORK.

    \b
    Example:  lapilli networks
              lapilli energy digits digits
    """
    from .recipes import shipped_networks
    from .terminal import shipped_table

    listed = shipped_networks()
    _emit({"networks": listed}, as_json, lambda: shipped_table(listed))


@main.command(short_help="Show layers, shapes, bits, bounds of a network.")
@network_argument
@json_option
def inspect(network: str, as_json: bool) -> None:
    """Show what a NETWORK file holds: layers, shapes, bits, parameters, bounds.

    \b
    Example:  lapilli inspect network.onnx
    """
    from .export import render, summarize

    summary = summarize(_network(network))
    _emit(summary.to_json(), as_json, lambda: render(summary))


@main.command(short_help="Check a network against the design rules of chips.")
@network_argument
@chip_option("loihi1,loihi2")
@json_option
def check(network: str, chips: tuple[str, ...], as_json: bool) -> None:
    """Check a NETWORK against the design rules of chips; exit code 1 on violations.

    \b
    Example:  lapilli check network.onnx --chip loihi2
    """
    from .pipeline import check_chips
    from .terminal import checks_table

    found = check_chips(_network(network), chips)
    document = {chip: [v.to_json() for v in violations] for chip, violations in found.items()}
    _emit(document, as_json, lambda: checks_table(found))
    if any(v.severity == "error" for violations in found.values() for v in violations):
        sys.exit(EXIT_FAILED)


@main.command(short_help="Place a network on cores; with --run, execute it on Lava.")
@network_argument
@chip_option("loihi2")
@click.option("--run", "data", metavar="DATA", help="Also run DATA on Lava and report accuracy.")
@samples_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write a lava-dl .net file.")
@json_option
def deploy(
    network: str, chips: tuple[str, ...], data: str | None, samples: int | None, out: Path | None, as_json: bool
) -> None:
    """Partition a NETWORK and place it on the cores of chips; with --run, execute it on Lava.

    \b
    Example:  lapilli deploy network.onnx --chip loihi1
              lapilli deploy network.onnx --run digits --samples 32
    """
    from .deploy import plan
    from .terminal import run_table

    net = _network(network)
    plans = {chip: plan(net, chip) for chip in chips}
    document: dict[str, Any] = {chip: made.to_json() for chip, made in plans.items()}
    shown: list[Any] = list(plans.values())
    if out is not None:
        from .export import save_net

        document["file"] = str(save_net(net, out))
        shown.append(f"wrote {out}")
    if data is not None:
        wanted = _samples(data, net, samples)
        done = _simulate(net, wanted, "lava")
        document["lava"] = _result(done, wanted)
        shown.append(run_table(done, document["lava"]["accuracy"]))
    _emit(document, as_json, lambda: shown)


@_with_data
@main.command(name="sim", short_help="Simulate: accuracy, spike rates, synaptic operations.")
@network_argument
@data_argument
@samples_option
@click.option("--engine", help="fast, reference, onnxruntime, torch or lava.  [default: fast; torch on a GPU]")
@gpu_option
@click.option("--profile", is_flag=True, help="Per layer: path, density, time, synaptic operations/s (engine fast).")
@click.option("--jobs", type=int, help="Run parts of DATA on so many processes.")
@backend_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder that keeps finished parts.")
@click.option("--resume", is_flag=True, help="Take the parts that are in the folder --out.")
@inside_options
@json_option
def simulate_command(
    network: str,
    data: str,
    samples: int | None,
    engine: str | None,
    device: str | None,
    profile: bool,
    jobs: int | None,
    backend: str | None,
    out: Path | None,
    resume: bool,
    as_json: bool,
    **inside: Any,
) -> None:
    """Simulate a NETWORK on DATA: accuracy, spike rates, synaptic operations, overflows.

    \b
    Example:  lapilli sim network.onnx digits
              lapilli sim network.onnx digits --device cuda
              lapilli sim network.onnx digits --profile
              lapilli sim network.onnx digits --trace 'fc1[0:10]' --trace 'conv2[3,:,:]' --plots figures
              lapilli sim network.onnx cifar.npz --jobs 8 --out parts --resume
              lapilli sim network.onnx cifar.npz --backend dask:tcp://head:8786
    """
    from .sim.executors import for_device
    from .sim.inside.look import Look
    from .terminal import profile_table, run_table

    net = _network(network)
    wanted = _samples(data, net, samples)
    executor = for_device(engine, device)
    profiler = _profiler(executor) if profile else None
    look = Look(net, wanted.x, executor, **inside)  # what cannot be traced is refused before the long run
    in_parts = (jobs, backend, out, resume) != (None, None, None, False)
    if in_parts and profiler:
        raise click.BadParameter(
            "workers show no profile; leave --jobs, --backend and --out out", param_hint="--profile"
        )
    if in_parts:
        done = _simulate_in_parts(net, wanted, executor, backend or "joblib", jobs, out, resume)
    else:
        done = _simulate(net, wanted, executor, profiler)
    seen = look.inside(done)
    document = _result(done, wanted) | seen.to_json()
    tables = [run_table(done, document["accuracy"])]
    if profiler:
        document["profile"] = profiler.to_json(done)
        tables.append(profile_table(profiler, done))
    _emit(document, as_json, lambda: [*tables, *seen.lines()])


def _profiler(engine: str) -> Profiler:
    from .sim.engine.profile import Profiler

    if engine != "fast":
        raise click.BadParameter(f"the engine {engine!r} shows no profile; use fast", param_hint="--profile")
    return Profiler()


@_with_data
@main.command(short_help="Prove that executors emit the same spikes.")
@network_argument
@data_argument
@samples_option
@click.option(
    "--against",
    default="fast,torch,onnxruntime,lava",
    show_default=True,
    callback=_comma_separated,
    help="Executors to compare with the reference.",
)
@gpu_option
@json_option
def verify(
    network: str, data: str, samples: int | None, against: tuple[str, ...], device: str | None, as_json: bool
) -> None:
    """Prove that executors emit the same spikes for a NETWORK on DATA; exit code 1 if they differ.

    \b
    Example:  lapilli verify network.onnx digits --against onnxruntime,lava
              lapilli verify network.onnx digits --against torch --device cuda
    """
    from .sim import verify as prove
    from .sim.executors import for_device
    from .terminal import progress_bar

    if device is not None and "torch" not in against:
        raise click.BadParameter("only torch runs on another device; name it in --against", param_hint="--device")
    against = tuple(for_device(name, device) if name == "torch" else name for name in against)
    net = _network(network)
    wanted = _samples(data, net, samples)
    with progress_bar("verifying") as report:
        proof = prove(net, wanted.x, against=against, y=wanted.y, progress=report)
    _emit(proof.to_json(), as_json, lambda: str(proof))
    if not proof.equal:
        sys.exit(EXIT_FAILED)


@_with_data
@main.command(short_help="Estimate energy and latency, with sources.")
@network_argument
@data_argument
@samples_option
@chip_option("loihi1")
@json_option
def energy(network: str, data: str, samples: int | None, chips: tuple[str, ...], as_json: bool) -> None:
    """Estimate energy and latency per inference of a NETWORK on DATA, low to high, with sources.

    \b
    Example:  lapilli energy network.onnx digits --chip loihi1,loihi2
    """
    from .sim import energy as estimate

    net = _network(network)
    done = _simulate(net, _samples(data, net, samples), "fast")
    costs = {chip: estimate(net, done, chip=chip) for chip in chips}
    document = {chip: cost.to_json() for chip, cost in costs.items()}
    _emit(document, as_json, lambda: [cost.render() for cost in costs.values()])


@main.command(short_help="Write the HTML page of a finished run again.")
@click.argument("run_dir", type=click.Path(path_type=Path))
def report(run_dir: Path) -> None:
    """Write the HTML page of a finished run again, from what is in RUN_DIR.

    \b
    Example:  lapilli report runs/digits
    """
    from .pipeline import rewrite_report

    click.echo(rewrite_report(run_dir))


def _folder(out: Path | None, name: str) -> Path:
    return out if out is not None else Path("runs") / name


def _network(path: str) -> Network:
    from .export import load

    return load(path)


def _samples(data: str, network: Network, limit: int | None) -> Samples:
    from .samples import read_samples

    return read_samples(data, network, limit)


def _simulate(network: Network, wanted: Samples, engine: str, executor: Executor | None = None) -> Run:
    from .sim import simulate
    from .terminal import progress_bar

    with progress_bar(f"simulating ({engine})") as report:
        return simulate(network, wanted.x, engine=executor or engine, progress=report)


def _simulate_in_parts(
    network: Network, wanted: Samples, engine: str, backend: str, jobs: int | None, out: Path | None, resume: bool
) -> Run:
    from .scale.backends import Backend
    from .sim import simulate_in_parts
    from .terminal import progress_bar

    workers = Backend.parse(backend, jobs)
    with progress_bar(f"simulating ({engine}; {workers})") as report:
        return simulate_in_parts(network, wanted.x, engine, backend=workers, keep=out, resume=resume, progress=report)


def _result(done: Run, wanted: Samples) -> dict[str, Any]:
    accuracy = done.accuracy(wanted.y) if wanted.y is not None and done.predictions is not None else None
    return {"data": wanted.name, "accuracy": accuracy, **done.to_json()}


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def _emit(document: dict[str, Any], as_json: bool, show: Callable[[], Any]) -> None:
    """Print ``document`` as JSON, or what ``show`` makes of it for people."""
    if as_json:
        _print_json(document)
        return
    from .terminal import console

    shown = show()
    out = console()
    for part in shown if isinstance(shown, list) else [shown]:
        out.print(part, markup=False, soft_wrap=isinstance(part, str))  # a path that is broken cannot be copied
