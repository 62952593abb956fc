"""``python -m bench NAME [--json FILE] [--only TEXT] [--threads N]``."""

import argparse
import importlib
import json

BENCHES = ("cpu",)


def main() -> None:
    """Run one bench, print its table, and write its rows where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("name", choices=BENCHES)
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--only", default="", help="only work whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = importlib.import_module(f"bench.{args.name}").run(args.only, args.threads)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


main()
