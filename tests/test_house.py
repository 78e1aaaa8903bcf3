"""The laws of the house that a program can hold: import arrows, public names, lazy torch, honest names."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import safelight

ROOT = Path(safelight.__file__).parent
REPOSITORY = Path(__file__).parent.parent

# Which rooms a room may import. Leaves may be imported by every room.
LEAVES = {"errors", "doors", "memory", "sending", "uncollected"}
BELOW_TASKS = {"models", "diffusion", "presets", "conditioning", "checkpoints", "adapters"}
DRAWING = {*BELOW_TASKS, "tasks"}
MAY_IMPORT = {
    "models": set(),
    "diffusion": set(),
    "presets": {"models", "diffusion"},  # their Config classes
    "conditioning": {"models"},
    "checkpoints": {"models", "diffusion", "presets"},
    "adapters": {"models", "checkpoints", "presets"},
    "tasks": BELOW_TASKS,
    "training": {*DRAWING, "evaluation"},
    "evaluation": {*DRAWING, "training"},
    "inspection": {*DRAWING, "training", "evaluation"},
    "serving": {"tasks", "training", "evaluation", "inspection"},
    "cli": {"mistakes", "tasks", "training", "evaluation", "inspection", "serving"},
    "__main__": {"cli"},
    "__init__": {"tasks"},  # the public names
    "errors": set(),
    "mistakes": set(),
    "doors": set(),
    "memory": set(),
    "sending": set(),
    "uncollected": set(),
}
CONFIGS_ONLY = {"presets": ("Config", "Prediction", "States")}
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core", "tools", "stuff"}
NO_TENSORS = {"cli", "serving"}

FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import in a file, wherever it stands; the name is "" for `import module`."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, as the others do"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_keep_the_room_table(path: Path) -> None:
    room = room_of(path)
    for module, name in imports_of(path):
        parts = module.split(".")
        if parts[0] == "safelight":
            target = parts[1] if len(parts) > 1 else name
            if target in {room, "__version__", "__init__"} | LEAVES:
                continue
            assert target in MAY_IMPORT[room], f"{room} may not import safelight.{target} (DESIGN's table)"
            if room in CONFIGS_ONLY:
                assert name.endswith(CONFIGS_ONLY[room]), f"{room} may import only Config classes, not {name}"
        if room in NO_TENSORS:
            assert parts[0] != "torch", f"{room} must not know tensors"


def test_the_table_would_catch_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    from safelight.tasks.model import Model\n    import torch.nn\n")
    assert imports_of(file) == [("safelight.tasks.model", "Model"), ("torch.nn", "")]
    assert "tasks" not in MAY_IMPORT["diffusion"]


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in FILES} <= set(MAY_IMPORT)


def test_no_file_has_a_vague_name() -> None:
    assert [str(p.relative_to(ROOT)) for p in FILES if VAGUE & {*p.relative_to(ROOT).parts[:-1], p.stem}] == []


def test_every_public_name_is_there_and_listed_once() -> None:
    assert len(set(safelight.__all__)) == len(safelight.__all__)
    for name in safelight.__all__:
        assert getattr(safelight, name) is not None
    assert set(safelight.__all__) == {*safelight._HOMES, "__version__"}
    assert set(safelight.__all__) <= set(dir(safelight))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        safelight.nonsense  # noqa: B018


def test_the_type_checkers_imports_are_the_lazy_ones() -> None:
    declared = {
        name: module
        for module, name in imports_of(ROOT / "__init__.py")
        if module.startswith("safelight") and name not in ("", "uncollected")  # which is no public name
    }
    assert declared == safelight._HOMES


def test_version_stands_in_pyproject_too() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" in project.get("dynamic", []) or project["version"] == safelight.__version__


@pytest.mark.parametrize(
    "code",
    [
        "import safelight",
        "import safelight; safelight.TextToImage(prompt='x')",
        "import safelight.tasks.metadata",
        "from safelight.cli import main; main(['--help'])",
        "from safelight.cli import main; main(['txt2img', '--help'])",
        "from safelight.cli import main; main(['txt2img', 'x', '--steps', '0'])",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
