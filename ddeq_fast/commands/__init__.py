"""The command line `ddeq-fast`."""
