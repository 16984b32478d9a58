"""Recipes that come with lapilli: `lapilli run NAME`."""
