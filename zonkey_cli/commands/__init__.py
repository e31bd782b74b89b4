"""The verbs of the command line, one module each; `zonkey_cli.app` imports a module when its verb is used."""
