"""The house: which room may use which, what source never does, and how big it may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "forethought"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may use the rooms before it, and its own line.
ROOMS = [
    {"types", "errors", "budget"},
    {
        "config",
        "schema",
        "schema_tables",
        "toml",
        "jsonl",
        "run",
        "checkpoints",
        "locks",
        "durable",
        "machine",
        "prices",
        "memory",
    },
    {"grading"},
    {"tasks"},
    {"models"},
    {"sampling"},
    {"strategies"},
    {"evaluation"},
    {"training"},
    {"serving"},
    {"cli", "__main__"},
]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# In sampling: the files of the local engine. The others sample elsewhere, without torch.
TORCH_ROOMS = (
    "models/",
    "training/",
    "sampling/local.py",
    "sampling/cache.py",
    "sampling/decoder.py",
    "sampling/draw.py",
    "sampling/fused.py",
    "sampling/lean.py",
    "sampling/lean_blocks.py",
    "sampling/products.py",
    "sampling/scaled.py",
    "sampling/shared_cache.py",
    "sampling/stacks.py",
    "sampling/stopping.py",
    "sampling/stretch.py",
    "sampling/team.py",
    "sampling/tiled.py",
    "sampling/token_text.py",
    "sampling/triton_kernels.py",
    "sampling/whole_layers.py",
)
TORCH_MODULES = ("torch", "transformers")

# Doctor and the commands ask torch about the machine; they import it inside a function.
LAZY_TORCH_ROOMS = ("cli/",)

TEXT = (".py", ".toml", ".md", ".jinja", ".json", ".txt")
MAX_LINES = 350
MAX_FUNCTION_LINES = 80
LONGER_FUNCTIONS = {"training/rl.py": 120}  # the loop is the story


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path, tree: ast.AST | None = None) -> Iterator[str]:
    """Full names of the modules a file imports anywhere, inside functions too."""
    package = ["forethought", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree or tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_part_of(module: str, packages: tuple[str, ...]) -> bool:
    return module.split(".")[0] in packages


def test_imports_run_one_way() -> None:
    wrong = []
    for path in FILES:
        room = name_of(path).split("/")[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in imports_of(path):
            parts = module.split(".")
            if parts[0] == "forethought" and len(parts) > 1 and not parts[1].startswith("__"):
                assert parts[1] in LEVELS, f"{name_of(path)} imports an unknown room: {module}"
                if LEVELS[parts[1]] > LEVELS[room]:
                    wrong.append(f"{name_of(path)} imports {module}")
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_is_in_a_known_room(path: Path) -> None:
    room = name_of(path).split("/")[0].removesuffix(".py")
    assert room == "__init__" or room in LEVELS


def test_torch_stays_in_its_rooms() -> None:
    wrong = []
    for path in FILES:
        name = name_of(path)
        if not name.startswith((*TORCH_ROOMS, *LAZY_TORCH_ROOMS)):
            modules = imports_of(path)
        elif name.startswith(LAZY_TORCH_ROOMS):
            top = ast.Module([node for node in tree_of(path).body if is_executed(node)], [])
            modules = imports_of(path, top)
        else:
            continue
        wrong += [f"{name} imports {m}" for m in modules if is_part_of(m, TORCH_MODULES)]
    assert wrong == []


def is_executed(node: ast.stmt) -> bool:
    """False for what importing a module does not run."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return False
    return not isinstance(node, ast.FunctionDef | ast.ClassDef)


HEAVY = ["torch", "transformers", "numpy", "pydantic", "safetensors", "tokenizers", "jinja2"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["trian"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from forethought.cli.app import main; main(sys.argv[1:]);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "[]"


def dangers(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that could run what a model or a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {"pickle", "marshal", "shelve", "dill"} & {name.split(".")[0] for name in names}:
                yield ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"):
            yield ast.unparse(node)
        if ast.unparse(node.func) in ("os.system", "os.popen", "builtins.eval", "builtins.exec"):
            yield ast.unparse(node)
        for keyword in node.keywords:
            value = getattr(keyword.value, "value", None)
            forbidden = {"shell": True, "trust_remote_code": True, "weights_only": False}
            if keyword.arg in forbidden and value is forbidden[keyword.arg]:
                yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_source_runs_no_foreign_code(path: Path) -> None:
    assert list(dangers(tree_of(path))) == []


def test_the_search_for_dangers_finds_them() -> None:
    code = "import pickle\neval(x)\nos.system(x)\nrun(x, shell=True)\nload(x, weights_only=False)"
    assert len(list(dangers(ast.parse(code)))) == 5
    assert list(dangers(ast.parse("model.eval()\nrun(x, shell=False)\nre.compile(x)"))) == []


def test_no_path_of_one_machine() -> None:
    machine = ["/" + name + "/" for name in ("work", "opt", "tmp", "root")] + ["/home" + "/"]
    folders = [ROOT / name for name in ("src", "recipes", "examples", "bench", "docs", "tests")]
    texts = [path for folder in folders for path in folder.rglob("*") if path.suffix in TEXT]
    texts += [ROOT / name for name in ("Makefile", "pyproject.toml", "README.md", "CHANGELOG.md")]
    wrong = []
    for path in texts:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        wrong += [f"{path.relative_to(ROOT)}: {place}" for place in machine if place in text]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert len(text.splitlines()) <= MAX_LINES
    limit = LONGER_FUNCTIONS.get(name_of(path), MAX_FUNCTION_LINES)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_loads(path: Path) -> None:
    config = pytest.importorskip("forethought.config")
    config.load_recipe(path)
