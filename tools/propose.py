#!/usr/bin/env python3
"""Make proposals for a data set or a folder of images, convert a file of them, or look into one.

They go into a ProposalStore, which a config can name as proposals.file with format: store; what the
config's own method makes lies where training looks for it. A job that was stopped goes on where it was. An
image that fails or takes over --time-limit is named, has no proposals, is tried again by the next run, and
makes the exit status 1; what training does about it is proposals.missing in the config."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, propose

if __name__ == "__main__":
    cli.run(propose.main)
