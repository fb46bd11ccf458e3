"""One module a command: `parser()` for its words and `run(args)`, which returns the exit status."""
