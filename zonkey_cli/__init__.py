"""The command line of zonkey: thin, and free of heavy imports until a verb needs them."""
