"""Build a release and try it as users get it: python scripts/rehearse_release.py [--out dist].

    build    sdist and wheel, whose descriptions the registry has to render
    test     the unit tests of the unpacked sdist, in an environment that has it and nothing else
    publish  both to an index of this machine
    install  from there into a new environment for each extra, which is then used once

With --tag the version has to be that of the tag. Java is found as `make test` finds it. Python
packages come from where pip or uv are set to get them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "sparkml_sgdals"
TOOLS = ["build>=1.2", "pypiserver>=2.3", "twine>=6.1", "uv>=0.5"]

USES = {
    "": "assert s.StreamingBiasedALS(rank=3).getOrDefault('rank') == 3",
    "ann": "from sparkml_sgdals.serving.model import approximate; import faiss",
    "cli": "import subprocess as p; p.run([BIN + '/sparkml-sgdals', '--help'], check=True)",
    "kafka": "from sparkml_sgdals.serving.intake import kafka; import confluent_kafka",
    "mlflow": "import sparkml_sgdals.mlflow",
    "plot": "import sparkml_sgdals.plotting, matplotlib.pyplot",
    "progress": "from sparkml_sgdals.fit import progress; import tqdm",
    "s3": "from sparkml_sgdals.store import objects; import boto3",
    "serve": "from sparkml_sgdals.serving import http; import fastapi, prometheus_client, uvicorn",
}
"""What each extra is for, as a program: s is the package, BIN the environment's folder."""


def say(text: str) -> None:
    """Print at once, before what a command says."""
    print(f"== {text}", flush=True)


def run(*words: object, cwd: Path | None = None) -> None:
    """Run a command, in an environment whose Python finds no checkout."""
    left = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(word) for word in words], check=True, cwd=cwd, env=left)


def environment(tools: Path, folder: Path, *install: str) -> Path:
    """Make an environment with packages; returns its folder of programs."""
    run(tools / "uv", "venv", "-q", "--python", sys.executable, folder)
    run(tools / "uv", "pip", "install", "-q", "--python", folder / "bin" / "python", *install)
    return folder / "bin"


def build(tools: Path, out: Path) -> tuple[Path, Path]:
    """Build and check; returns sdist and wheel."""
    shutil.rmtree(out, ignore_errors=True)
    run(tools / "python", "-m", "build", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    run(tools / "twine", "check", "--strict", sdist, wheel)
    return sdist, wheel


def test(tools: Path, sdist: Path, work: Path) -> None:
    """Unpack the sdist and run its unit tests on what an installation of it is."""
    with tarfile.open(sdist) as packed:
        packed.extractall(work / "unpacked", filter="data")
    (source,) = (work / "unpacked").iterdir()
    programs = environment(tools, work / "tested", f"{sdist}[dev]")
    # not python -m: the working directory would come before what is installed
    run(programs / "pytest", "-q", "tests/unit", cwd=source)


@contextlib.contextmanager
def index(tools: Path, folder: Path) -> Iterator[str]:
    """An index of this machine that takes uploads; gives its address."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["run", "-i", "127.0.0.1", "-p", str(port), "-a", ".", "-P", ".", "--disable-fallback"]
    served = subprocess.Popen([str(tools / "pypi-server"), *words, str(folder)])
    try:
        address = f"http://127.0.0.1:{port}/"
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                if time.monotonic() > until or served.poll() is not None:
                    raise
                time.sleep(0.1)
        yield address
    finally:
        served.terminate()
        served.wait()


def install(tools: Path, address: str, version: str, work: Path) -> None:
    """Install each extra from the index and use it."""
    for extra, program in USES.items():
        say(f"install [{extra}]")
        what = f"sparkml-sgdals[{extra}]=={version}" if extra else f"sparkml-sgdals=={version}"
        folder = work / f"with-{extra or 'none'}"
        # the first index that has a package is the one it comes from
        programs = environment(tools, folder, "--index", f"{address}simple/", what)
        lines = f"BIN = {str(programs)!r}\nimport sparkml_sgdals as s\n{program}\n"
        lines += f"assert s.__version__ == {version!r} and {str(folder)!r} in s.__file__"
        run(programs / "python", "-W", "error::DeprecationWarning:sparkml_sgdals", "-c", lines,
            cwd=work)  # fmt: skip
        shutil.rmtree(folder)


def extras(wheel: Path) -> set[str]:
    """Extras of users that a wheel names."""
    import zipfile

    with zipfile.ZipFile(wheel) as packed:
        (metadata,) = (name for name in packed.namelist() if name.endswith("/METADATA"))
        text = packed.read(metadata).decode()
    return set(re.findall(r"^Provides-Extra: (.+?)\r?$", text, re.M)) - {"dev", "docs", "s3-test"}


def main() -> int:
    """Rehearse; 1 where the tag is of another version or an extra is not tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the release lies")
    parser.add_argument("--tag", help="v and the version")
    parser.add_argument("--no-tests", action="store_true", help="leave out the sdist's own tests")
    given = parser.parse_args()
    version = re.search(r'__version__ = "(.+)"', (ROOT / NAME / "__init__.py").read_text())[1]
    if given.tag is not None and given.tag != f"v{version}":
        print(f"The tag {given.tag} is not that of version {version}.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        work = Path(name)
        say("tools")
        run(sys.executable, "-m", "venv", work / "tools")
        tools = work / "tools" / "bin"
        run(tools / "python", "-m", "pip", "install", "-q", *TOOLS)
        say("build")
        sdist, wheel = build(tools, given.out.resolve())
        if extras(wheel) != set(USES) - {""}:
            print(f"Extras are {sorted(extras(wheel))}: say in USES how they are used.",
                  file=sys.stderr)  # fmt: skip
            return 1
        if not given.no_tests:
            say("test the sdist")
            test(tools, sdist, work)
        say("publish to an index of this machine")
        with index(tools, work / "index") as address:
            run(tools / "twine", "upload", "--non-interactive", "--disable-progress-bar",
                "--username", "anyone", "--password", "none", "--repository-url", address,
                sdist, wheel)  # fmt: skip
            install(tools, address, version, work)
    say(f"{version}: built, tested, published and installed with each extra: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
