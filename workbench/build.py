"""`python -m workbench.build`: check the configuration, build with SAM, and make the result start fast.

SAM ships no bytecode and dates all files in its zips 1980, so Python would compile every module at every
cold start, which takes about 2.5 times as long. Unchecked-hash .pyc files look at no date, and Lambda's
folders are read-only, so the only time to write them is now.
"""

import argparse
import compileall
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from py_compile import PycInvalidationMode

from samtranslator.yaml_helper import yaml_parse

from crm_relay.settings import ConfigurationError, load_settings

ROOT = Path(__file__).parents[1]
DEPENDENCIES_LIMIT = 25_000_000
"""Bytes of the dependencies layer, unzipped: what Lambda unpacks and reads costs time at every cold start."""

_UNUSED = tuple(f"phonenumbers/{tables}" for tables in ("carrierdata", "geodata", "tzdata"))
"""Names of carriers, places and time zones by phone number: 20 MB that nobody asks."""


class BuildError(Exception):
    """The build cannot go on; the message is for the person who started it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Build as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m workbench.build", description="Build what is deployed.")
    parser.add_argument("--config-env", default="default", help="environment of samconfig.toml")
    parser.add_argument("--architecture", choices=("arm64", "x86_64"), help="if not the one that is deployed")
    options = parser.parse_args(arguments)
    try:
        require_runtime(sys.version_info[:2])
        load_settings(ROOT / "layers/configuration/relay.toml")
        built = sam_build(options.config_env, options.architecture)
        finish(built)
    except (BuildError, ConfigurationError) as error:
        sys.exit(f"build: {error}")


def require_runtime(version: tuple[int, int]) -> None:
    """Refuse any Python but the runtime's: bytecode of another minor version is ignored there.

    Raises:
        BuildError: `version` is not the one in .python-version.
    """
    wanted = (ROOT / ".python-version").read_text("utf-8").strip()
    found = f"{version[0]}.{version[1]}"
    if found != wanted:
        raise BuildError(
            f"the functions run on Python {wanted} and only that can compile them; this is {found}. "
            f"Install Python {wanted}, remove .venv and try again."
        )


def sam_build(config_env: str = "default", architecture: str | None = None) -> Path:
    """Run `sam build` and return the folder with the result.

    Another `architecture` than the deployed one is built into a folder of its own, where `sam deploy` does not look.

    Raises:
        BuildError: it failed; the message is SAM's output.
    """
    deployed = deployed_architecture(config_env)
    architecture = architecture or deployed
    built = Path(".aws-sam", "build" if architecture == deployed else f"build-{architecture}")
    print(f"Building for {architecture} …", flush=True)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "samcli", "build", "--config-env", config_env),
            *("--build-dir", str(built), "--parameter-overrides", f"Architecture={architecture}"),
        ],
        cwd=ROOT,
        # SAM looks for the runtime's interpreter on the PATH, and for pip in it.
        env={
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "SAM_CLI_TELEMETRY": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if run.returncode:
        raise BuildError(f"sam build failed\n{run.stdout}")
    return ROOT / built


def deployed_architecture(config_env: str) -> str:
    """Return what samconfig.toml, or else the template, sets the parameter Architecture to.

    Raises:
        BuildError: samconfig.toml has no such environment.
    """
    environments = tomllib.loads((ROOT / "samconfig.toml").read_text("utf-8"))
    if config_env not in environments:
        raise BuildError(f"samconfig.toml has no environment {config_env!r}")
    overrides = environments[config_env]["global"]["parameters"].get("parameter_overrides", "")
    template = yaml_parse((ROOT / "template.yaml").read_text("utf-8"))
    default = template["Parameters"]["Architecture"]["Default"]
    return str(dict(pair.split("=", 1) for pair in overrides.split()).get("Architecture", default))


def finish(built: Path) -> None:
    """Drop what is not used, compile the rest, and print what there is.

    Raises:
        BuildError: a file does not compile, or the dependencies have grown beyond their limit.
    """
    folders = sorted(folder for folder in built.iterdir() if folder.is_dir())
    for folder in folders:
        for unused in _UNUSED:
            shutil.rmtree(folder / "python" / unused, ignore_errors=True)
        precompile(folder)
        sizes = [file.stat().st_size for file in _files(folder)]
        compiled = sum(file.suffix == ".pyc" for file in _files(folder))
        print(f"  {folder.name:<26}{sum(sizes) / 1e6:6.1f} MB{len(sizes):6} files{compiled:6} compiled")
        if folder.name == "DependenciesLayer" and sum(sizes) > DEPENDENCIES_LIMIT:
            raise BuildError(f"{folder.name} is larger than {DEPENDENCIES_LIMIT / 1e6:.0f} MB")
    print(f"Ready in {built.relative_to(ROOT)}")


def precompile(folder: Path) -> None:
    """Write unchecked-hash bytecode beside every module of a built function or layer.

    Tracebacks name the files by their place in Lambda: /opt for a layer, /var/task for a function.

    Raises:
        BuildError: a file does not compile.
    """
    place = "/opt" if (folder / "python").is_dir() else "/var/task"
    done = compileall.compile_dir(
        folder,
        maxlevels=100,
        quiet=1,
        force=True,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        stripdir=str(folder),
        prependdir=place,
    )
    if not done:
        raise BuildError(f"{folder.name} does not compile")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
