"""Options that every command shares, and commands whose help ends with examples that run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from edgewright.errors import ConfigError
from edgewright.output import Output

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A click command whose help page ends with ``examples``, printed as they are typed.

    ``sections`` are headings of its options, by the option that each begins with.
    """

    def __init__(
        self,
        *args: Any,
        examples: tuple[str, ...],
        sections: Mapping[str, str] = {},
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("no_args_is_help", True)
        kwargs.setdefault("context_settings", {"show_default": True, "max_content_width": 100})
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below their headings, in the order they were declared in."""
        heading, rows = "Options", dict[str, list[tuple[str, str]]]()
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue
            heading = self.sections.get(max(parameter.opts, key=len), heading)
            if (record := parameter.get_help_record(ctx)) is not None:
                rows.setdefault(heading, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples unwrapped: a reader copies them."""
        _write_examples(self.examples, formatter)


class Group(click.Group):
    """A group of commands whose help page ends with ``examples`` too."""

    def __init__(self, *args: Any, examples: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As ``Command.format_epilog``."""
        _write_examples(self.examples, formatter)


def _write_examples(examples: tuple[str, ...], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def output_options(command: F) -> F:
    """--json and --quiet; the command receives ``output: Output``."""

    def build(ctx: click.Context, _parameter: click.Parameter, json_only: bool) -> Output:
        return Output(json_only=json_only, quiet=bool(ctx.params.pop("quiet", False)))

    command = click.option(
        "--json",
        "output",
        is_flag=True,
        callback=build,
        help="Print one JSON object to stdout, only that.",
    )(command)
    return click.option(
        "--quiet", is_flag=True, is_eager=True, help="Print results and warnings only."
    )(command)


def state_dir_option(command: F) -> F:
    """--state-dir FOLDER; the command receives ``state_dir: Path | None`` for ``StateDir.at``."""
    return click.option(
        "--state-dir",
        metavar="FOLDER",
        type=click.Path(path_type=Path),
        envvar="EDGEWRIGHT_STATE_DIR",
        show_envvar=True,
        help="Where this host keeps what it measured or built for bundles.  "
        "[default: ~/.local/state/edgewright]",
    )(command)


def config_option(command: F) -> F:
    """--config FILE: a YAML mapping of option names to values; options typed win over it."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="YAML file with any of these options; those typed win over it.",
    )(command)


def _read_config(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: a mapping of option names to values is expected")
    known = {_option_name(each): each for each in ctx.command.params if each.name}
    faults = [
        f"--config {path}: no option {key!r}; there are: {', '.join(sorted(known))}"
        for key in values
        if key not in known
    ]
    faults += [
        f"--config {path}: {key} is {value!r}; a single value is expected"
        for key, value in values.items()
        if key in known and isinstance(value, list | dict) and not _is_multiple(known[key])
    ]
    if faults:
        raise ConfigError(faults)
    ctx.default_map = {
        str(known[key].name): [value] if _is_single(known[key], value) else value
        for key, value in values.items()
        if value is not None
    }


def _is_multiple(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.multiple


def _is_single(parameter: click.Parameter, value: object) -> bool:
    """Whether click, which wants a list, would take a lone value apart letter by letter."""
    return _is_multiple(parameter) and not isinstance(value, list)


def _option_name(parameter: click.Parameter) -> str:
    longest = max(parameter.opts, key=len)
    return longest.lstrip("-") if isinstance(parameter, click.Option) else str(parameter.name)
