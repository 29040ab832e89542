"""What the command line `oona` does, one module for each command or pair of them; see `esper.oona.cli`."""
