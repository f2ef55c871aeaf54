"""The layout of src/: imports point down, there are no cycles, and no two files share a name.

Imports inside functions and under `if TYPE_CHECKING` count too.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"

# A module belongs to the longest prefix that matches. It may import its own floor and those below.
FLOORS = {
    "ddpm": 7,  # the public functions of the package, and __main__.py
    "hydra_plugins": 7,
    "ddpm.launch": 6,
    "ddpm.commands": 5,
    "ddpm.training": 4,
    "ddpm.metrics": 4,
    "ddpm.data": 3,
    "ddpm.runs": 2,
    "ddpm.seeding": 2,
    "ddpm.diffusion": 1,
    "ddpm.models": 1,
    "ddpm.devices": 1,
    "ddpm.config": 1,
    "ddpm.errors": 1,
    "ddpm.secrets": 1,
}

MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SRC.rglob("*.py"))
}


def imports(module: str) -> Iterator[str]:
    """The modules of src/ that a module imports anywhere in its code."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{name.name}" for name in node.names]  # modules, or names in the module `base`
            yield from (name if name in MODULES else base for name in names if base in MODULES)


GRAPH = {module: set(imports(module)) for module in MODULES}


def place(module: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    return max((prefix for prefix in FLOORS if f"{module}.".startswith(f"{prefix}.")), key=len)


def test_every_place_has_a_floor() -> None:
    """A new folder or file directly in ddpm/ needs an entry in FLOORS."""
    top_level = {".".join(module.split(".")[:2]) for module in MODULES if module.startswith("ddpm.")}
    assert top_level - {"ddpm.__main__"} == FLOORS.keys() - {"ddpm", "hydra_plugins"}
    assert place("ddpm.runs.run") == "ddpm.runs"
    assert place("ddpm.__main__") == "ddpm"


def test_imports_point_down() -> None:
    upwards = [
        f"{module} (floor {FLOORS[place(module)]}) imports {imported} (floor {FLOORS[place(imported)]})"
        for module, all_imported in GRAPH.items()
        for imported in sorted(all_imported)
        if FLOORS[place(imported)] > FLOORS[place(module)]
    ]
    assert upwards == []


def test_no_cycles() -> None:
    """Neither between modules, nor between the folders of FLOORS."""
    TopologicalSorter(GRAPH).prepare()  # raises CycleError with the cycle
    places: dict[str, set[str]] = {name: set() for name in FLOORS}
    for module, all_imported in GRAPH.items():
        places[place(module)] |= {place(imported) for imported in all_imported} - {place(module)}
    TopologicalSorter(places).prepare()


def test_no_name_twice() -> None:
    names = Counter(path.parent.name if path.name == "__init__.py" else path.stem for path in MODULES.values())
    assert [name for name, count in names.items() if count > 1] == []
