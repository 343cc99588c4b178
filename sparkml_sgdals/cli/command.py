"""What every command shares: its options, the Spark session, and what becomes of an error."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sparkml_sgdals.cli.output import Output
from sparkml_sgdals.cli.spark_log import SparkLog
from sparkml_sgdals.cli.wording import in_options

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["NOT_READY", "Invocation", "command", "one_sentence", "pairs"]

NOT_READY: Final = 3
"""Exit code of `diagnose` for a model that does not beat its baseline."""

_COMMON: Final[dict[str, Any]] = {
    "json": Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")],
}
_SPARK: Final[dict[str, Any]] = {
    "master": Annotated[
        str,
        typer.Option(
            help="Spark's master, or sc://host:port for Spark Connect; by default what "
            "SPARK_REMOTE or Spark's own configuration says, else local[*].",
            show_default=False,
        ),
    ],
    "conf": Annotated[
        list[str] | None,
        typer.Option(help="A setting of Spark, as name=value; may be repeated."),
    ],
    "spark_log": Annotated[
        str,
        typer.Option(
            help="File for Spark's log, - for stderr; by default a temporary one, which stays "
            "where Spark fails.",
            show_default=False,
        ),
    ],
}
_DEFAULTS: Final[dict[str, Any]] = {
    "json": False, "debug": False, "master": "", "conf": None, "spark_log": "",
}  # fmt: skip


@dataclass
class Invocation:
    """One run of a command.

    Attributes
    ----------
    output : Output
        where results go
    master : str
        Spark's master; empty for Spark's own choice
    conf : dict[str, str]
        Spark's configuration
    log : str
        where Spark's log goes, as the option says
    """

    output: Output
    master: str = ""
    conf: dict[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def remote(self) -> bool:
        """Whether Spark is a server that may see other paths than this machine."""
        return self.master.startswith("sc://") or "SPARK_REMOTE" in os.environ

    @property
    def elsewhere(self) -> bool:
        """Whether Spark may see paths that this machine does not."""
        local = not self.master or self.master.startswith("local")
        return self.remote or not local

    @contextmanager
    def spark(self) -> Iterator[SparkSession]:
        """Yield the session that is there, or a new one that ends with the body."""
        from pyspark.sql import SparkSession

        # else workers start whatever python3 the PATH has
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        found = SparkSession.getActiveSession()
        if found is not None:
            yield found
            return
        if not self.remote:
            _need_java()
        log = SparkLog.at(self.log)
        try:
            with self.output.phase("Starting Spark"), log.inherited():
                session = self._start(SparkSession.builder, log)
        except Exception as failure:
            told = OSError(f"Spark did not start: {log.reason() or one_sentence(failure)}")
            told.spark_log = log.path  # type: ignore[attr-defined]
            raise told from failure
        try:
            try:
                yield session
            finally:
                # its log is appended to once more, so it goes after this
                with log.inherited():
                    session.stop()
        except (Exception, KeyboardInterrupt) as failure:
            if not _is_sparks(failure):
                log.drop()
            elif log.path is not None:
                failure.spark_log = log.path  # type: ignore[union-attr]
            raise
        else:
            log.drop()

    def _start(self, builder: Any, log: SparkLog) -> SparkSession:
        from sparkml_sgdals.spark_jobs import start_session

        builder = builder.appName("sparkml-sgdals")
        if self.master.startswith("sc://"):
            builder = builder.remote(self.master)
        elif self.master:
            builder = builder.master(self.master)
        quiet = {
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR" if log.path is None else "WARN",
            "spark.sql.execution.arrow.pyspark.enabled": "true",
        }
        # a server that is there already has its own, and refuses those of its process
        for name, value in (({} if self.remote else quiet) | self.conf).items():
            builder = builder.config(name, value)
        return start_session(builder)


def _need_java() -> None:
    """Raise OSError where Spark would look for Java in vain."""
    home = os.environ.get("JAVA_HOME")
    if home and not os.access(os.path.join(home, "bin", "java"), os.X_OK):
        raise OSError(f"JAVA_HOME is {home}, and there is no bin/java in it: set it to a Java 17.")
    if not home and shutil.which("java") is None:
        raise OSError(
            "Spark needs Java 17 or newer, and there is none: install it, or set JAVA_HOME to the "
            "folder of one."
        )


def _is_sparks(failure: BaseException) -> bool:
    """Whether more of a failure stands in Spark's log."""
    return type(failure).__module__.startswith(("pyspark", "py4j"))


def command(
    app: typer.Typer, name: str, spark: bool = True
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register `function(run, ...)` as a command with the options that all share.

    It returns its exit code, None for 0. Parameters after `run` are Typer's.
    """
    shared = _COMMON | (_SPARK if spark else {})

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        @functools.wraps(function)
        def outer(**given: Any) -> None:
            said = _DEFAULTS | {name: given.pop(name) for name in shared}
            with _errors(said["debug"]):
                conf = pairs("--conf", said["conf"] or ())
                output = Output(said["json"])
                run = Invocation(output, said["master"], conf, said["spark_log"])
                code = function(run, **given) or 0
            if code:
                raise typer.Exit(code)

        kind = inspect.Parameter.KEYWORD_ONLY
        extra = [
            inspect.Parameter(name, kind, default=_DEFAULTS[name], annotation=annotation)
            for name, annotation in shared.items()
        ]
        parameters = [parameter.replace(kind=kind) for parameter in own] + extra
        outer.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        outer.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(outer)
        return function

    return register


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """name=value texts as a dict; raises typer.BadParameter for one without '='."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"{option} takes name=value, got {text!r}.")
        found[name.strip()] = value.strip()
    return found


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One sentence on stderr and an exit code, in place of a stack trace."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warning
            yield
    except (typer.Exit, typer.BadParameter, typer.Abort):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # the reader of a pipe has gone: `... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            typer.echo(f"Error: {in_options(one_sentence(error))}", err=True)
        log = getattr(error, "spark_log", None)
        if log is not None:
            typer.echo(f"Spark's log: {log}", err=True)
        raise typer.Exit(1) from error


def _warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print a warning of ours as a sentence; those of libraries are for programmers."""
    if issubclass(category, UserWarning):
        typer.echo(f"Warning: {in_options(str(message))}", err=True)


def one_sentence(error: BaseException) -> str:
    """Say in a line what went wrong: of an error inside a task or batch, the innermost one."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, KeyError):
        text = f"There is no {text}."
    # a line of Python's own error; the JVM's, and what PySpark makes of them, begin with a package
    inner = re.findall(
        r"^(?!org\.|java\.|py4j\.|pyspark\.)(?:\w+\.)*\w*(?:Error|Exception): (.+)$", text, re.M
    )
    # up to its stack, in time that grows with the text alone: a trace has a thousand lines
    cause = re.findall(r"^Caused by: [\w.$]+: (.+(?:\n(?!\s*at ).+)*)", text, re.M)
    wrapped = re.findall(r"^pyspark\.(?:\w+\.)*\w+: (.+)$", text, re.M)
    if "Traceback (most recent call last)" in text and (inner or cause or wrapped):
        text = (inner[:1] or cause[-1:] or wrapped[:1])[0]
    line = " ".join(line.strip() for line in text.split("\n\n")[0].splitlines()[:4])
    line = re.sub(r"^\[[A-Z_.0-9]+\]\s*|\s*SQLSTATE: \w+.*$|\s*JVM stacktrace:.*$", "", line)
    return line if len(line) <= 500 else line[:497] + "..."
