"""Options as dataclass fields with a help text, and the command-line flags made from them."""

from __future__ import annotations

import argparse
import math
from dataclasses import field, fields
from typing import Any

VALUE_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field with a default and the help text of its flag.

    Args:
        default: Default value; it decides nothing about the type, the annotation does.
        text: Help text, with the unit or the range.
        **metadata: Further entries of the field's metadata.
    """
    return field(default=default, metadata={"help": text, **metadata})


def check_finite(options: Any) -> None:
    """Checks that no option is NaN or infinite, which no comparison with a limit would catch.

    Args:
        options: An instance of a dataclass of options.

    Raises:
        ValueError: If one is; the message names it.
    """
    for item in fields(options):
        value = getattr(options, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{item.name}` must be a finite number, got {value}.")


def parse_bool(text: str) -> bool:
    """The value of a flag that is true or false.

    Raises:
        ArgumentTypeError: If it is neither; argparse prints it behind the flag's name.
    """
    if text.lower() in {"true", "1", "yes"}:
        return True
    if text.lower() in {"false", "0", "no"}:
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def parser_for(kind: type[Any], description: str) -> argparse.ArgumentParser:
    """A parser with one flag per field of a dataclass of options.

    Args:
        kind: A dataclass whose fields are of type bool, int, float or str, or one of these or None.
        description: First line of the help.

    Returns:
        The parser; a bool is true with the bare flag, and takes true or false behind it.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for item in fields(kind):
        flag, text = f"--{item.name}", item.metadata["help"]
        name = str(item.type).removesuffix(" | None")
        if name == "bool":
            parser.add_argument(
                flag, nargs="?", const=True, default=item.default, type=parse_bool, help=text
            )
        else:
            parser.add_argument(flag, default=item.default, type=VALUE_TYPES[name], help=text)
    return parser
