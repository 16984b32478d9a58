"""Chip profiles, one TOML file each; :mod:`lapilli.deploy.chip` reads them and says what their keys mean."""
