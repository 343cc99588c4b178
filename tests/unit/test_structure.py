"""The floors of the package, read from its imports, also those inside functions; nothing is run.

How many packages a micro-batch and a fit pass through, imports don't tell: docs/architecture.md.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NAME = "sparkml_sgdals"
# each with those right below it; what lies below these may be imported as well
BELOW = {
    "arrays": "errors _compiling", "kernels": "arrays", "state": "kernels notebook",
    "learn": "state", "store": "state",
    "ingest": "store spark_workers", "fit": "ingest learn", "predict": "ingest learn metrics",
    "stream": "fit", "ml": "predict stream predictor", "race": "ml",
    "errors": "", "spark_jobs": "errors", "spark_workers": "spark_jobs",
    "predictor": "store", "vectors": "store", "serving": "learn store extras",
    NAME: "race predictor vectors", "cli": f"{NAME} datasets", "mlflow": NAME,
    "metrics": "", "notebook": "", "plotting": "extras", "datasets": "extras", "_compiling": "",
    "extras": "",
}  # fmt: skip
NO_SPARK = {
    "serving",
    "predictor",
    "vectors",
    "learn",
    "store",
    "state",
    "kernels",
    "arrays",
    "errors",
}
NO_SPARK |= {"datasets", "metrics", "notebook", "_compiling", "extras"}
MOST_MODULES, MOST_LINES = 15, 520


def reach(floor: str) -> set[str]:
    return {floor}.union(*map(reach, BELOW[floor].split()))


def floor_of(module: str) -> str:
    return [*module.split("."), NAME][1]


def imports(source: str) -> set[str]:
    """Full names; of `from a import b` it is a.b, whether that is a module or not."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom)]
    return plain | {f"{'.' * n.level}{n.module}.{alias.name}" for n in froms for alias in n.names}


def faults(root: Path) -> set[str]:
    """What is wrong with the package in a folder."""
    paths = {
        ".".join((NAME, *p.relative_to(root).with_suffix("").parts)): p for p in root.rglob("*.py")
    }
    sources = {name.removesuffix(".__init__"): p.read_text() for name, p in paths.items()}
    folders = [p.parent.relative_to(root) for p in paths.values() if p.name != "__init__.py"]
    found = {f"modules in {f}" for f in folders if folders.count(f) > MOST_MODULES}
    graph = {}
    for module, source in sources.items():
        floor, names = floor_of(module), imports(source)
        spark = {n for n in names if n.startswith("pyspark") and floor in NO_SPARK}
        ours = {n if n in sources else n.rpartition(".")[0] for n in names if n.startswith(NAME)}
        above = {n for n in ours if floor_of(n) not in reach(floor)}
        relative = {n for n in names if n.startswith(".")}
        found |= {f"{module} imports {n}" for n in spark | above | relative}
        found |= {f"lines of {module}"} if source.count("\n") > MOST_LINES else set()
        graph[module] = ours
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        found.add(f"circle of {' '.join(sorted(set(circle.args[1])))}")
    return found


def test_the_package_keeps_its_floors():
    assert faults(REPOSITORY / NAME) == set()
    assert set().union(*map(reach, NO_SPARK)) == NO_SPARK


def test_the_picture_shows_these_floors():
    picture = (REPOSITORY / "docs/images/floors.svg").read_text()
    arrows = re.findall(r'data-arrow="(\w+) (\w+)"', picture)
    beside = {"errors", "metrics", "spark_jobs", "spark_workers"}
    beside |= {"notebook", "_compiling", "extras", NAME, "cli", "mlflow"}
    assert {(a, b) for a in BELOW for b in BELOW[a].split() if not {a, b} & beside} == set(arrows)


def test_what_breaks_them_is_reported(tmp_path):
    for name, source in {
        "errors.py": "", "ml/model.py": "import pyspark.ml", "learn/a.py": "\n" * 521,
        "kernels/a.py": "def f():\n    from pyspark.sql import Row\n",
        "arrays/a.py": f"from {NAME} import errors\nfrom {NAME}.ml.model import Model",
        "state/a.py": f"import {NAME}.state.b", "state/b.py": f"from {NAME}.state import a",
        **{f"store/m{n}.py": "from . import x" if n == 15 else "" for n in range(16)},
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    assert faults(tmp_path) == {
        "modules in store", f"lines of {NAME}.learn.a", f"circle of {NAME}.state.a {NAME}.state.b",
        f"{NAME}.kernels.a imports pyspark.sql.Row", f"{NAME}.arrays.a imports {NAME}.ml.model",
        f"{NAME}.store.m15 imports .None.x",
    }  # fmt: skip
