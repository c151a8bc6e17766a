#!/usr/bin/env python3
"""Make proposals for a data set or a folder of images, convert a file of proposals, or describe one.

The proposals are written to a ProposalStore, which a config can name as proposals.file with format: store;
the proposals of the config's own method are written where training looks for them. A job that was stopped
continues where it stopped. An image that fails or takes longer than --time-limit is named, has no proposals
and is tried again by the next run; the exit status is then 1. proposals.missing in the config says what
training does with such images."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, propose

if __name__ == "__main__":
    cli.run(propose.main)
