"""The command line, one file a verb, everything heavy imported where it is used."""
