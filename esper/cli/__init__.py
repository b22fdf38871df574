"""The command line programs `esper-opt` and `esper`."""
