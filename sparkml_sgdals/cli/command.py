"""What every command shares: its options, the Spark session, and what becomes of an error."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sparkml_sgdals.cli.output import Output

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
}
_DEFAULTS: Final[dict[str, Any]] = {"json": False, "debug": False, "master": "", "conf": None}


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
    """

    output: Output
    master: str = ""
    conf: dict[str, str] = field(default_factory=dict)

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
        builder = SparkSession.builder.appName("sparkml-sgdals")
        if self.master.startswith("sc://"):
            builder = builder.remote(self.master)
        elif self.master:
            builder = builder.master(self.master)
        quiet = {
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
            "spark.sql.execution.arrow.pyspark.enabled": "true",
        }
        remote = self.master.startswith("sc://") or "SPARK_REMOTE" in os.environ
        # a server that is there already has its own, and refuses those of its process
        for name, value in (({} if remote else quiet) | self.conf).items():
            builder = builder.config(name, value)
        with self.output.waiting("Starting Spark"):
            session = builder.getOrCreate()
        try:
            yield session
        finally:
            session.stop()


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
                run = Invocation(Output(said["json"]), said["master"], conf)
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
            typer.echo(f"Error: {one_sentence(error)}", err=True)
        raise typer.Exit(1) from error


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
