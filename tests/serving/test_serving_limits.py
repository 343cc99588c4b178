"""What strangers may do to the service: connections, time, names, tokens; real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import signal
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.serving.http.connections import Connections, Limits
from sparkml_sgdals.serving.http.guard import Buckets, Hosts, TokenCheck, client_of
from sparkml_sgdals.serving.http.routes import make_app
from sparkml_sgdals.serving.server import _Server

OTHER = "127.0.0.2"
"""another client, to whoever tells them apart by their address"""


@pytest.fixture(autouse=True)
def room():
    """As many files as the system lets a process have."""
    held = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[1], held[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, held)


@pytest.fixture
def listening(modeler, serving):
    """Starts services of this process behind real sockets; each with its port."""
    servers = []

    def start(limits, trusted=None, change=lambda service: None):
        made = modeler()
        service = serving(made, change=change).service
        those = Connections(limits, trusted)
        config = uvicorn.Config(
            make_app(service), port=0, log_level="error", http=those.protocol(), ws="none"
        )
        told, ports = threading.Event(), []

        def started(address):
            ports.append(int(address.rstrip("/").rpartition(":")[2]))
            told.set()

        server = _Server(config, service, those, started)
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, service, thread))
        assert told.wait(20)
        return those, ports[0]

    yield start
    for server, service, thread in servers:
        service.news.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def opened():
    """Opens sockets, from an address, with something sent."""
    held = []

    def start(port, sent=b"", source="127.0.0.1"):
        one = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
        one.sendall(sent)
        held.append(one)
        return one

    yield start
    for one in held:
        one.close()


def ask(port, path="/popular", source="127.0.0.1", **more):
    with httpx.Client(transport=httpx.HTTPTransport(local_address=source), timeout=10) as web:
        return web.get(f"http://127.0.0.1:{port}{path}", **more)


def ended(one, seconds=5.0):
    """What came until the other side closed; None where it did not."""
    one.settimeout(seconds)
    found = b""
    try:
        while part := one.recv(65_536):
            found += part
    except ConnectionResetError:
        return found
    except TimeoutError:
        return None
    return found


@pytest.mark.long
def test_idle_sockets_take_nothing_down(modeler, started, tmp_path, opened):
    made = modeler()
    _, address = started(made, tmp_path / "inbox")
    port = int(address.rstrip("/").rpartition(":")[2])
    before = opened(port)
    for _ in range(1_005):
        opened(port)
    for path in ("/health/live", "/health/ready", "/popular", "/recommendations/1"):
        clock = time.perf_counter()
        assert ask(port, path).status_code == 200, path
        assert time.perf_counter() - clock < 2.0
    # who waited longest made room
    assert ended(before) == b""


def test_who_asked_keeps_its_connection_before_who_never_did(listening, opened):
    _, port = listening(Limits(connections=4, each=4))
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    kept.request("GET", "/popular")
    assert kept.getresponse().read()
    # it waits longer than the others from here on
    flood = [opened(port) for _ in range(12)]
    assert ended(flood[0]) == b""
    for path in ("/popular", "/health/live"):
        kept.request("GET", path)
        assert kept.getresponse().read()
    kept.close()


GET = b"GET /popular HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /recommendations/anonymous HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n"
    b"Content-Type: application/json\r\n\r\n"
)
LATE = Limits(waiting=0.6, body=0.6, reading=0.6)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", None),
        (b"GET /pop", 408),
        (GET, 408),
        (GET + b"\r\n" + GET, 408),
        (POST, 408),
        (POST + b'{"ratings"', 408),
        # refused before it is read, and never ended
        (POST.replace(b"900", b"99999999"), 413),
    ],
    ids=["nothing", "line", "headers", "second", "body", "half", "refused"],
)
@pytest.mark.parametrize("trickle", [pytest.param(False, marks=pytest.mark.long), True])
def test_half_a_request_has_an_end(listening, opened, sent, said, trickle):
    _, port = listening(LATE)
    one = opened(port, sent)
    if trickle and sent:
        # a byte now and then does not begin anew
        rest = b"x" if sent.startswith(POST[:5]) else b"X-A: b\r\n" if sent.endswith(GET) else b"/"
        until = time.monotonic() + 4.0
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                one.sendall(rest)
                time.sleep(0.1)
            pytest.fail("it may go on for ever")
    got = ended(one)
    assert got is not None
    if said is not None and not trickle:
        last = got.rpartition(b"HTTP/1.1 ")[2]
        assert int(last[:3]) == said
        json.loads(last.partition(b"\r\n\r\n")[2])
    assert ask(port).status_code == 200


def test_who_reads_nothing_has_an_end(listening, opened):
    """Answers that are not taken, on a connection that asks and asks."""
    those, port = listening(LATE)
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    one.connect(("127.0.0.1", port))
    one.settimeout(5)
    page = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.suppress(OSError):
        for _ in range(20_000):
            one.sendall(page)
    until = time.monotonic() + 10
    while len(those) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(those) == 0
    one.close()


def test_one_client_cannot_take_the_room_of_others(listening, opened):
    those, port = listening(Limits(connections=40, each=10, body=60))
    for _ in range(10):
        opened(port, POST)
    time.sleep(0.3)
    refused = ask(port)
    assert refused.status_code == 503
    assert "Too many connections" in refused.json()["detail"]
    assert "retry-after" in refused.headers
    for path in ("/health/live", "/health/ready"):
        assert ask(port, path).status_code == 200
    assert ask(port, source=OTHER).status_code == 200
    # however many more it opens, and whatever it does with them
    for n in range(200):
        with contextlib.suppress(OSError):
            opened(port, POST if n % 2 else b"")
    time.sleep(0.3)
    assert len(those) <= 10 + 32 + 1
    assert ask(port, source=OTHER).status_code == 200
    assert ask(port, "/health/live", source=OTHER).status_code == 200


def test_all_busy_probes_are_answered(listening, opened):
    _, port = listening(Limits(connections=20, each=10, body=60))
    for source in ("127.0.0.3", "127.0.0.4"):
        for _ in range(10):
            opened(port, POST, source)
    time.sleep(0.3)
    assert ask(port, source=OTHER).status_code == 503
    assert ask(port, "/health/live", source=OTHER).status_code == 200
    assert ask(port, "/health/ready", source=OTHER).status_code == 200


def test_a_trusted_proxy_has_no_limit_of_its_own(listening, opened):
    _, port = listening(Limits(connections=40, each=5, body=60), trusted="10.0.0.1, 127.0.0.1")
    for _ in range(12):
        opened(port, POST)
    assert ask(port).status_code == 200


def test_event_streams_of_one_client(listening, opened):
    def few(service):
        service.news.each = 3

    those, port = listening(Limits(), change=few)
    stream = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    streams = [opened(port, stream) for _ in range(3)]
    for one in streams:
        assert one.recv(12) == b"HTTP/1.1 200"
    full = ask(port, "/events")
    assert full.status_code == 429
    assert "retry-after" in full.headers
    other = opened(port, stream, OTHER)
    assert other.recv(12) == b"HTTP/1.1 200"
    streams[0].close()
    until = time.monotonic() + 10
    while len(those) > 3 and time.monotonic() < until:
        time.sleep(0.05)
    again = opened(port, stream)
    assert again.recv(12) == b"HTTP/1.1 200"


@pytest.mark.long
def test_a_service_ends_though_requests_are_half_there(modeler, started, tmp_path, opened):
    process, address = started(modeler(), tmp_path / "inbox")
    port = int(address.rstrip("/").rpartition(":")[2])
    stream = opened(port, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert stream.recv(12) == b"HTTP/1.1 200"
    for sent in (b"", GET, POST, POST + b"{"):
        opened(port, sent)
    assert ask(port).status_code == 200
    clock = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    # it would have been five seconds, and a stack trace
    assert time.perf_counter() - clock < 4.0


def test_a_client_is_an_address_or_a_network():
    assert client_of("192.0.2.7") == client_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert client_of("2001:db8:1:2::5") == client_of("2001:db8:1:2:ffff::9")
    assert client_of("2001:db8:1:2::5") != client_of("2001:db8:1:3::5")
    assert client_of("testclient") == "testclient"
    assert client_of(None) == ""


# ---- names ------------------------------------------------------------------------------------


@pytest.mark.long
def test_other_names_are_refused_on_this_machine(modeler, started, tmp_path):
    made = modeler()
    _, address = started(made, tmp_path / "inbox")
    port = int(address.rstrip("/").rpartition(":")[2])
    for name in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:80", "a.localhost"):
        assert ask(port, headers={"Host": name}).status_code == 200, name
    for name in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
    ):
        for path in ("/popular", "/", "/users/1/ratings", "/metrics"):
            said = ask(port, path, headers={"Host": name})
            assert said.status_code == 400, (name, path)
            assert "allowed-host" in said.json()["detail"]
        assert ask(port, "/health/live", headers={"Host": name}).status_code == 200
    body = {"user": 1, "item": 1, "rating": 3.0}
    sent = httpx.post(f"{address}ratings", json=body, headers={"Host": "evil.example"})
    assert sent.status_code == 400
    assert not list((tmp_path / "inbox").iterdir())


@pytest.mark.long
def test_allowed_hosts(modeler, started, tmp_path):
    more = ["--allowed-host", "films.example", "--allowed-host", "*.svc"]
    _, address = started(modeler(), tmp_path / "inbox", *more)
    port = int(address.rstrip("/").rpartition(":")[2])
    for name, status in (("films.example", 200), ("Films.Example:443", 200), ("a.b.svc", 200),
                         ("svc", 400), ("films.example.org", 400), ("127.0.0.1", 400)):  # fmt: skip
        assert ask(port, headers={"Host": name}).status_code == status, name


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@given(NAME, st.none() | st.integers(1, 65_535), st.sampled_from(["", "."]), st.booleans())
def test_only_names_of_this_machine_fit_by_default(name, port, dot, upper):
    header = f"{name.upper() if upper else name}{dot}{'' if port is None else f':{port}'}"
    numbers = name.count(".") == 3 and all(
        part.isdigit() and int(part) < 256 and str(int(part)) == part for part in name.split(".")
    )
    here = name == "localhost" or name.endswith(".localhost") or numbers
    assert Hosts().fit(header) == here
    assert Hosts((name,)).fit(header)
    assert Hosts(("*",)).fit(header)
    assert not Hosts((f"{name}.example",)).fit(header)
    assert Hosts((f"*.{name}",)).fit(f"a.{header}")


@given(st.text(max_size=40))
def test_odd_names_are_no_error(header):
    Hosts().fit(header)
    Hosts(("a.example",)).fit(header)


# ---- tokens and rates -------------------------------------------------------------------------


def test_guessing_is_slowed_down(modeler, serving, tmp_path, monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    made = modeler()
    run = serving(made, change=lambda s: setattr(s, "token", TokenCheck(str(file))))
    one = {"user": made.key(0, 1), "item": made.key(1, 1), "rating": 4.0}
    right = {"Authorization": "Bearer s3cret"}
    statuses = [
        run.client.post("/ratings", json=one, headers={"Authorization": f"Bearer {n}"}).status_code
        for n in range(200)
    ]
    assert statuses[:10] == [401] * 10
    assert statuses[10:] == [429] * 190
    # a right one is not told from a wrong one meanwhile
    said = run.client.post("/ratings", json=one, headers=right)
    assert said.status_code == 429
    assert int(said.headers["retry-after"]) >= 1
    now[0] += 6.0
    assert run.post("/ratings", one, 202, **right)["accepted"] == 1
    # reading, and right tokens, go on as ever
    run.get("/popular")
    for _ in range(50):
        run.post("/ratings", one, 202, **right)


@given(st.lists(st.tuples(st.integers(1, 1_000), st.floats(0, 20)), max_size=60))
def test_in_the_long_run_nobody_has_more_than_the_rate(posts):
    """Whatever is posted when: at most a burst, what the rate gives, and one post beyond."""
    now, taken = 0.0, 0
    buckets = Buckets(20.0, 200.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        for amount, pause in posts:
            now += pause
            wait = buckets.take("a", amount)
            assert buckets.wait("b") == 0.0
            if not wait:
                taken += amount
            else:
                assert buckets.wait("a", amount) == wait
            assert taken <= 200 + 20 * now + 1_000
            if wait:
                now += wait + 1e-6
                assert buckets.take("a", amount) == 0.0
                taken += amount


def test_a_post_of_many_is_charged_as_many(modeler, serving, monkeypatch):
    """It took 4,000 ratings in 31 seconds at 20 a second."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    made = modeler()
    run = serving(made, change=lambda s: setattr(s, "buckets", Buckets(20.0, 200.0)))
    many = [{"user": made.key(0, n % 60), "item": 1, "rating": 3.0} for n in range(1_000)]
    taken = 0
    for second in range(100):
        now[0] = float(second)
        taken += run.client.post("/ratings", json=many).status_code == 202
    assert taken == 2
