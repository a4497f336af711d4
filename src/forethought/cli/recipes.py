"""Where the recipes are: inside an installed package, or beside the source in a checkout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forethought.errors import RecipeError

if TYPE_CHECKING:
    from forethought.config import AnyRecipe

_PACKAGE = Path(__file__).parent.parent
RECIPE_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent.parent / "recipes")


def recipe_names() -> list[str]:
    """Names of the recipes that come with this package, such as "quickstart"."""
    return sorted({path.stem for folder in RECIPE_FOLDERS for path in folder.glob("*.toml")})


def find_recipe(name: str) -> Path:
    """The recipe called `name`. Raises RecipeError that lists the known ones."""
    for folder in RECIPE_FOLDERS:
        path = folder / f"{name}.toml"
        if path.is_file():
            return path
    known = ", ".join(recipe_names()) or "none in this installation"
    raise RecipeError(f"recipe '{name}' does not come with this package: it has {known}")


def named_recipe(path: Path, overrides: Sequence[str]) -> AnyRecipe:
    """The recipe in the file `path`, or the package's own where a bare name or `recipes/NAME.toml`
    is no file. Raises RecipeError."""
    from forethought.config import load_recipe

    is_ours = not path.exists() and str(path.parent) in (".", "recipes")
    return load_recipe(find_recipe(path.stem) if is_ours else path, overrides)
