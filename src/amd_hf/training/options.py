"""Options as dataclass fields with a help text, the flags made from them, and shared checks."""

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


def check_schedule(args: Any) -> None:
    """Checks the learning rates and the steps of a schedule.

    Args:
        args: Has `learning_rate`, `min_learning_rate`, `num_warmup_steps`, `max_train_steps` and
            `lr_scheduler_type`.

    Raises:
        ValueError: If they contradict each other.
    """
    if args.lr_scheduler_type != "constant" and args.min_learning_rate >= args.learning_rate:
        raise ValueError(
            f"`min_learning_rate` must be smaller than `learning_rate`, got "
            f"{args.min_learning_rate} and {args.learning_rate}."
        )
    if args.num_warmup_steps >= args.max_train_steps:
        raise ValueError(
            f"`num_warmup_steps` must be smaller than `max_train_steps`, got "
            f"{args.num_warmup_steps} and {args.max_train_steps}."
        )


def parse_sides(name: str, text: str) -> tuple[int, int]:
    """Height and width from `N` or `HEIGHTxWIDTH`.

    Raises:
        ValueError: If it is neither, or a side is below 32 pixels; the message names the option.
    """
    parts = text.lower().split("x")
    if len(parts) <= 2 and all(part.isdecimal() and int(part) >= 32 for part in parts):
        return int(parts[0]), int(parts[-1])
    raise ValueError(f"`{name}` must be N or HEIGHTxWIDTH of at least 32 pixels, got {text!r}.")


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
