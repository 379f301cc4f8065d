"""`python -m tests.chaos`: run faults against a world of its own and audit what is left."""

import argparse
import random
import signal
import sys
from pathlib import Path

from tests.chaos import names, selftest
from tests.chaos.faults import FAULTS
from tests.chaos.run import run


def listed(known: "dict[str, object]") -> "type[list[str]]":
    def read(text: str) -> list[str]:
        given = [name.strip() for name in text.split(",")]
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"must be some of {', '.join(known)}, got {', '.join(unknown)}")
        return given

    return read  # type: ignore[return-value]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=None, help="which faults, in which order (default: any; it is printed)"
    )
    parser.add_argument("--minutes", type=float, default=3, help="of faults (default: %(default)s)")
    parser.add_argument("--only", type=listed(dict(FAULTS)), default=[], metavar="A,B", help=", ".join(FAULTS))
    parser.add_argument(
        "--break",
        type=listed(dict(names.BREAKS)),
        default=[],
        dest="broken",
        metavar="A,B",
        help=f"a build that lacks these guards: {', '.join(names.BREAKS)}",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the report there, too")
    parser.add_argument(
        "--records", type=Path, metavar="PATH", help="write there what was judged: changes, runs, faults, people's acts"
    )
    parser.add_argument("--self-test", action="store_true", help="whether the auditor notices each broken build")
    parser.add_argument(
        "--locked-rows",
        type=int,
        metavar="TIMES",
        help="lock rows of running jobs for longer than a lease, beside four workers that recover, so many times",
    )
    parser.add_argument("--list", action="store_true", help="say what the faults are")
    options = parser.parse_args()
    for name in ("json", "records"):  # now, not after minutes of faults
        if (path := getattr(options, name)) and path.is_dir():
            parser.error(f"--{name} must name a file, got the folder {str(path)!r}")
    if options.list:
        for name, fault in FAULTS.items():
            print(f"{name:10}  {fault.says}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and clean up
    if options.self_test:
        return self_test()
    if options.locked_rows:
        report = selftest.locked_rows(options.locked_rows)
        print(report.text())
        return 0 if report.clean else 1
    seed = random.randrange(10_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    report = run(seed=seed, seconds=options.minutes * 60, only=options.only, broken=options.broken, say=say)
    print(report.text())
    if options.records:
        options.records.write_text(report.records() + "\n")
    if options.json:
        options.json.write_text(report.json() + "\n")
    return 0 if report.clean else 1


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def self_test() -> int:
    right = True
    for case in selftest.CASES:
        for _ in range(case.times):
            verdict = selftest.tried(case)
            print(selftest.told(case, verdict), flush=True)
            right = right and selftest.as_expected(case, verdict)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
