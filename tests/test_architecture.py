"""The floor plan as tests: who may import whom, names, lengths.

Every test collects all violations and shows them together.
"""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "pirl_jax"

# package -> packages it may import, besides itself.  The modules directly under pirl_jax are the
# commands: they may import every package and no package may import them.
BELOW_RUN = {
    "core",
    "models",
    "rl",
    "envs",
    "policy",
    "rollout",
    "learner",
    "weights",
    "datasets",
    "monitor",
    "serving",
}
FLOORS = {
    "core": set(),
    "models": {"core"},
    "rl": {"core"},
    "envs": set(),
    "policy": {"core", "models"},
    "rollout": {"core", "policy", "envs"},
    "learner": {"core", "models", "policy", "rl"},
    "weights": {"core", "models", "policy"},
    "datasets": {"core", "policy"},
    "monitor": {"core"},
    "serving": {"core", "policy", "envs", "rollout"},
    "run": BELOW_RUN,
    "bench": BELOW_RUN | {"run"},
    "evidence": BELOW_RUN | {"run"},
}
# wing of envs/ -> what it may import of envs/, besides itself and the modules in WING_GROUND.
# experts.py and gym.py stand above the wings.
WINGS = {"gl": set(), "pool": {"gl"}, "libero": {"gl"}, "tabletop": {"gl"}}
WING_GROUND = {"arrays", "base", "caches", "child", "panda", "places", "probes", "servo"}
NOT_IN_ENVS = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "ml_collections"}
NOT_AT_RUN_TIME = {"torch", "transformers", "robomimic", "ray", "tensorflow"}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 450
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Dotted names a module imports, anywhere in it, with line.

    `from a import b` gives a.b when that is a module.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if name in TREES else node.module, node.lineno) for name in names]
    return found


def package_of(module: str) -> str | None:
    """Second part of a dotted name when that is a package; None on the top floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


def own_imports(module: str) -> list[tuple[str, int]]:
    return [
        (name, line) for name, line in imports(TREES[module]) if name.split(".")[0] == "pirl_jax"
    ]


def test_every_package_has_a_floor():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - {"recipes"} == set(FLOORS)  # a link to configs/


def test_imports_go_only_to_the_floors_below():
    wrong = []
    for module in TREES:
        package = package_of(module)
        for name, line in own_imports(module) if package else ():
            if package_of(name) != package and package_of(name) not in FLOORS[package]:
                allowed = sorted(FLOORS[package]) or "nothing"
                wrong.append(f"{module}:{line} imports {name}; {package} may import {allowed}")
    assert not wrong, "\n".join(wrong)


def test_commands_import_no_commands():
    """What two of them share lives in run/."""
    top = {name for name in TREES if name.count(".") == 1 and package_of(name) is None}
    commands = top - {"pirl_jax.__main__"}  # names them all, to start one
    wrong = []
    for module in sorted(commands):
        found = [(name, line) for name, line in own_imports(module) if name in commands]
        wrong += [f"{module}:{line} imports {name}" for name, line in found]
    assert {"pirl_jax.train", "pirl_jax.evaluate"} <= commands
    assert not wrong, "\n".join(wrong)


def test_wings_of_the_environments_know_the_ground_and_not_each_other():
    wrong = []
    for module in TREES:
        parts = module.split(".")
        if parts[:2] != ["pirl_jax", "envs"] or len(parts) < 4:
            continue
        allowed = {parts[2], *WINGS[parts[2]], *WING_GROUND}
        for name, line in own_imports(module):
            if name.split(".")[2] not in allowed:
                wrong.append(f"{module}:{line} imports {name}; {parts[2]} may import {allowed}")
    assert not wrong, "\n".join(wrong)


def test_package_files_are_empty():
    """An import in __init__.py would hide who needs whom, and bring jax into the environments.

    The package's own has one, which brings nothing but the standard library.
    """
    wrong = [
        name
        for name, tree in TREES.items()
        if (ROOT / name.replace(".", "/")).is_dir() and imports(tree) and name != "pirl_jax"
    ]
    assert not wrong, wrong
    assert [name for name, _ in imports(TREES["pirl_jax"])] == ["pirl_jax.core.absent"]
    brought = {name.partition(".")[0] for name, _ in imports(TREES["pirl_jax.core.absent"])}
    assert brought <= sys.stdlib_module_names


def test_environments_never_name_jax_and_nobody_names_torch():
    wrong = []
    for module, tree in TREES.items():
        banned = NOT_AT_RUN_TIME | (NOT_IN_ENVS if package_of(module) == "envs" else set())
        wrong += [
            f"{module}:{line} imports {name}"
            for name, line in imports(tree)
            if name.split(".")[0] in banned
        ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_environments_loads_no_jax():
    """What the text cannot show: another package could bring it along."""
    modules = [name for name in TREES if package_of(name) == "envs"]
    banned = sorted(NOT_IN_ENVS | NOT_AT_RUN_TIME)
    code = f"import sys, {', '.join(modules)}\n"
    code += f"print(*[name for name in {banned} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split("\n")[-2].strip(), f"loaded: {done.stdout}"


def test_no_relative_imports():
    wrong = []
    for module, tree in TREES.items():
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        wrong += [f"{module}:{node.lineno}" for node in nodes]
    assert not wrong, wrong


def test_no_import_cycles():
    edges = {module: {name for name, _ in own_imports(module)} & TREES.keys() for module in TREES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, (
            f"import cycle: {' -> '.join((*path[path.index(module) :], module))}"
        )
        if module not in done:
            for name in sorted(edges[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_functions_fit_on_a_screen_and_files_in_a_sitting():
    wrong = []
    for path, (module, tree) in zip(FILES, TREES.items(), strict=True):
        length = len(path.read_text(encoding="utf-8").splitlines())
        wrong += (
            [f"{module}: {length} lines, at most {MAX_FILE_LINES}"]
            if length > MAX_FILE_LINES
            else []
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    where = f"{module}:{node.lineno} {node.name}"
                    wrong.append(f"{where}: {lines} lines, at most {MAX_FUNCTION_LINES}")
    assert not wrong, "\n".join(wrong)


def test_names_say_what_is_inside():
    wrong = [module for module in TREES if VAGUE_NAMES & set(module.split("."))]
    assert not wrong, wrong


def test_only_commands_and_monitor_write_to_the_terminal():
    wrong = []
    for module, tree in TREES.items():
        calls = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        if package_of(module) not in (None, "monitor", "run", "bench", "evidence"):
            wrong += [f"{module}:{call.lineno}" for call in calls if call.func.id == "print"]
    assert not wrong, wrong


def test_every_module_says_what_it_is():
    wrong = [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    assert not wrong, wrong


@pytest.fixture(scope="module")
def tracked():
    """Names of the files in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return list(filter(None, listing.stdout.split("\0")))


def test_links_lead_to_files_of_the_repository(tracked):
    for name in tracked:
        link = ROOT / name
        if link.is_symlink():
            target = os.path.normpath(link.parent / os.readlink(link))
            inside = os.path.relpath(target, ROOT)
            assert any(f"{other}/".startswith(f"{inside}/") for other in tracked), name


def test_no_path_of_one_machine_in_the_repository(tracked):
    # Written so that this file does not match itself.
    machine_path = re.compile(rb"(?<![\w.])/(?:work|root|home/\w+)/")
    wrong = []
    for name in tracked:
        lines = (ROOT / name).read_bytes().split(b"\n") if (ROOT / name).is_file() else []
        wrong += [
            f"{name}:{number}" for number, line in enumerate(lines, 1) if machine_path.search(line)
        ]
    assert not wrong, wrong


def test_the_tour_draws_the_tree_as_it_is():
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    tree = text.partition("\npirl_jax/\n")[2].partition("\ntests/")[0]
    drawn = set(re.findall(r"(?<![\w/.])(\w+\.py)\b", re.sub(r"\S+/\S+", "", tree)))
    files = {path.name for path in FILES if path.name != "__init__.py"}
    assert not files - drawn, "missing in the tree of docs/tour.md"
    assert not drawn - files, "in the tree of docs/tour.md and nowhere else"


def test_the_stops_of_an_observation_exist():
    """The life of one observation in docs/tour.md: number, file, function."""
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    stops = re.findall(r"^ ?(\d+) ([\w/|]+\.py) +(\w+)", text, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in stops] == list(range(1, 11))
    for _, place, function in stops:
        head, _, name = place.rpartition("/")
        folder, _, choice = head.rpartition("/")
        for wing in choice.split("|"):
            source = (PACKAGE / folder / wing / name).read_text(encoding="utf-8")
            assert f"def {function}(" in source, f"{place} {function}"


def test_the_tests_that_the_pages_name_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 80
    wrong = []
    for file, function in named:
        path = ROOT / "tests" / file.removeprefix("tests/")
        if not path.is_file() or f"def {function}" not in path.read_text(encoding="utf-8"):
            wrong.append(f"{file}::{function}")
    assert not wrong, wrong


def test_no_two_test_files_share_a_name():
    """pytest collects only the first of them, and calls the other an error of collection."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
