"""Run every benchmark, one after the other, and say which goals hold.

    python -m benchmarks [--quick] [--into FOLDER]

Each command writes its table, chart and figures into docs/benchmarks and renews its table in the
pages that show it.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import ROOT

COMMANDS = ("feel", "latency", "compose", "memory", "flask_cost", "throughput", "scale")


def main() -> None:
    """Run them; compare reads what they wrote."""
    for name in COMMANDS:
        print(f"\n# {name}\n", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]
        subprocess.run(command, cwd=ROOT, check=True)
    into = sys.argv[sys.argv.index("--into") + 1 :][:1] if "--into" in sys.argv else []
    print("\n# Goals\n", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.compare", *into], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
