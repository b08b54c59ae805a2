"""The peer of `noop`: seven chained Luigi tasks with file targets, run by the local scheduler."""

import sys
from pathlib import Path

import luigi

FOLDER = Path(sys.argv[1])


class Stage(luigi.Task):
    """One of seven stages; each needs the one before."""

    number = luigi.IntParameter()

    def requires(self):
        return [Stage(number=self.number - 1)] if self.number else []

    def output(self):
        return luigi.LocalTarget(str(FOLDER / f"{self.number}.done"))

    def run(self):
        with self.output().open("w") as file:
            file.write("done")


if not luigi.build([Stage(number=6)], local_scheduler=True, log_level="ERROR"):
    sys.exit(1)
