"""Follow deploy/Dockerfile in a fresh Debian, and start what compose.yaml starts from it; as root.

    python scripts/kafka_broker.py python scripts/build_image.py --root DIR

For where no container engine runs: debootstrap makes the base, each line of the Dockerfile runs
in it by chroot, with its user, folder and variables. Then modeler, predictor and an executor start
from a root that is read-only, with volumes that take the owner of the image's folders, as an
engine's do; they talk to the broker that KAFKA_BOOTSTRAP names. Nothing is left mounted: all of it
happens in a mount namespace of its own. The base has Debian's Python in place of the image's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"
SUITE = "bookworm"
TRUST = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/java/cacerts", "/etc/pip.conf",
         "/etc/resolv.conf", "/etc/hosts")  # fmt: skip
"""of this machine: how it reaches registries"""
PORT = 8765


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile, with what stands after it."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (line.split(None, 1)[0], line.split(None, 1)[1].strip())
        for line in joined.splitlines()
        if line.strip()
    ]


class Image:
    """A root folder, and what a Dockerfile has said of it so far."""

    def __init__(self, root: Path, given: dict[str, str]) -> None:
        self.root, self.given = root, given
        self.args: dict[str, str] = {}
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.user, self.folder = "0", "/"
        self.entry: list[str] = []

    def words(self, command: list[str], root: Path, user: str) -> list[str]:
        """Return a command as it runs in a root."""
        ids = [f"--userspec={user}:{user}"] if user != "0" else []
        inside = f'cd {shlex.quote(self.folder)} && exec "$@"'
        return ["chroot", *ids, str(root), "/bin/sh", "-c", inside, "sh", *command]

    def variables(self, building: bool) -> dict[str, str]:
        home = {"HOME": "/root" if self.user == "0" else "/home/app"}
        if not building:
            return home | self.env
        # how this machine reaches registries is none of the image's
        ours = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        return home | ours | self.env | self.args

    def run(self, instruction: str, said: str) -> None:
        say(f"{instruction} {said[:100]}")
        if instruction == "ARG":
            name, _, value = said.partition("=")
            self.args[name] = self.given.get(name, value)
        elif instruction == "ENV":
            self.env |= dict(one.split("=", 1) for one in shlex.split(said))
        elif instruction == "USER":
            self.user = said
        elif instruction == "WORKDIR":
            self.folder = said
            (self.root / said.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            self.copy(said.split())
        elif instruction == "ENTRYPOINT":
            self.entry = json.loads(said)
        elif instruction == "RUN":
            command = self.words(["/bin/sh", "-c", said], self.root, self.user)
            subprocess.run(command, env=self.variables(True), check=True)
        elif instruction not in ("FROM", "CMD"):
            raise SystemExit(f"What {instruction} means is not known here.")

    def copy(self, words: list[str]) -> None:
        flags = [word for word in words if word.startswith("--")]
        *sources, target = [word for word in words if not word.startswith("--")]
        place = self.root / os.path.join(self.folder, target).lstrip("/")
        for source in sources:
            found = ROOT / source
            if found.is_dir():
                skip = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
                shutil.copytree(found, place, dirs_exist_ok=True, ignore=skip)
                continue
            into = place / found.name if target.endswith(("/", ".")) else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, into)
            for flag in flags:
                into.chmod(int(flag.removeprefix("--chmod="), 8))


def base(root: Path) -> None:
    """A Debian with Python as the command python, as the image's base has it."""
    if (root / "bin").exists():
        say(f"{root} is there already")
    else:
        mirror = re.search(
            r"(?:^URIs: |^deb )(\S+)",
            "".join(p.read_text() for p in Path("/etc/apt/sources.list.d").glob("*.sources"))
            or Path("/etc/apt/sources.list").read_text(),
            re.M,
        )
        command = ["debootstrap", "--variant=minbase", SUITE, str(root)]
        subprocess.run(command + ([mirror[1]] if mirror else []), check=True)
    for name in TRUST:
        if Path(name).exists():
            target = root / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(name).resolve(), target)
    for name in ("proc", "dev", "sys"):
        (root / name).mkdir(exist_ok=True)
        mount("--rbind", f"/{name}", root / name)
    for option in ("PIP_FIND_LINKS",):
        folder = os.environ.get(option, "")
        if folder.startswith("/") and Path(folder).is_dir():
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            mount("--bind", folder, root / folder.lstrip("/"))
    inside = "apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates "
    inside += "python3 python3-venv > /dev/null && python3 -m venv /usr/local"
    names = {"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["chroot", str(root), "/bin/sh", "-c", inside], check=True, env=names)
    for name in TRUST[:2]:
        if Path(name).exists():
            target = root / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(name).resolve(), target)


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


class Container:
    """One service of compose.yaml, on a read-only root of its own with its volumes."""

    def __init__(self, image: Image, name: str, folder: Path, kafka: str) -> None:
        self.image, self.name = image, name
        service = yaml.safe_load(COMPOSE.read_text())["services"][name]
        self.root, self.log = folder / name, folder / f"{name}.log"
        self.root.mkdir(parents=True)
        mount("--bind", image.root, self.root)
        mount("-o", "remount,bind,ro", self.root)
        for one in ("proc", "dev", "sys"):
            mount("--rbind", f"/{one}", self.root / one)
        for volume in service["volumes"]:
            source, place, *options = volume.split(":")
            self.volume(folder / "volumes" / source, place, "ro" in options)
        for secret in service.get("secrets", ()):
            # compose mounts the file as it lies on the machine, with its owner and mode
            own = folder / "run" / name
            own.mkdir(parents=True)
            (own / "secrets").mkdir()
            mount("--bind", own, self.root / "run")
            (own / "secrets" / secret).touch()
            mount("--bind", folder / "secrets" / "token", self.root / "run" / "secrets" / secret)
        known = {"KAFKA_BOOTSTRAP": kafka, "MAX_RATINGS": "500", "TRIGGER": "1 second"}
        self.command = [
            re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda m: known.get(m[1], m[2] or ""), word)
            for word in service["command"]
        ]
        self.command = [word.replace("--port=8000", f"--port={PORT}") for word in self.command]

    def volume(self, source: Path, place: str, read_only: bool) -> None:
        """Mount a volume; a new one takes owner and mode of the image's folder."""
        inside = self.image.root / place.lstrip("/")
        if not source.exists():
            source.mkdir(parents=True)
            of = inside.stat()
            os.chown(source, of.st_uid, of.st_gid)
            source.chmod(of.st_mode & 0o7777)
        mount("--bind", source, self.root / place.lstrip("/"))
        if read_only:
            mount("-o", "remount,bind,ro", self.root / place.lstrip("/"))

    def start(self) -> subprocess.Popen[bytes]:
        """Start what compose starts; what it says goes to `log`."""
        command = self.image.words([*self.image.entry, *self.command], self.root, self.image.user)
        with self.log.open("wb") as log:
            return subprocess.Popen(command, env=self.image.variables(False), stdout=log,
                                    stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    def ask(self, *words: str, **names: str) -> str:
        """Run something to its end, and return what it said."""
        command = self.image.words([*self.image.entry, *words], self.root, self.image.user)
        names = self.image.variables(False) | names
        done = subprocess.run(command, env=names, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=600, check=False)  # fmt: skip
        return done.stdout

    def rest(self) -> str:
        """Return the end of what it said."""
        return self.log.read_text(errors="replace")[-3000:]

    def probe(self) -> bool:
        """Whether the service's own healthcheck of compose.yaml passes."""
        service = yaml.safe_load(COMPOSE.read_text())["services"][self.name]
        kind, *test = service["healthcheck"]["test"]
        words = ["/bin/sh", "-c", test[0].replace("$$", "$")] if kind == "CMD-SHELL" else test
        words = [word.replace(":8000/", f":{PORT}/") for word in words]
        command = self.image.words(words, self.root, self.image.user)
        names = self.image.variables(False)
        return subprocess.run(command, env=names, capture_output=True, check=False).returncode == 0


def wait_for(
    what: str,
    true: Callable[[], bool],
    of: Container,
    process: subprocess.Popen[bytes],
    seconds: float = 600,
) -> None:
    began = time.monotonic()
    while not true():
        late = time.monotonic() - began > seconds
        if process.poll() is not None or late:
            why = f"not in {seconds:g} s" if late else f"it ended with {process.returncode}"
            raise SystemExit(f"{what}: {why}.\n{of.rest()}")
        time.sleep(1)
    say(f"{what}: after {time.monotonic() - began:.0f} s")


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a container and all that runs in it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def post(token: str, user: int, item: int, rating: float) -> tuple[int, str]:
    """Post a rating; return status and words of the answer."""
    body = json.dumps({"user": user, "item": item, "rating": rating}).encode()
    names = {"Content-Type": "application/json", "Authorization": f"Bearer {token}",
             "Idempotency-Key": f"{user}-{item}"}  # fmt: skip
    asked = urllib.request.Request(f"http://127.0.0.1:{PORT}/ratings", body, names)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as failure:
        return int(failure.code), failure.read().decode(errors="replace")


def check(image: Image, folder: Path, kafka: str) -> None:
    """Start modeler, predictor and executor, and see that ratings go round."""
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "token").write_text("it\n")
    (secrets / "token").chmod(0o444)
    modeler = Container(image, "modeler", folder, kafka)
    tmp = folder / "volumes" / "modeler-tmp"
    lines = ["userId,movieId,rating,timestamp"]
    lines += [f"{n % 40},{n // 40},{n * 13 % 9 / 2 + 0.5},{1_700_000_000 + n}"
              for n in range(2000)]  # fmt: skip
    (tmp / "ratings.csv").write_text("\n".join(lines) + "\n")
    with ExitStack() as stack:
        say(modeler.ask("data", "replay", "/tmp/ratings.csv", f"--kafka={kafka}", "--every=0",
                        "--json").strip())  # fmt: skip
        kept = {path.name for path in (image.root / "opt/kernels").rglob("*.nbc")}
        stream = modeler.start()
        stack.callback(kill, stream)
        wait_for("the modeler's probe passes", modeler.probe, modeler, stream)

        def learned() -> int:
            told = modeler.ask("versions", "/models/films", "--json").splitlines()
            rows = json.loads(told[-1]) if told and told[-1].startswith("[{") else []
            return max((row["ratings"] or 0 for row in rows), default=0)

        wait_for("2,000 ratings are learned", lambda: learned() == 2000, modeler, stream)
        predictor = Container(image, "predictor", folder, kafka)
        service = predictor.start()
        stack.callback(kill, service)
        wait_for("the predictor's probe passes", predictor.probe, predictor, service)
        refused, _ = post("wrong", 1, 2, 4.0)
        status, why = post("it", 1, 2, 4.0)
        say(f"a rating without the token: {refused}, with it: {status} {why}")
        if (refused, status) != (401, 202):
            raise SystemExit("The token file is not what posting needs.")
        wait_for(
            "the rating that was posted is learned", lambda: learned() == 2001, modeler, stream
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/recommendations/1?n=3") as answer:
            say(f"recommended: {answer.read().decode()[:200]}")
        compiled = {
            path.name
            for volume in ("modeler-tmp", "predictor-tmp")
            for path in (folder / "volumes" / volume / "kernels").rglob("*.nbc")
        }
        say(f"kernels of the image: {len(kept)}, compiled since: {sorted(compiled - kept)}")
        names = {"SPARK_EXECUTOR_MEMORY": "512m", "SPARK_DRIVER_URL": "spark://x@127.0.0.1:9",
                 "SPARK_EXECUTOR_ID": "1", "SPARK_EXECUTOR_CORES": "1", "SPARK_APPLICATION_ID":
                 "a", "SPARK_EXECUTOR_POD_IP": "127.0.0.1", "SPARK_RESOURCE_PROFILE_ID": "0",
                 "SPARK_EXECUTOR_POD_NAME": "p", "SPARK_USER": "app"}  # fmt: skip
        said = modeler.ask("executor", **names)
        if "Connecting to driver" not in said and "127.0.0.1:9" not in said:
            raise SystemExit(f"The executor did not look for its driver:\n{said[-3000:]}")
        say("an executor starts, and looks for its driver")
        for container, process in ((modeler, stream), (predictor, service)):
            process.terminate()
            process.wait(timeout=300)
            say(f"{container.name} ended with {process.returncode}")
            if process.returncode != 0:
                raise SystemExit(container.rest())


def main() -> None:
    """Build and check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder for the image and volumes")
    parser.add_argument("--build-arg", action="append", default=[], help="NAME=VALUE of an ARG")
    parser.add_argument("--only-check", action="store_true", help="the image is there already")
    given = parser.parse_args()
    if os.environ.get("SGDALS_OWN_MOUNTS") != "1":
        words = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        os.execvpe("unshare", words, os.environ | {"SGDALS_OWN_MOUNTS": "1"})
    root = given.root.resolve()
    image = Image(root / "image", dict(one.split("=", 1) for one in given.build_arg))
    if not given.only_check:
        base(image.root)
    for instruction, said in instructions(DOCKERFILE.read_text()):
        if given.only_check and instruction in ("RUN", "COPY"):
            continue
        image.run(instruction, said)
    kafka = os.environ.get("KAFKA_BOOTSTRAP")
    if kafka is None:
        raise SystemExit("The image is built. To start it, name a Kafka by KAFKA_BOOTSTRAP.")
    started = root / f"started-{os.getpid()}"
    started.mkdir()
    check(image, started, kafka)
    say("All of it works.")


if __name__ == "__main__":
    main()
