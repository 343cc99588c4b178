"""Services on one inbox, in any order of events and faults: what was acknowledged is seen once."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from sparkml_sgdals.serving.intake import file_log, folder
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.posts import Posted

REAL = {name: getattr(os, name) for name in ("pwrite", "fsync", "ftruncate", "rename")}
FAULTS = ("pwrite", "fsync", "ftruncate", "rename", "folder", "unlink")
STEPS = {
    "post": 6, "repeat": 5, "kill": 2, "close": 1, "start": 3, "look": 2, "show": 2, "stream": 2,
}  # fmt: skip


def no_space(*given, **named):
    raise OSError(28, "No space left on device")


class Sequence:
    """A random sequence of what happens to two services, a stream and their disk.

    A post that a service has not heard of, since it came to another one after this one's start, is
    not repeated there: of these services know nothing.
    """

    def __init__(self, seed, root):
        self.rng = random.Random(seed)
        self.inbox, self.archive = root / "in", root / "learned"
        self.inbox.mkdir()
        self.archives = self.rng.random() < 0.7
        self.services = [None, None]
        self.born = [0, 0]
        self.number = 0
        self.sent = {}
        self.acknowledged = {}
        self.seen = Counter()
        self.read = {}

    def failing(self, patch):
        """Let some of what is done with files fail."""
        chosen = [fault for fault in FAULTS if self.rng.random() < 0.3]
        part = self.rng.choice([0.0, 0.3, 0.9, 1.0])

        def short(handle, payload, offset):
            REAL["pwrite"](handle, bytes(payload)[: int(len(payload) * part)], offset)
            no_space()

        for fault in chosen if self.rng.random() < 0.4 else ():
            if fault == "folder":
                patch.setattr(file_log, "_sync_folder", no_space)
            elif fault == "unlink":
                patch.setattr(Path, "unlink", no_space)
            else:
                patch.setattr(os, fault, short if fault == "pwrite" else no_space)

    def starting_meanwhile(self, patch, place):
        """Let the other service start between a write and its sync, which fails or does not."""
        own, fails = self.services[place], self.rng.random() < 0.5

        def sync(handle):
            file = own._log._file
            if file is not None and file._handle == handle and self.services[1 - place] is None:
                self.start(1 - place)
                if fails:
                    no_space()
            REAL["fsync"](handle)

        patch.setattr(os, "fsync", sync)

    def run(self):
        for number in range(self.rng.randint(5, 40)):
            self.number = number
            (what,) = self.rng.choices(list(STEPS), list(STEPS.values()))
            place = self.rng.randrange(2)
            if what == "stream":
                self.stream()
                continue
            if self.services[place] is None:
                what = "start"
            with pytest.MonkeyPatch.context() as patch:
                if what == "post" and self.services[1 - place] is None and self.rng.random() < 0.3:
                    self.starting_meanwhile(patch, place)
                else:
                    self.failing(patch)
                getattr(self, what)(place)
        for place in (0, 1):
            if self.services[place] is not None:
                self.rng.choice([self.kill, self.close])(place)
        self.start(0)
        self.close(0)
        self.stream()
        assert not list(self.inbox.glob(".ratings*"))
        for key, rows in self.acknowledged.items():
            times = [self.seen[f"{key}#{row}/{rows}"] for row in range(rows)]
            assert times == [1] * rows, f"{key} was acknowledged"
        assert set(self.seen.values()) <= {1}

    def start(self, place):
        if self.services[place] is None:
            self.services[place] = FolderIntake(
                str(self.inbox), IntakeColumns(), every=1_000.0, archive=str(self.archive)
            )
            self.born[place] = self.number

    def post(self, place, number=None):
        number = len(self.sent) if number is None else number
        self.sent.setdefault(number, []).append((self.services[place], self.number))
        rows = 1 + number % 3
        try:
            ones = [Posted(number, row, 3.0, number) for row in range(rows)]
            self.services[place].put([(f"k{number}", ones)]).result(10)
            self.acknowledged[f"k{number}"] = rows
        except OSError:
            pass

    def repeat(self, place):
        own = self.services[place]
        known = [
            number
            for number, sent in self.sent.items()
            if all(service is own or self.born[place] >= when for service, when in sent)
        ]
        if known:
            self.post(place, self.rng.choice(known))

    def kill(self, place):
        """All that it has open is let go, and nothing is shown any more."""
        service = self.services[place]
        if service is not None:
            log = service._log
            files = [*log._cut, *filter(None, [log._file])]
            log.close = lambda: [file.close() for file in files]
            service.close()
            self.services[place] = None

    def close(self, place):
        if self.services[place] is not None:
            self.services[place].close()
            self.services[place] = None

    def look(self, place):
        service = self.services[place]
        service._past.look(service._log.holds)

    def show(self, place):
        self.services[place]._log.show_due(at_once=True)

    def stream(self):
        """Read what is new, and move it or not."""
        moves = self.archives and self.rng.random() < 0.7
        for file in sorted(self.inbox.glob("ratings-*.json")):
            content = file.read_bytes()
            if file.name not in self.read:
                self.seen.update(json.loads(line)["eventId"] for line in content.splitlines())
            assert self.read.setdefault(file.name, content) == content, "a file changed"
            if moves:
                below = self.archive / str(self.inbox).lstrip("/")
                below.mkdir(parents=True, exist_ok=True)
                file.rename(below / file.name)


LONG = pytest.param(range(400, 6_000), marks=pytest.mark.long)


@pytest.mark.parametrize("seeds", [range(400), LONG], ids=len)
def test_what_is_acknowledged_is_seen_once(tmp_path, monkeypatch, seeds):
    monkeypatch.setattr(folder, "_SYNCS", 0.0)
    for seed in seeds:
        place = tmp_path / str(seed)
        place.mkdir()
        try:
            Sequence(seed, place).run()
        except AssertionError as fault:
            raise AssertionError(f"seed {seed}") from fault
