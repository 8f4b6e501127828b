"""`fedgraft recipes`: the settings of papers that `fedgraft compare --recipe` runs."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fedgraft.cli.settings import Json

if TYPE_CHECKING:
    from fedgraft.recipes.recipe import Recipe


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show only this one.", show_default="all")] = None,
    as_json: Json = False,
) -> None:
    """Settings of papers, with what they need and the published figures."""
    from fedgraft.recipes.recipe import Recipe, all_recipes

    found = [Recipe.load(name)] if name else all_recipes()
    if as_json:
        typer.echo(json.dumps([recipe.model_dump(exclude={"mock"}) for recipe in found]))
        return
    for recipe in found:
        _print(recipe, whole=name is not None)


def _print(recipe: "Recipe", whole: bool) -> None:
    typer.echo(f"{recipe.name}: {recipe.setting}.")
    rows = f"{len(recipe.published)} row{'' if len(recipe.published) == 1 else 's'} of published figures"
    typer.echo(f"  {recipe.paper}; {rows}")
    if whole:
        from fedgraft.cli.printing import source_of
        from fedgraft.recipes.recipe import missing_sentence

        typer.echo(f"  {recipe.needs}")
        typer.echo(f"  methods: {', '.join(recipe.methods)}")
        for method in recipe.missing:
            typer.echo(f"  {missing_sentence(method)}")
        for key, value in recipe.settings.items():
            typer.echo(f"  {key} = {json.dumps(value)}")
        for row in recipe.published:
            figures = ", ".join(f"{key} {value:.2f}" for key, value in row.metrics.items())
            typer.echo(f"  {row.method}: {figures} ({source_of(row.model_dump()).removesuffix('.')})")
