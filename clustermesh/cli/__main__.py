"""`python -m clustermesh.cli`, for where no program was installed."""

from clustermesh.cli import main

main(prog_name="clustermesh")
