"""The command-line tools: each parses its arguments, calls the library and prints."""
