"""Put a service together and run it until it is told to end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Final

import uvicorn

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.errors import GoneError
from sparkml_sgdals.extras import install
from sparkml_sgdals.serving.http.answers import Answers
from sparkml_sgdals.serving.http.connections import Connections, Limits
from sparkml_sgdals.serving.http.gauges import Gauges
from sparkml_sgdals.serving.http.guard import Buckets, Hosts, TokenCheck
from sparkml_sgdals.serving.http.news import News
from sparkml_sgdals.serving.http.routes import Service, make_app
from sparkml_sgdals.serving.http.schemas import AnonymousIn, ItemRating
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import MOST_KNOWN, History, IntakeColumns, read_ratings
from sparkml_sgdals.serving.intake.posts import Intake
from sparkml_sgdals.serving.locks import own_folder
from sparkml_sgdals.serving.model.approximate import Approximate
from sparkml_sgdals.serving.model.holder import ModelHolder
from sparkml_sgdals.serving.model.newcomers import KnownFeatures, read_features
from sparkml_sgdals.serving.model.titles import Titles
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.objects import Location
from sparkml_sgdals.store.saved_model import is_saved, read_saved, saved_path
from sparkml_sgdals.store.version_store import StorageError, VersionStore

__all__ = ["build_service", "serve"]

logger = logging.getLogger(__name__)

_HERE: Final = {"127.0.0.1", "::1", "localhost"}
_OTHER_FILES: Final = 200
"""files that may be open besides connections: mapped factors, versions, what is posted"""


def serve(
    model: Location,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    inbox: Location | None = None,
    archive: Location | None = None,
    kafka: str | None = None,
    topic: str = "ratings",
    columns: IntakeColumns | Mapping[str, str] | None = None,
    titles: Location | None = None,
    item_features: Location | None = None,
    user_features: Location | None = None,
    ratings: Location | None = None,
    token_file: Location | None = None,
    open_writes: bool = False,
    rate: float = 20.0,
    rating_range: tuple[float, float] | None = None,
    max_body: int = 1 << 20,
    origins: tuple[str, ...] = (),
    allowed_hosts: tuple[str, ...] = (),
    connections: int = 1_000,
    client_connections: int = 256,
    client_streams: int = 16,
    history: int = MOST_KNOWN,
    gate: bool = False,
    cache: Location | None = None,
    poll_seconds: float = 0.25,
    wait_seconds: float = 0.0,
    trust_proxy: str | None = None,
    ann: bool = False,
    ann_recall: float = 0.95,
    log_level: str = "warning",
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a model path, or a saved model, over HTTP until SIGINT or SIGTERM.

    Parameters
    ----------
    model : Location
        a model path, as `fitStream` and `updateStream` write it, or what `model.save` wrote, which
        never changes; local or a URI
    host : str
        name or address to listen at
    port : int
        port to listen at; 0 for one that is free
    inbox : Location | None
        folder that the stream reads: ratings posted are appended to it as JSON lines
    archive : Location | None
        folder that the inbox's files are moved to once they are learned, where a stream does that
        (`cleanSource`): they say, too, which keys were taken and what users have rated
    kafka : str | None
        host:port of a broker, where ratings posted go instead of an inbox
    topic : str
        topic of that broker
    columns : IntakeColumns | Mapping[str, str] | None
        names of the columns of ratings, sent and read, all or some of them (`{"user": "session"}`);
        the others are the model's own, as its Params say (`userCol`, `itemCol`, ...)
    titles : Location | None
        a file .csv, .json, .jsonl or .parquet with ids and titles of items
    item_features, user_features : Location | None
        such files of ids and what is known of them, by the names of the fit: items and users that
        the model does not know count as known by it, and reasons and explanations name it
    ratings : Location | None
        a file, or folder of files, of ratings that users are known to have given
    token_file : Location | None
        file with the token that posting needs
    open_writes : bool
        take ratings without a token from other machines too
    rate : float
        ratings a second that one client may post, ten seconds' worth at once; 0 for no limit
    rating_range : tuple[float, float] | None
        lowest and highest rating taken; by default those that the model has seen
    max_body : int
        bytes of a request's body
    origins : tuple[str, ...]
        origins of other sites that may ask from a browser (CORS); none by default
    allowed_hosts : tuple[str, ...]
        names that requests may have as Host, `*.example.com` for all below one, `*` for any; by
        default this machine's own names and addresses where it listens on this machine alone,
        elsewhere any
    connections : int
        connections at once; those without a request in hand make room for others
    client_connections : int
        of these of one client, by its address; a trusted proxy has no limit
    client_streams : int
        streams of events of one client
    history : int
        ratings posted that are remembered, for what was seen and for reasons
    gate : bool
        ready only once a version has beaten mean and biases, as `diagnose` says; from then on as
        without
    cache : Location | None
        folder to map factors in, by default a temporary one; about 0.3 kB an id and copy at rank 16
        for users, 1 kB for items, on a disk
    poll_seconds : float
        how often to look for a new version
    wait_seconds : float
        how long to wait for the first version
    trust_proxy : str | None
        address of a proxy whose X-Forwarded-For is believed
    ann : bool
        rank by an approximate index, for catalogues of millions; needs the extra `ann`
    ann_recall : float
        share of the exact best ten that it has to find, measured at each build
    log_level : str
        of uvicorn
    started : Callable[[str], None]
        called with the address when it is listened at

    Raises
    ------
    StorageError
        there is no model, or it is damaged
    ValueError
        options that do not go together, or a file that cannot be used
    """
    model = os.fspath(model)
    inbox, archive, titles, item_features, user_features, ratings, token_file, cache = (
        None if place is None else os.fspath(place)
        for place in (
            inbox, archive, titles, item_features, user_features, ratings, token_file, cache
        )
    )  # fmt: skip
    if archive is not None and inbox is None:
        raise ValueError("An archive is of an inbox: name the inbox as well, or leave it out.")
    if inbox is not None and kafka is not None:
        raise ValueError("Ratings go to an inbox or to Kafka, not to both: leave one out.")
    writes = inbox is not None or kafka is not None
    if writes and host not in _HERE and token_file is None and not open_writes:
        raise ValueError(
            f"Anybody who reaches {host} could post ratings: give token_file, or say open_writes."
        )
    if writes and is_saved(model):
        raise ValueError(
            f"{model} is a saved model, which learns nothing: name the model path that a stream "
            "writes, or leave out where ratings posted go."
        )
    # a thread that takes up a version must not keep requests waiting for 5 ms at a time
    sys.setswitchinterval(0.0005)
    if cache is not None:
        os.makedirs(cache, exist_ok=True)
    with own_folder(cache) as folder:
        service = build_service(
            model,
            folder,
            columns=columns,
            titles=titles,
            item_features=item_features,
            user_features=user_features,
            ratings=ratings,
            intake=(
                None
                if inbox is None
                else partial(FolderIntake, inbox, remembered=history, archive=archive)
            ),
            history=history,
            poll_seconds=poll_seconds,
            wait_seconds=wait_seconds,
            ann_recall=ann_recall if ann else None,
        )
        holder, approximate = service.answers.holder, service.answers.approximate
        try:
            if kafka is not None:
                from sparkml_sgdals.serving.intake.kafka import KafkaIntake

                service.intake = KafkaIntake(kafka, topic, service.columns)
            service.token = None if token_file is None else TokenCheck(token_file)
            service.buckets = Buckets(rate, 10 * rate)
            service.rating_range = rating_range
            service.gate, service.origins, service.max_body = gate, origins, max_body
            if gate:
                service.answers.judge.look_back(holder)
            service.news.each = client_streams
            if allowed_hosts or host in _HERE:
                service.hosts = Hosts(allowed_hosts)
            most = _room_for(connections)
            those = Connections(Limits(most, client_connections), trust_proxy)
            service.gauges.add("connections", "Connections there are", lambda: float(len(those)))
            service.gauges.add(
                "connections_too_many", "Connections that probes alone were answered on, or none",
                lambda: float(those.turned_away),
            )  # fmt: skip
            config = uvicorn.Config(
                make_app(service),
                host=host,
                port=port,
                log_level=log_level,
                access_log=False,
                server_header=False,
                proxy_headers=trust_proxy is not None,
                forwarded_allow_ips=trust_proxy,
                http=those.protocol(),
                ws="none",
                timeout_graceful_shutdown=5,
                # two lists of ids in a request line: see routes.Ids
                h11_max_incomplete_event_size=1 << 19,
            )
            # what is there now stays: a full collection over it would hold up requests
            gc.collect()
            gc.freeze()
            _Server(config, service, those, started).run()
        finally:
            holder.close()
            if approximate is not None:
                approximate.stop()
            if service.intake is not None:
                service.intake.close()


def _room_for(connections: int) -> int:
    """Return how many connections there may be, having asked the system for as many files."""
    try:
        import resource
    except ImportError:
        return connections
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = max(soft - _OTHER_FILES, soft // 2)
        logger.warning("%d connections at once, as %d files may be open (ulimit -n)", most, soft)
        return most
    return connections


def build_service(
    model: str,
    folder: str,
    *,
    columns: IntakeColumns | Mapping[str, str] | None = None,
    titles: str | None = None,
    item_features: str | None = None,
    user_features: str | None = None,
    ratings: str | None = None,
    intake: Callable[[IntakeColumns], FolderIntake] | None = None,
    history: int = MOST_KNOWN,
    poll_seconds: float = 0.25,
    wait_seconds: float = 0.0,
    ann_recall: float | None = None,
) -> Service:
    """Make a service that has taken up a model and follows it; the options are those of `serve`.

    Raises StorageError where there is no model after `wait_seconds`.
    """
    news = News()
    if is_saved(model):
        model = _as_path(model, f"{folder}/saved")
    holder = ModelHolder(model, folder, poll_seconds)
    until = time.monotonic() + wait_seconds
    missing = ""
    while True:
        try:
            if holder.poll():
                break
        except GoneError as gone:
            # pruned while it was read: the next look finds a newer version, or asks for the same
            if str(gone) == missing:
                raise
            missing = str(gone)
            continue
        if time.monotonic() >= until:
            raise StorageError(f"There is no model at {model}: look whether the path is right.")
        time.sleep(0.1)
    with holder.reading() as first:
        kinds, shell, commit = first.kinds, first.shell, first.commit
    names = IntakeColumns.of_model(holder.params, columns)
    known = None if ratings is None else read_ratings(ratings, names, kinds)
    remembered = History(kinds, known, history)
    answers = Answers(holder, Titles(kinds[1]), remembered)
    if titles is not None:
        answers.titles = Titles.read(titles, kinds[1])
    answers.about = (
        _features_of(user_features, 0, kinds[0], names.user),
        _features_of(item_features, 1, kinds[1], names.item),
    )
    for side, about in enumerate(answers.about):
        if shell.features[side] is not None:
            holder.join(side, holder.unknown_of(side, about))
    taken: Intake | None = None
    if intake is not None:
        inbox = intake(names)
        for one in inbox.found:
            remembered.add(one.user, [one.known()])
        inbox.found.clear()
        answers.join(inbox.told)
        inbox.told.clear()
        taken = inbox
    if ann_recall is not None:
        answers.approximate = _approximate(holder, ann_recall)
    _warm_up(answers)
    answers.judge.look(shell, commit)

    def told(commit: Commit) -> None:
        with holder.reading() as model:
            answers.judge.look(model.shell, model.commit)
        news.tell("version", answers.news() or {})
        if answers.approximate is not None:
            answers.approximate.look()

    holder.on_version = told
    holder.start()
    gauges = Gauges(holder, answers.judge, answers.approximate)
    return Service(answers, news, gauges, taken, columns=names)


def _features_of(path: str | None, side: int, kind: IdKind, name: str) -> KnownFeatures:
    return KnownFeatures(kind) if path is None else read_features(path, side, kind, name)


def _approximate(holder: ModelHolder, recall: float) -> Approximate:
    if not 0.0 < recall <= 1.0:
        raise ValueError(f"ann_recall must be above 0 and at most 1, got {recall}.")
    try:
        found = Approximate(holder, recall)
    except ModuleNotFoundError as missing:
        raise ValueError(f"An approximate index needs faiss: {install('ann')}") from missing
    found.start()
    return found


def _as_path(model: str, path: str) -> str:
    """Return a saved model as a model path: its own, or one whose first version it is."""
    in_runs = saved_path(model)
    if in_runs is not None:
        return in_runs[0]
    saved = read_saved(model)
    state = saved.state
    meta = {name: saved.metadata[name] for name in ("uid", "kinds", "settings", "idTypes")}
    VersionStore(path).create(state, meta | {"params": saved.params})
    return path


def _warm_up(answers: Answers) -> None:
    """Compile what the first requests would wait for."""
    best = answers.popular(1).items
    if not best:
        return
    item, rating = best[0].item, best[0].prediction
    asked = AnonymousIn(ratings=[ItemRating(item=item, rating=rating)], n=1)
    answers.anonymous(asked)
    answers.explanation("", item)
    answers.similar(item, 1)
    with answers.holder.reading() as model:
        bounded = model.settings.solver == "bayes" and model.events is None
    answers.recommendations("", 1, True, "upper" if bounded else "prediction", None, None, True)


class _Server(uvicorn.Server):
    """Says when it listens, and ends the streams of events before it waits for connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        those: Connections,
        started: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._connections = those
        self._service = service
        self._told = started

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        self._connections.watch()
        if self.started:
            name = self.servers[0].sockets[0].getsockname()
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            self._told(f"http://{host}:{name[1]}/")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.news.close()
        # uvicorn's own would raise the signal again when it has ended, and cut short what follows
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
