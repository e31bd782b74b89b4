"""The configurations that come with the package, one TOML file each."""
