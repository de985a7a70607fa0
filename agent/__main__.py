"""`python -m agent` is the node agent."""

from agent.main import main

main()
