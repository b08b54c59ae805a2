"""Great Expectations on a pandas data frame: reading, and the expectations that say what `corpus.rules` says, as far as there are any.

Usage: FORMAT FILE…
"""

import logging
import os
import sys
from typing import Any

from measuring import measured, peak_mb

MAX_CHARS, MAX_BAD_SHARE = 10_000_000, 0.1


def main() -> None:
    """Runs the judgement once."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    kind, files = sys.argv[1], sys.argv[2:]

    def run() -> dict[str, Any]:
        frames = [pd.read_parquet(file) if kind == "parquet" else pd.read_json(file, lines=True) for file in files]
        frame = pd.concat(frames, ignore_index=True)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("corpus").add_dataframe_asset("rows")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        suite = gx.ExpectationSuite(
            name="rules",
            expectations=[
                gxe.ExpectColumnValuesToNotBeNull(column="text"),
                gxe.ExpectColumnValuesToBeOfType(column="text", type_="str"),
                gxe.ExpectColumnValueLengthsToBeBetween(column="text", min_value=1, max_value=MAX_CHARS),
                gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=r"^\s*$"),
                gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex="\\x00"),
                gxe.ExpectColumnValuesToBeUnique(column="text"),
            ],
        )
        result = batch.validate(suite)
        found = [(outcome.expectation_config.type, int(outcome.result.get("unexpected_count", 0))) for outcome in result.results]
        return {"rows": len(frame), "found": found}

    measured(run, facts=facts)


def facts(outcome: dict[str, Any]) -> dict[str, Any]:
    """Returns the verdict, and what broke each expectation. Duplicates count once per pair, and not against the verdict."""
    counts = [count for _, count in outcome["found"]]
    null, _, length, blank, nul, repeated = counts
    bad = null + blank + nul
    verdict = "fail" if bad > MAX_BAD_SHARE * outcome["rows"] else "pass with quarantine" if bad or repeated else "pass"
    return {"verdict": verdict, "counts": {"null": null, "empty": length, "blank": blank, "nul": nul, "repeated": repeated}, "peak_mb": peak_mb()}


if __name__ == "__main__":
    main()
