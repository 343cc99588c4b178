"""Every Python process of a killed tree starts with this: it traces, and waits at the named point.

It stands on the path of the tree alone, so that the package needs no hooks: once the package's
`micro_batch` has been imported, its store and updater are wrapped. Which process learns (the
driver, or under Spark Connect a worker beside the server) makes no difference.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time

TRACE = os.environ.get("KILLS_TRACE")


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the package's `micro_batch` when it is imported."""

    def find_spec(self, fullname, path, target=None):
        if fullname != "sparkml_sgdals.stream.micro_batch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            _wrap(module)

        spec.loader.exec_module = exec_module
        return spec


def _wrap(micro_batch):
    from sparkml_sgdals.store import compaction, objects, overlay, version_store

    # bases and pruning as often as in hours of a stream
    version_store._MIN_ROWS_OF_BASE = 300
    micro_batch._READERS_SECONDS = 0.0
    store, updater = version_store.VersionStore, micro_batch.StreamUpdater
    point, at = os.environ.get("KILLS_POINT", ""), int(os.environ.get("KILLS_BATCH", "-1"))
    trace = os.open(TRACE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    now = {"batch": -1, "base": False, "runs": None}

    def reach(name):
        """Note a stage; at the named point wait for the end."""
        os.write(trace, f"{time.time():.4f} {now['batch']} {name}\n".encode())
        if name == point and now["batch"] >= at:
            os.write(trace, b"stands\n")
            time.sleep(600)

    call, commit, write = updater.__call__, store.commit, objects.ObjectStore._put
    put_commit, prune, delete = store.put_commit, store.prune, store.delete

    def traced_call(self, batch, batch_id):
        now["batch"] = batch_id
        reach("learning")
        call(self, batch, batch_id)
        reach("before Spark's commit")

    def traced_commit(self, state, rows, batch, *args, **kwargs):
        reach("before the files")
        return commit(self, state, rows, batch, *args, **kwargs)

    def traced_write(self, target, payload, *together):
        name = target.rpartition("/")[2]
        half = next(
            (
                f"half of {what} written"
                for end, what in (
                    ("-users.parquet", "the users"),
                    ("-items.parquet", "the items"),
                    ("-metrics.parquet", "a base's history"),
                )
                if name.endswith(end)
            ),
            "half of the commit object written" if "/commits/" in target else "",
        )
        if half and half == point and now["batch"] >= at:
            write(self, target, payload[: len(payload) // 2])
            reach(half)
        if half:
            reach(half.replace("half of ", "").replace("written", "being written"))
        write(self, target, payload, *together)

    ask = objects.ObjectStore._put_if_none

    def traced_ask(self, name, payload):
        if name.startswith("commits/"):
            half = "half of the commit object written"
            if half == point and now["batch"] >= at:
                # harsher than S3 is, whose puts are whole
                write(self, f"{self.root}/{name}", payload[: len(payload) // 2])
                reach(half)
            reach("the commit object being written")
        return ask(self, name, payload)

    def traced_put_commit(self, commit, *args, **kwargs):
        now["base"] = commit.base == commit.version
        reach("after the files")
        put_commit(self, commit, *args, **kwargs)
        reach("after the commit object")
        if now["base"]:
            reach("after a base's commit object")
        if commit.runs != now["runs"]:
            now["runs"] = commit.runs
            reach("after the commit that names a compaction's runs")

    def traced_prune(self, *args, **kwargs):
        reach("pruning")
        prune(self, *args, **kwargs)
        reach("after pruning")

    def traced_delete(self, name):
        if name.startswith("files/"):
            reach("between commits and files of pruned versions")
        delete(self, name)

    compact, merge = compaction.compact, compaction.merge_runs

    def traced_compact(*args, **kwargs):
        reach("before a compaction")
        runs = compact(*args, **kwargs)
        reach("after the files of a compaction")
        return runs

    def traced_merge(sources, writer, **kwargs):
        add = writer.add

        def add_half(packed):
            half = len(packed) // 2
            add(packed.part(0, half))
            for file in writer._files.values():
                file._file.flush()
            reach("half of a run written")
            add(packed.part(half, len(packed)))

        writer.add = add_half
        merge(sources, writer, **kwargs)

    overlay.compact, compaction.merge_runs = traced_compact, traced_merge
    updater.__call__ = traced_call
    store.commit, store.put_commit = traced_commit, traced_put_commit
    objects.ObjectStore._put = traced_write
    objects.ObjectStore._put_if_none = traced_ask
    store.prune, store.delete = traced_prune, traced_delete


if TRACE:
    sys.meta_path.insert(0, _Finder())
