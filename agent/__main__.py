"""`clustermesh-agent` and `python -m agent`: the node agent."""

from agent.memory import be_frugal

be_frugal()

from agent.main import main  # noqa: E402  # what is imported is made, and kept, as everything after it

if __name__ == "__main__":
    main()
