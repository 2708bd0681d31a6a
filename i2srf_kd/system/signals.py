"""How a program says that a signal has interrupted it."""

#: Exit code ``EX_TEMPFAIL``: the program saved its state on a signal; the same command goes on from there.
EXIT_INTERRUPTED = 75
