"""The command line as a user meets it: results, exit codes, one clear line for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lapilli
from lapilli.cli import main
from lapilli.network import Connection, Conv2d, Dense, Input, Network, Population, Readout


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(3)
    conv = Conv2d(rng.integers(-60, 61, (4, 1, 3, 3)), padding=1, stride=2)
    return Network(
        name="small",
        steps=4,
        input=Input(shape=(1, 8, 8), high=16, scale=np.array([1 / 16])),
        populations=[
            Population(name="conv1", shape=(4, 4, 4), threshold=64 * 900, reset_amount=64 * 900),
            Population(name="fc1", shape=(10,), threshold=64 * 40, reset_amount=64 * 40),
        ],
        connections=[
            Connection(source="input", target="conv1", synapse=conv),
            Connection(source="conv1", target="fc1", synapse=Dense(rng.integers(-40, 61, (10, 64)))),
        ],
        readout=Readout(population="fc1"),
        labels=[str(c) for c in range(10)],
    )


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "network.onnx"
    lapilli.save(network, path)
    return str(path)


def call(*args):
    """Run a command in this process: (exit code, standard output, standard error)."""
    result = CliRunner().invoke(main, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_help_names_every_command_in_pipeline_order():
    code, out, _ = call("--help")
    assert code == 0
    commands = ["run", "train", "sweep", "export", "inspect", "check", "deploy", "sim", "verify", "energy", "report"]
    places = [out.index(f"\n  {command} ") for command in commands]
    assert places == sorted(places)
    for command in commands:
        code, out, _ = call(command, "--help")
        assert code == 0
        assert f"lapilli {command}" in out, "an example"


def test_help_imports_nothing_heavy():
    code = "import sys; from lapilli.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'matplotlib', 'pydantic', 'rich', 'lava'}\n"
    code += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_inspect_and_its_json(file, network):
    code, out, _ = call("inspect", file)
    assert code == 0
    assert "conv1" in out
    code, out, _ = call("inspect", file, "--json")
    assert code == 0
    assert json.loads(out)["digest"] == network.digest()


def test_sim_reports_the_accuracy_of_the_python_call(file, network):
    code, out, _ = call("sim", file, "digits", "--json")
    assert code == 0
    document = json.loads(out)
    from lapilli.samples import read_samples

    test = read_samples("digits", network)
    run = lapilli.simulate(network, test.x)
    assert document["accuracy"] == run.accuracy(test.y)
    assert document["synops"] == run.synop_totals
    code, out, _ = call("sim", file, "digits", "--samples", "5")
    assert code == 0
    assert "conv1" in out


def test_verify_says_equal(file):
    code, out, _ = call("verify", file, "digits", "--samples", "20", "--against", "fast,onnxruntime", "--json")
    assert code == 0
    assert json.loads(out)["equal"] is True


def test_check_exits_1_on_violations(file, network, tmp_path):
    assert call("check", file, "--chip", "loihi2")[0] == 0
    import dataclasses

    first, *rest = network.populations
    off_grid = dataclasses.replace(network, populations=[dataclasses.replace(first, threshold=1000), *rest])
    lapilli.save(off_grid, tmp_path / "off.onnx")
    code, out, _ = call("check", str(tmp_path / "off.onnx"), "--chip", "loihi2", "--json")
    assert code == 1
    violations = json.loads(out)["loihi2"]
    assert any("conv1" in v["where"] for v in violations if v["severity"] == "error")


def test_deploy_and_energy(file):
    code, out, _ = call("deploy", file, "--chip", "loihi1,loihi2", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"loihi1", "loihi2"}
    code, out, _ = call("energy", file, "digits", "--samples", "10", "--chip", "loihi1,loihi2", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["loihi1"]["energy"] is not None
    assert document["loihi2"]["energy"] is None, "no energies of Loihi 2 are published"
    for command in (("deploy", file), ("energy", file, "digits", "--samples", "10")):
        assert call(*command)[0] == 0


def bad_inputs(tmp_path, file):
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(Path(file).read_bytes()[:700])
    np.savez(tmp_path / "wrong.npz", x=np.zeros((3, 1, 9, 9)))
    recipe = tmp_path / "typo.toml"
    recipe.write_text(
        'name = "x"\n[data]\nname = "digits"\nflavour = "sweet"\n[network]\nlayers = [{type = "linear"}]\n[train]\n'
    )
    folder = tmp_path / "no-folder.toml"
    folder.write_text(
        recipe.read_text().replace('"digits"', '"arrays"').replace('flavour = "sweet"', 'folder = "absent"')
    )
    return {
        "truncated file": (("inspect", str(truncated)), "truncated.onnx"),
        "absent file": (("inspect", str(tmp_path / "none.onnx")), "none.onnx"),
        "a folder": (("inspect", str(tmp_path)), str(tmp_path)),
        "unknown suffix": (("inspect", str(recipe)), "typo.toml"),
        "wrong shape": (("sim", file, str(tmp_path / "wrong.npz")), "does not fit"),
        "unknown data": (("sim", file, "digitz"), "digitz"),
        "unknown engine": (("sim", file, "digits", "--engine", "warp"), "warp"),
        "absent device": (("sim", file, "digits", "--device", "cuda:99"), "'cuda:99' cannot be used here"),
        "engine off its device": (("sim", file, "digits", "--device", "cuda", "--engine", "fast"), "use torch there"),
        "absent device to verify": (("verify", file, "digits", "--against", "torch", "--device", "gpu"), "'gpu'"),
        "unknown executor": (("verify", file, "digits", "--against", "warp"), "warp"),
        "unknown chip": (("check", file, "--chip", "loihi9"), "loihi9"),
        "recipe typo": (("run", str(recipe), "--out", str(tmp_path / "out")), "line 4: unknown key 'data.flavour'"),
        "unknown recipe": (("run", "digit"), "did you mean 'digits'"),
        "missing data folder": (("train", str(folder), "--out", str(tmp_path / "out")), "absent"),
        "not a checkpoint": (("export", str(recipe)), "typo.toml"),
        "not a run": (("report", str(tmp_path)), "report.json"),
        "absent checkpoint": (("export", str(tmp_path / "none.safetensors")), "none.safetensors"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "truncated file", "absent file", "a folder", "unknown suffix", "wrong shape", "unknown data", "unknown engine",
        "absent device", "engine off its device", "absent device to verify",
        "unknown executor", "unknown chip", "recipe typo", "unknown recipe", "missing data folder", "not a checkpoint",
        "not a run", "absent checkpoint",
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path, file):
    args, names = bad_inputs(tmp_path, file)[case]
    code, out, err = call(*args)
    assert code == 2
    assert out == ""
    assert err.startswith("lapilli: error: ")
    assert err.count("\n") == 1
    assert names in err


def test_debug_shows_the_traceback(tmp_path):
    from lapilli.errors import Error

    with pytest.raises(Error):
        CliRunner().invoke(main, ["--debug", "inspect", str(tmp_path / "none.onnx")], catch_exceptions=False)


def test_lava_absent_is_said_before_any_work(file, monkeypatch):
    for name in [m for m in sys.modules if m == "lava" or m.startswith("lava.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lava", None)  # what "not installed" looks like to import
    code, _, err = call("verify", file, "digits", "--samples", "2", "--against", "lava")
    assert code == 2
    assert "lava" in err
    assert "install" in err
    assert err.count("\n") == 1
