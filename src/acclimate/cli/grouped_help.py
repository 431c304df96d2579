"""Commands whose help lists options under headings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class GroupedOption(click.Option):
    """An option that is listed under a heading; the default heading is ``Options``."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help groups options by heading, in the order in which the headings first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each heading."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                rows.setdefault(getattr(parameter, "group", "Options"), []).append(row)
        for heading, listed in rows.items():
            with formatter.section(heading):
                formatter.write_dl(listed)


def grouped(heading: str) -> Callable[..., Callable[[Any], Any]]:
    """Return a ``click.option`` whose options are listed under ``heading``."""

    def option(*names: str, **kwargs: Any) -> Callable[[Any], Any]:
        return click.option(*names, cls=GroupedOption, group=heading, **kwargs)

    return option
