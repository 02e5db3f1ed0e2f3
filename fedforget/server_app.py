"""The ServerApp: run config -> `Experiment`."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedforget.escape import plain
from fedforget.loading import loading

app = ServerApp()


def say(line: str) -> None:
    """Print at once: the launcher follows the output line by line."""
    print(line, flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names.

    Raises:
        RuntimeError: with one sentence, if the run cannot be done or had to stop.
    """
    with loading():
        from fedforget.cohort import AuditFailed, TooFewClients
        from fedforget.config import compose
        from fedforget.experiment import Experiment
        from fedforget.grid import choose
        from fedforget.store import CannotWrite, default_output
    settings = context.run_config
    output = Path(str(settings["output-dir"]) or default_output())
    try:
        if not output.is_absolute():
            raise ValueError(
                f"output-dir={str(output)!r} must be an absolute path: the run has another working directory"
            )
        config = compose(str(settings["experiment"]), str(settings["overrides"]))
        say(f"waiting for the SuperNodes and for {config.task.source} data")
        Experiment(config, choose(grid, config.engine, config.data), output, say).run()
    except (ValueError, TooFewClients, AuditFailed, CannotWrite) as error:
        say(f"fedforget: error: {plain(str(error))}")
        raise RuntimeError(str(error)) from error.__cause__  # where a strategy's own code failed, for its author
