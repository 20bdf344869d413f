"""Which models have a short name, where they are to be had, and whether they are here; and get one.

python -m steerloop.models                       # the table; asks no network
python -m steerloop.models fetch smollm2-135m    # for --model smollm2-135m
"""

from argparse import Namespace

from steerloop import UserError
from steerloop.cli.entry import command
from steerloop.cli.options import Parser
from steerloop.loading.hub import SHORT
from steerloop.models.fetch import fetch
from steerloop.models.listing import listing, names


def parse(argv: list[str]) -> Namespace:
    """Command line → options. Raises UserError where `fetch` has no name, or one that no model
    has."""
    parser = Parser(prog="python -m steerloop.models", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["list", "fetch"], default="list",
                        help="list (the default): all of them; fetch: get one")
    parser.add_argument("name", nargs="?", help="a short name, as they are listed")
    args = parser.parse_args(argv)
    if args.what == "list" and args.name is not None:
        parser.error(f"list takes no name ({args.name})")
    if args.what == "fetch" and (args.name or "").lower() not in SHORT:
        said = f"there is no model {args.name}" if args.name else "fetch takes a name"
        raise UserError(f"{said}: there are {', '.join(names())}")
    return args


def run(args: Namespace) -> None:
    """Print the table, or get a model. Raises UserError."""
    if args.what == "list":
        print(listing())
    else:
        fetch(args.name)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status where a model is not to be
    had."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()
