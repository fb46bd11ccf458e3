"""The runner of suites: suite file -> runs -> commands in slots -> run directories. Imports no torch."""
