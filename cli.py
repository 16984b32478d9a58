"""The command line: thin click commands over the Python API; heavy imports happen inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .network import Network
    from .samples import Samples

EXIT_FAILED = 1  # the check, or the proof, says no
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


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
                "lapilli: interrupted; what was finished is kept, train and run continue with --resume", err=True
            )
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lapilli", message="lapilli %(version)s")
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
def main(debug: bool) -> None:
    r"""Deploy spiking networks on neuromorphic chips.

    What you train is what the chip runs, bit for bit, and you know what it costs before you own the chip.

    \b
    Start with:  lapilli run digits
    """


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``: one JSON document on standard output and nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for machines.")(command)


def chips_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--chip``: names or TOML files, separated by commas."""

    def split(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in value.split(",") if part.strip())

    return click.option("--chip", "chips", default=default, show_default=True, metavar="CHIP[,CHIP]", callback=split,
                        help="Chip profiles: loihi1, loihi2, or a TOML file.")  # fmt: skip


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``DATA`` and how much of it."""
    command = click.option("--samples", type=click.IntRange(min=1), help="Use the first N samples only.")(command)
    return click.argument("data")(command)


def emit(value: dict[str, Any], as_json: bool, show: Callable[[], Any]) -> None:
    """Print ``value`` as JSON, or whatever ``show`` returns for people."""
    if as_json:
        click.echo(json.dumps(value, indent=2))
        return
    shown = show()
    if shown is not None:
        console().print(shown)


def console(stderr: bool = False) -> Any:
    """A rich console, 100 columns wide when nobody says otherwise."""
    from rich.console import Console

    chosen = Console(stderr=stderr, highlight=False)
    return chosen if chosen.is_terminal else Console(stderr=stderr, highlight=False, width=110)


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's standard error, silence elsewhere; yields ``report(done, total)``."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def load_network(path: str) -> Network:
    """The description in a file, whatever its format."""
    from .export import load

    return load(path)


def load_samples(data: str, network: Network, samples: int | None) -> Samples:
    """``DATA`` of a command as arrays that fit the network."""
    from .samples import read_samples

    return read_samples(data, network, samples)


DATA_HELP = """
    \b
    DATA is one of
      digits              the test split of a data set by name (digits:train for the training split)
      FILE.npz            arrays x [samples, ...] (or [steps, samples, ...]) and, for accuracy, y [samples]
      FILE.npy            the array x alone
"""


def with_data_help(command: Callable[..., Any]) -> Callable[..., Any]:
    """Append what ``DATA`` may be to a command's help."""

    @wraps(command)
    def same(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    same.__doc__ = (command.__doc__ or "") + DATA_HELP
    return same


@main.command()
@click.argument("recipe")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Where results go  [default: runs/RECIPE]"
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key: --set network.neuron=lif"
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run in the same folder.")
@click.option("--against", help="Executors to compare, separated by commas  [default: the recipe's]")
@json_option
def run(
    recipe: str, out: Path | None, overrides: tuple[str, ...], resume: bool, against: str | None, as_json: bool
) -> None:
    r"""Run a whole RECIPE: train, export, check, simulate, run on Lava, verify, energy, report.

    \b
    Example:  lapilli run digits --out runs/digits
              lapilli run digits --set network.neuron=lif --set network.reset=zero
    """
    from .pipeline import Narrator, run_recipe
    from .recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    executors = _names(against) if against is not None else None
    result = run_recipe(
        loaded,
        out or Path("runs") / loaded.name,
        resume=resume,
        executors=executors,
        narrator=Narrator(console(stderr=True)),
    )
    emit(result.summary, as_json, lambda: None)
    if not result.spikes_equal:
        sys.exit(EXIT_FAILED)


@main.command()
@click.argument("recipe")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Where checkpoints go  [default: runs/RECIPE]"
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key: --set train.epochs=5"
)
@click.option("--resume", is_flag=True, help="Continue an interrupted training in the same folder.")
@json_option
def train(recipe: str, out: Path | None, overrides: tuple[str, ...], resume: bool, as_json: bool) -> None:
    r"""Train a RECIPE: float, then bit-true; leaves float.safetensors and checkpoint.safetensors.

    \b
    Example:  lapilli train digits --out runs/digits
    """
    from .pipeline import Narrator, train_recipe
    from .recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / loaded.name
    result = train_recipe(loaded, folder, resume=resume, narrator=Narrator(console(stderr=True)))
    emit(result.training_summary(), as_json, lambda: f"checkpoint: {folder / 'checkpoint.safetensors'}")


@main.command()
@click.argument("checkpoint")
@click.option(
    "--out", "out", type=click.Path(dir_okay=False, path_type=Path), default="network.onnx", show_default=True
)
@click.option("--bits", type=click.IntRange(2, 8), help="Weight bits (float checkpoints)  [default: the recipe's]")
@json_option
def export(checkpoint: str, out: Path, bits: int | None, as_json: bool) -> None:
    r"""Export a CHECKPOINT to the network description (executable ONNX).

    A bit-true checkpoint is exported exactly; a float one is folded and quantized after training.

    \b
    Example:  lapilli export runs/digits/checkpoint.safetensors --out network.onnx
    """
    from .export import render, save, summarize
    from .pipeline import export_checkpoint

    network = export_checkpoint(checkpoint, bits=bits)
    save(network, out)
    summary = summarize(network)
    emit({"file": str(out), **summary.to_json()}, as_json, lambda: render(summary))
    if not as_json:
        click.echo(f"wrote {out}")


@main.command()
@click.argument("network")
@json_option
def inspect(network: str, as_json: bool) -> None:
    r"""Show what a NETWORK file holds: layers, shapes, bits, parameters, bounds.

    \b
    Example:  lapilli inspect network.onnx
    """
    from .export import render, summarize

    summary = summarize(load_network(network))
    emit(summary.to_json(), as_json, lambda: render(summary))


@main.command()
@click.argument("network")
@chips_option("loihi1,loihi2")
@json_option
def check(network: str, chips: tuple[str, ...], as_json: bool) -> None:
    r"""Check a NETWORK against the design rules of chips; exit code 1 on violations.

    \b
    Example:  lapilli check network.onnx --chip loihi2
    """
    from .pipeline import check_chips, render_checks

    found = check_chips(load_network(network), chips)
    emit(
        {name: [v.to_json() for v in violations] for name, violations in found.items()},
        as_json,
        lambda: render_checks(found),
    )
    if any(v.severity == "error" for violations in found.values() for v in violations):
        sys.exit(EXIT_FAILED)


@main.command()
@click.argument("network")
@chips_option("loihi2")
@click.option("--run", "data", metavar="DATA", help="Also run DATA on Lava and report accuracy.")
@click.option("--samples", type=click.IntRange(min=1), help="With --run: the first N samples only.")
@json_option
def deploy(network: str, chips: tuple[str, ...], data: str | None, samples: int | None, as_json: bool) -> None:
    r"""Partition a NETWORK and place it on the cores of chips; with --run, execute it on Lava.

    \b
    Example:  lapilli deploy network.onnx --chip loihi1
              lapilli deploy network.onnx --run digits --samples 32
    """
    from .deploy import plan
    from .sim import simulate

    net = load_network(network)
    plans = {chip: plan(net, chip) for chip in chips}
    document: dict[str, Any] = {chip: made.to_json() for chip, made in plans.items()}
    on_lava = None
    if data is not None:
        wanted = load_samples(data, net, samples)
        with progress_bar("Lava") as report:
            on_lava = simulate(net, wanted.x, engine="lava", progress=report)
        document["lava"] = _result(on_lava, wanted)

    def show() -> Any:
        from rich.console import Group

        lines = [made.render() for made in plans.values()]
        if on_lava is not None:
            lines.append(_result_line(document["lava"]))
        return Group(*lines)

    emit(document, as_json, show)


@main.command(name="sim")
@click.argument("network")
@data_options
@click.option("--engine", default="fast", show_default=True, help="fast, reference, onnxruntime, torch or lava.")
@json_option
@with_data_help
def simulate_command(network: str, data: str, samples: int | None, engine: str, as_json: bool) -> None:
    r"""Simulate a NETWORK on DATA: accuracy, spike rates, synaptic operations, overflows.

    \b
    Example:  lapilli sim network.onnx digits
    """
    from .pipeline import render_run
    from .sim import simulate

    net = load_network(network)
    wanted = load_samples(data, net, samples)
    with progress_bar("simulating") as report:
        done = simulate(net, wanted.x, engine=engine, progress=report)
    document = _result(done, wanted)
    emit(document, as_json, lambda: render_run(net, done, document))


@main.command()
@click.argument("network")
@data_options
@click.option(
    "--against", default="fast,torch,onnxruntime,lava", show_default=True, help="Executors, separated by commas."
)
@json_option
@with_data_help
def verify(network: str, data: str, samples: int | None, against: str, as_json: bool) -> None:
    r"""Prove that executors emit the same spikes for a NETWORK on DATA; exit code 1 if they differ.

    \b
    Example:  lapilli verify network.onnx digits --against onnxruntime,lava
    """
    from .sim import verify as prove

    net = load_network(network)
    wanted = load_samples(data, net, samples)
    with progress_bar("verifying") as report:
        proof = prove(net, wanted.x, against=_names(against), y=wanted.y, progress=report)
    emit(proof.to_json(), as_json, lambda: str(proof))
    if not proof.equal:
        sys.exit(EXIT_FAILED)


@main.command()
@click.argument("network")
@data_options
@chips_option("loihi1")
@json_option
@with_data_help
def energy(network: str, data: str, samples: int | None, chips: tuple[str, ...], as_json: bool) -> None:
    r"""Estimate energy and latency per inference of a NETWORK on DATA, low to high, with sources.

    \b
    Example:  lapilli energy network.onnx digits --chip loihi1,loihi2
    """
    from .sim import energy as estimate
    from .sim import simulate

    net = load_network(network)
    wanted = load_samples(data, net, samples)
    with progress_bar("simulating") as report:
        done = simulate(net, wanted.x, progress=report)
    reports = {chip: estimate(net, done, chip=chip) for chip in chips}

    def show() -> Any:
        from rich.console import Group

        return Group(*(made.render() for made in reports.values()))

    emit({chip: made.to_json() for chip, made in reports.items()}, as_json, show)


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
def report(run_dir: Path) -> None:
    r"""Write the HTML page of a finished run again, from what is in RUN_DIR.

    \b
    Example:  lapilli report runs/digits
    """
    from .pipeline import rewrite_report

    click.echo(rewrite_report(run_dir))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _result(done: Any, wanted: Samples) -> dict[str, Any]:
    accuracy = done.accuracy(wanted.y) if wanted.y is not None and done.predictions is not None else None
    return {"data": wanted.name, "accuracy": accuracy, **done.to_json()}


def _result_line(document: dict[str, Any]) -> str:
    accuracy = document["accuracy"]
    return f"Lava: {document['n_samples']} samples" + (f", accuracy {accuracy:.2%}" if accuracy is not None else "")
